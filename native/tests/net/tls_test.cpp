// TLS beneath the event server and the channel, with certificates that the openssl command makes.
#include "net/tls.h"

#include <netinet/in.h>
#include <poll.h>

#include <cstdlib>
#include <fstream>

#include "tests/net/event_server_fixture.h"
#include "tests/temp_dir.h"

namespace kvstore::testing {
namespace {

void run(const std::string& command) {
    ASSERT_EQ(std::system((command + " > /dev/null 2>&1").c_str()), 0) << command;
}

// Authorities and what they have signed, in one folder.
class Authority {
  public:
    void make(const std::string& name) {
        run("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "
            "/CN=" +
            name + " -keyout " + file(name + ".key") + " -out " + file(name + ".pem") +
            " -addext basicConstraints=critical,CA:TRUE");
    }
    void sign(const std::string& name, const std::string& by, const std::string& alternatives,
              int days = 2) {
        std::ofstream(file(name + ".ext")) << "subjectAltName=" << alternatives << "\n";
        run("openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=" + name +
            " -keyout " + file(name + ".key") + " -out " + file(name + ".csr"));
        run("openssl x509 -req -in " + file(name + ".csr") + " -CA " + file(by + ".pem") +
            " -CAkey " + file(by + ".key") + " -CAcreateserial -days " + std::to_string(days) +
            " -extfile " + file(name + ".ext") + " -out " + file(name + ".pem"));
    }
    std::string file(const std::string& name) const { return folder_.path() + "/" + name; }
    TlsSettings of(const std::string& name, const std::string& ca = "ca") const {
        return {.cert = name.empty() ? "" : file(name + ".pem"),
                .key = name.empty() ? "" : file(name + ".key"),
                .ca = file(ca + ".pem")};
    }

  private:
    TempDir folder_;
};

class TlsTest : public EventServerTest {
  protected:
    static void SetUpTestSuite() {
        authority_ = new Authority();
        authority_->make("ca");
        authority_->make("other");
        authority_->sign("server", "ca", "IP:127.0.0.1,DNS:localhost");
        authority_->sign("elsewhere", "ca", "DNS:elsewhere.example");
        authority_->sign("client", "ca", "DNS:client");
        authority_->sign("stranger", "other", "IP:127.0.0.1");
    }
    static void TearDownTestSuite() {
        delete authority_;
        authority_ = nullptr;
    }
    static std::shared_ptr<Tls> load(const TlsSettings& settings) {
        auto loaded = Tls::load(settings);
        EXPECT_TRUE(loaded.ok()) << loaded.status().to_string();
        return loaded.ok() ? *loaded : nullptr;
    }
    static TlsSettings server_settings(ClientAuth auth = ClientAuth::kNone, bool required = true) {
        TlsSettings settings = authority_->of("server");
        settings.client_auth = auth;
        settings.required = required;
        return settings;
    }
    void serve_tls(const TlsSettings& settings = server_settings()) {
        tls_ = load(settings);
        options_.tls = tls_;
        serve();
    }
    static HelloParams by_tls(const TlsSettings& settings = authority_->of("")) {
        HelloParams hello = params();
        hello.tls = load(settings);
        return hello;
    }
    static std::string words(const Status& status) { return status.to_string(); }

