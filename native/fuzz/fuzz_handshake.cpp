// Fuzzes the handshake and the first frames behind it, on both sides, over real sockets. The first
// byte of an input says who hears the others: 0 a server, 1 a server with tokens, 2 a client, 3 a
// client with a token. Nobody may hang: a server answers or closes, a client returns.
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "net/channel.h"
#include "net/event_server.h"

namespace {

using namespace kvstore;

constexpr int kPatienceMs = 20'000;

// Lets everybody in; answers nothing but what the event server itself answers.
class Doorman final : public ConnectionHandler {
  public:
    Result<HelloAnswer> on_hello(Connection& connection, const Hello& hello) override {
        if (hello.ns == "forbidden") {
            return {Code::kPermissionDenied, "not this namespace"};
        }
        HelloAnswer answer;
        answer.welcome.session_id = connection.id();
        answer.session = std::make_shared<std::string>(hello.client_name);
        return answer;
    }
    void on_frame(Connection&, const FrameHeader&, std::span<const uint8_t>,
                  PayloadPlan*) override {}
};

class Door {
  public:
    explicit Door(std::vector<Principal> principals) {
        EventServer::Options options;
        options.loops = 1;
        options.cluster_id = "fuzz";
        options.authenticator = std::make_shared<Authenticator>(std::move(principals));
        server_ = std::make_unique<EventServer>(std::move(options), doorman_);
        const std::string name = "unix:@kvstore-fuzz-" + std::to_string(getpid()) + "-" +
                                 std::to_string(reinterpret_cast<uintptr_t>(this));
        endpoint_ = server_->listen(Endpoint::parse(name).value()).value();
        if (!server_->start().ok()) {
            std::abort();
        }
    }

    // Sends everything and hears what comes, to the end.
    void hear(std::span<const uint8_t> bytes) const {
        const Fd fd = connect_to(endpoint_, Deadline::after_ms(kPatienceMs)).value();
        // The server may refuse and close before it has read everything.
        (void)send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        (void)shutdown(fd.get(), SHUT_WR);
        std::vector<uint8_t> heard(4096);
        for (;;) {
            pollfd waiting{fd.get(), POLLIN, 0};
            if (poll(&waiting, 1, kPatienceMs) == 0) {
                std::abort();  // it hangs
            }
            if (recv(fd.get(), heard.data(), heard.size(), MSG_DONTWAIT) <= 0) {
                return;
            }
        }
    }

  private:
    Doorman doorman_;
    std::unique_ptr<EventServer> server_;
    Endpoint endpoint_;
};

void tell_client(std::span<const uint8_t> bytes, const std::string& token) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) {
        std::abort();
    }
    const Fd server(pair[1]);
    (void)send(server.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)shutdown(server.get(), SHUT_WR);
    HelloParams params;
    params.principal = token.empty() ? "" : "engine";
    params.token = token;
    const auto channel = Channel::handshake(Fd(pair[0]), params, Deadline::after_ms(kPatienceMs));
    if (channel.ok() && !token.empty()) {
        std::abort();  // nobody can have proven that it knows the token
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const Door open({});
    static const Door guarded({{"engine", Role::kClient, {"*"}, "a-secret-of-the-fuzzer"}});
    if (size == 0) {
        return 0;
    }
    const std::span<const uint8_t> bytes(data + 1, size - 1);
    switch (data[0] % 4) {
        case 0:
            open.hear(bytes);
            break;
        case 1:
            guarded.hear(bytes);
            break;
        case 2:
            tell_client(bytes, "");
            break;
        default:
            tell_client(bytes, "a-secret-of-the-fuzzer");
            break;
    }
    return 0;
}