    static inline Authority* authority_ = nullptr;
    std::shared_ptr<Tls> tls_;
};

Bytes patterned(size_t size) {
    Bytes bytes(size);
    for (size_t i = 0; i < size; ++i) {
        bytes[i] = static_cast<uint8_t>(i * 31 + (i >> 12));
    }
    return bytes;
}

Status put(Channel& channel, const Bytes& bytes, size_t pieces = 1) {
    std::vector<iovec> parts;
    const size_t each = bytes.size() / pieces;
    for (size_t i = 0; i < pieces; ++i) {
        const size_t size = i + 1 == pieces ? bytes.size() - i * each : each;
        parts.push_back({const_cast<uint8_t*>(bytes.data()) + i * each, size});
    }
    const std::string_view key = "k";
    StatusReply reply;
    return channel.exchange(Put{.keys = key}, &reply, soon(), {.parts = parts});
}

Status get(Channel& channel, Bytes* bytes) {
    std::vector<uint8_t> body;
    const std::string_view key = "k";
    encode_message(Get{.keys = key}, body);
    Result<Channel::Reply> reply = channel.call(MessageType::kGet, body, {}, soon());
    if (!reply.ok()) {
        return reply.status();
    }
    bytes->assign(reply->header.payload_bytes, 0);
    const iovec part{bytes->data(), bytes->size()};
    return channel.recv_payload(std::span(&part, 1), soon());
}

TEST_F(TlsTest, BytesOfAnySizeComeBackWhole) {
    serve_tls();
    const std::unique_ptr<Channel> channel = connect(tcp_, by_tls());
    ASSERT_NE(channel, nullptr);
    for (const size_t size : {1u, 100u, 16'383u, 16'384u, 16'385u, 262'144u, 300'001u, 48u << 20}) {
        for (const size_t pieces : {1u, 7u, 300u}) {
            const Bytes sent = patterned(std::max(size, pieces));
            ASSERT_TRUE(put(*channel, sent, pieces).ok());
            Bytes received;
            const Status status = get(*channel, &received);
            ASSERT_TRUE(status.ok()) << status.to_string();
            ASSERT_EQ(received, sent) << size << " in " << pieces;
        }
    }
    std::lock_guard lock(service_.mutex);
    EXPECT_TRUE(service_.peers.front().is_tls);
}

TEST_F(TlsTest, ManyRequestsInProgressAreAnsweredInOrder) {
    serve_tls();
    const std::unique_ptr<Channel> channel = connect(tcp_, by_tls());
    ASSERT_NE(channel, nullptr);
    const std::string key(1000, 'k');
    std::vector<uint8_t> body;
    const std::string_view view = key;
    encode_message(Lookup{.keys = view}, body);
    constexpr int kRequests = 3000;  // more bytes than one turn of the loop takes
    std::thread sender([&] {
        for (int i = 0; i < kRequests; ++i) {
            ASSERT_TRUE(channel->send(MessageType::kLookup, body, {}, soon()).ok());
        }
    });
    sender.join();
    for (int i = 1; i <= kRequests; ++i) {
        Result<Channel::Reply> reply = channel->receive_any(soon());
        ASSERT_TRUE(reply.ok()) << reply.status().to_string();
        ASSERT_EQ(reply->header.request_id, static_cast<uint64_t>(i));
    }
}

TEST_F(TlsTest, ASlowReaderGetsEverythingOnce) {
    serve_tls();
    const std::unique_ptr<Channel> channel = connect(tcp_, by_tls());
    ASSERT_NE(channel, nullptr);
    std::vector<uint8_t> body;
    encode_message(List{.limit = 40}, body);
    ASSERT_TRUE(channel->send(MessageType::kList, body, {}, soon()).ok());
    ASSERT_TRUE(eventually([&] { return service_.frames >= 1; }));
    for (int i = 0; i < 40; ++i) {
        Result<Channel::Reply> reply = channel->receive_any(soon());
        ASSERT_TRUE(reply.ok()) << reply.status().to_string();
        ASSERT_EQ(reply->body.size(), size_t{1} << 20);
    }
}

TEST_F(TlsTest, WhatTheSocketDoesNotTakeAtOnceFollows) {
    serve_tls();
    const std::unique_ptr<Channel> channel = connect(tcp_, by_tls());
    ASSERT_NE(channel, nullptr);
    const int little = 4096;
    ASSERT_EQ(setsockopt(channel->fd(), SOL_SOCKET, SO_RCVBUF, &little, sizeof little), 0);
    for (const size_t size : {200'000u, 300'000u, 500'000u, 700'000u}) {
        const Bytes sent = patterned(size);
        ASSERT_TRUE(put(*channel, sent).ok());
        Bytes received;
        const Status status = get(*channel, &received);
        ASSERT_TRUE(status.ok()) << status.to_string();
        ASSERT_EQ(received, sent);
    }
}

TEST_F(TlsTest, WhoWaitsForTheSocketMissesNothingOfTheSession) {
    serve_tls();
    const std::unique_ptr<Channel> channel = connect(tcp_, by_tls());
    ASSERT_NE(channel, nullptr);
    std::vector<uint8_t> body;
    encode_message(List{.limit = 1}, body);
    for (int i = 0; i < 20; ++i) {
        ASSERT_TRUE(channel->send(MessageType::kList, body, {}, soon()).ok());
        Result<bool> arrived = channel->reply_arrived();
        while (arrived.ok() && !*arrived) {
            pollfd entry{channel->fd(), POLLIN, 0};
            ASSERT_EQ(poll(&entry, 1, 10'000), 1) << "nothing comes any more";
            arrived = channel->reply_arrived();
        }
        ASSERT_TRUE(arrived.ok());
        ASSERT_TRUE(channel->receive_any(soon()).ok());
    }
}

TEST_F(TlsTest, ThreadsMaySendWhileTheLoopReceives) {
    serve_tls();
    const std::unique_ptr<Channel> channel = connect(tcp_, by_tls());
    ASSERT_NE(channel, nullptr);
    StatsReply stats;
    for (int i = 0; i < 50; ++i) {
        ASSERT_TRUE(channel->exchange(Stats{}, &stats, soon()).ok());
    }
}

TEST_F(TlsTest, APlainPeerIsRefusedByNameWhereTlsIsRequired) {
    serve_tls();
    const Status refused = refusal(tcp_, params());
    EXPECT_EQ(refused.code(), Code::kUnauthenticated);
    EXPECT_NE(words(refused).find("TLS is required"), std::string::npos) << words(refused);
    EXPECT_TRUE(eventually([&] { return logged("TLS is required"); }));
    EXPECT_NE(connect(unix_), nullptr) << "a Unix socket needs none";
}

TEST_F(TlsTest, BothAreServedWhereItIsNotRequired) {
    serve_tls(server_settings(ClientAuth::kNone, false));
    EXPECT_NE(connect(tcp_), nullptr);
    EXPECT_NE(connect(tcp_, by_tls()), nullptr);
}

TEST_F(TlsTest, AClientWithTlsNeverFallsBack) {
    serve();
    const Status refused = refusal(tcp_, by_tls());
    EXPECT_EQ(refused.code(), Code::kUnauthenticated);
    EXPECT_NE(words(refused).find("speaks no TLS"), std::string::npos) << words(refused);
    EXPECT_EQ(service_.hellos, 0);
}

TEST_F(TlsTest, AServerThatServesBothCallsBoth) {
    serve();
    TlsSettings both = server_settings(ClientAuth::kNone, false);
    const std::unique_ptr<Channel> channel = connect(tcp_, by_tls(both));
    ASSERT_NE(channel, nullptr);
    EXPECT_TRUE(put(*channel, patterned(1000)).ok());
}

TEST_F(TlsTest, TheServersCertificateIsChecked) {
    serve_tls();
    const Status foreign = refusal(tcp_, by_tls(authority_->of("", "other")));
    EXPECT_EQ(foreign.code(), Code::kUnauthenticated);
    EXPECT_NE(words(foreign).find("certificate"), std::string::npos) << words(foreign);
    Endpoint by_name = tcp_;
    by_name.host = "localhost";
    EXPECT_NE(connect(by_name, by_tls()), nullptr);
    tls_->replace(*load(authority_->of("elsewhere")));
    for (const Endpoint& place : {tcp_, by_name}) {
        const Status wrong = refusal(place, by_tls());
        EXPECT_EQ(wrong.code(), Code::kUnauthenticated);
        EXPECT_NE(words(wrong).find("mismatch"), std::string::npos) << words(wrong);
    }
    EXPECT_EQ(service_.opens, 1);
}

TEST_F(TlsTest, TheClientsCertificateIsCheckedWhereItIsRequired) {
    serve_tls(server_settings(ClientAuth::kRequired));
    EXPECT_NE(connect(tcp_, by_tls(authority_->of("client"))), nullptr);
    for (const std::string name : {"", "stranger"}) {
        const Status refused = refusal(tcp_, by_tls(authority_->of(name)));
        EXPECT_FALSE(refused.ok()) << name;
        EXPECT_EQ(refused.code(), Code::kUnauthenticated) << words(refused);
    }
    EXPECT_TRUE(eventually([&] { return logged("did not return a certificate"); }));
    EXPECT_TRUE(eventually([&] { return logged("client's certificate is refused"); }));
    EXPECT_EQ(service_.hellos, 1);
}

TEST_F(TlsTest, ACertificateStandsForATokenWhereItsPrincipalHasNone) {
    authority_->sign("spiffe", "ca", "URI:spiffe://example.org/ns/llm/trainer");
    options_.authenticator = std::make_shared<Authenticator>(std::vector<Principal>{
        {"client", Role::kClient, {"default"}, ""},
        {"trainer", Role::kClient, {"default"}, ""},
        {"server", Role::kClient, {"default"}, "s3cret"},
    });
    serve_tls(server_settings(ClientAuth::kOptional));
    EXPECT_NE(connect(tcp_, by_tls(authority_->of("client"))), nullptr);
    ASSERT_TRUE(eventually([&] { return service_.opens == 1; }));
    EXPECT_NE(connect(tcp_, by_tls(authority_->of("spiffe"))), nullptr);
    ASSERT_TRUE(eventually([&] { return service_.opens == 2; }));
    {
        std::lock_guard lock(service_.mutex);
        ASSERT_EQ(service_.peers.size(), 2u);
        EXPECT_EQ(service_.peers[0].principal, "client");
        EXPECT_EQ(service_.peers[1].principal, "trainer");
    }
    HelloParams other_tenant = by_tls(authority_->of("client"));
    other_tenant.tenant = "elsewhere";
    EXPECT_EQ(refusal(tcp_, other_tenant).code(), Code::kPermissionDenied);
    HelloParams as_node = by_tls(authority_->of("client"));
    as_node.role = Role::kNode;
    EXPECT_EQ(refusal(tcp_, as_node).code(), Code::kPermissionDenied);
    for (const std::string name : {"", "elsewhere", "server"}) {
        const Status refused = refusal(tcp_, by_tls(authority_->of(name)));
        EXPECT_EQ(refused.code(), Code::kUnauthenticated) << name;
    }
    HelloParams no_token = by_tls();
    no_token.principal = "client";
    EXPECT_EQ(refusal(tcp_, no_token).code(), Code::kUnauthenticated);
    no_token.token = "x";
    EXPECT_EQ(refusal(tcp_, no_token).code(), Code::kUnauthenticated);
    EXPECT_EQ(refusal(unix_, params()).code(), Code::kUnauthenticated);
    options_.authenticator->replace({{"server", Role::kClient, {"default"}, "s3cret"}});
    EXPECT_TRUE(eventually([&] { return service_.closes == 2; }));
}

TEST_F(TlsTest, AnExpiredCertificateIsRefused) {
    authority_->sign("expired", "ca", "IP:127.0.0.1", -1);
    serve_tls(authority_->of("expired"));
    EXPECT_LT(tls_->expires_in_s(), 0);
    const Status refused = refusal(tcp_, by_tls());
    EXPECT_EQ(refused.code(), Code::kUnauthenticated);
    EXPECT_NE(words(refused).find("expired"), std::string::npos) << words(refused);
}

TEST_F(TlsTest, ANewCertificateIsTakenByNewSessionsAlone) {
    serve_tls();
    const std::unique_ptr<Channel> before = connect(tcp_, by_tls());
    ASSERT_NE(before, nullptr);
    tls_->replace(*load(authority_->of("stranger")));
    EXPECT_FALSE(refusal(tcp_, by_tls()).ok());
    EXPECT_NE(connect(tcp_, by_tls(authority_->of("", "other"))), nullptr);
    EXPECT_TRUE(put(*before, patterned(1000)).ok());
}

TEST_F(TlsTest, FollowedFilesAreReadAgain) {
    serve_tls(authority_->of("stranger"));
    Authority& authority = *authority_;
    std::filesystem::copy_file(authority.file("ca.pem"), authority.file("followed.pem"));
    TlsSettings settings = authority.of("", "followed");
    settings.follow = true;
    HelloParams hello = by_tls(settings);
    EXPECT_FALSE(refusal(tcp_, hello).ok());
    std::filesystem::copy_file(authority.file("other.pem"), authority.file("followed.pem"),
                               std::filesystem::copy_options::overwrite_existing);
    EXPECT_TRUE(eventually([&] { return refusal(tcp_, hello).ok(); }));
}

TEST_F(TlsTest, WrongFilesAreNamed) {
    TlsSettings swapped = authority_->of("server");
    swapped.key = authority_->file("client.key");
    const Status status = Tls::load(swapped).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_NE(words(status).find("client.key"), std::string::npos) << words(status);
    TlsSettings missing = authority_->of("", "nowhere");
    EXPECT_NE(words(Tls::load(missing).status()).find("nowhere.pem"), std::string::npos);
}

// ---- what is not TLS, or ends early ---------------------------------------------------------

Bytes hello_record() {
    // A record of a handshake that begins like a ClientHello, and is nothing.
    Bytes bytes = {0x16, 0x03, 0x01, 0x00, 0x40, 0x01, 0x00, 0x00, 0x3c, 0x03, 0x03};
    bytes.resize(5 + 0x40, 0xAB);
    return bytes;
}

TEST_F(TlsTest, BrokenHellosAreRefusedAndCounted) {
    serve_tls();
    for (size_t cut : {1u, 3u, 5u, 11u, 40u}) {
        Bytes bytes = hello_record();
        bytes.resize(cut);
        const Fd fd = connect_to(tcp_, soon()).value();
        ASSERT_TRUE(send_bytes(fd, bytes).ok());
        ::shutdown(fd.get(), SHUT_WR);
        EXPECT_TRUE(eventually([&] {
            char byte = 0;
            const ssize_t count = recv(fd.get(), &byte, 1, 0);
            return count == 0 || (count < 0 && errno != EAGAIN);
        })) << cut;
    }
    const Fd fd = connect_to(tcp_, soon()).value();
    ASSERT_TRUE(send_bytes(fd, hello_record()).ok());
    EXPECT_TRUE(eventually([&] { return logged("TLS: "); }));
    EXPECT_TRUE(eventually([&] { return refusals(Code::kUnauthenticated) >= 1; }));
    expect_serving(by_tls());
    EXPECT_EQ(service_.hellos, 1);
}

TEST_F(TlsTest, SilentHandshakesAreHalfOpenAndGiveWay) {
    options_.max_handshakes = 4;
    options_.handshake_ms = 60'000;
    serve_tls();
    std::vector<Fd> silent;
    for (int i = 0; i < 12; ++i) {
        silent.push_back(connect_to(tcp_, soon()).value());
        Bytes bytes = hello_record();
        bytes.resize(20);
        ASSERT_TRUE(send_bytes(silent.back(), bytes).ok());
    }
    expect_serving(by_tls());
    EXPECT_TRUE(eventually([&] { return server_->stats().open <= 5; }));
}

TEST_F(TlsTest, ASpoiledRecordEndsTheSession) {
    serve_tls();
    const std::unique_ptr<Channel> channel = connect(tcp_, by_tls());
    ASSERT_NE(channel, nullptr);
    ASSERT_TRUE(put(*channel, patterned(1000)).ok());
    Bytes record = {0x17, 0x03, 0x03, 0x00, 0x20};
    record.resize(5 + 0x20, 0x55);
    ASSERT_EQ(::send(channel->fd(), record.data(), record.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(record.size()));
    EXPECT_TRUE(eventually([&] { return service_.closes == 1; }));
    EXPECT_EQ(service_.last_close, Code::kProtocolError);
    expect_serving(by_tls());
}

TEST_F(TlsTest, AnAdoptedStreamKeepsItsSession) {
    serve_tls();
    TestService node_block_port;
    EventServer node({.loops = 1, .tick_ms = 10}, node_block_port);
    ASSERT_TRUE(node.start().ok());
    HelloParams hello = by_tls();
    hello.role = Role::kNode;
    const std::unique_ptr<Channel> channel = connect(tcp_, hello);
    ASSERT_NE(channel, nullptr);
    ASSERT_TRUE(node.adopt(channel->release(), Peer{}, std::make_shared<int>(5)).ok());
    ASSERT_TRUE(eventually([&] { return node_block_port.opens == 1 && service_.opens == 1; }));
    ASSERT_TRUE(service_.first_ref()->send_message(StatsReply{}, 0));
    EXPECT_TRUE(eventually([&] { return node_block_port.others == 1; }));
    ASSERT_TRUE(node_block_port.first_ref()->send_message(Stats{}, 7));
    EXPECT_TRUE(eventually([&] { return node_block_port.others == 2; }));
}

}  // namespace
}  // namespace kvstore::testing
