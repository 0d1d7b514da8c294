// Fuzzes what a peer says after a good handshake, at the block ports of a real master and a node.
// The first byte of an input says who the peer is: 0 a client of the node, 1 one without shared
// memory, 2 another node, 3 a client of the master, 4 a node that the master knows. The others are
// frames {type (1 byte), size of the body (2, little-endian), size of the payload (2), body,
// payload}. The ports answer or close, and serve the next peer.
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "master/master_block_port.h"
#include "master/master_core.h"
#include "net/channel.h"
#include "node/node_core.h"

namespace kvstore {
namespace {

constexpr int kPatienceMs = 20'000;
constexpr uint64_t kSession = 1;

std::string socket_name(const std::string& whose) {
    return "unix:@kvstore-fuzz-" + whose + "-" + std::to_string(getpid());
}

class Cluster {
  public:
    Cluster() {
        MasterCore::Options options;
        options.journal_auto_ack = true;
        master_ = std::make_unique<MasterCore>(options);
        MasterBlockPort::Options port_options;
        port_options.listen = {socket_name("master")};
        port_ = std::make_unique<MasterBlockPort>(*master_, port_options);
        master_at = port_->start().value().at(0);
        NodeOptions node_options;
        node_options.node_id = "node";
        node_options.unix_endpoint = socket_name("node");
        node_options.segment_bytes = 4 << 20;
        node_ = std::move(NodeCore::create(node_options).value());
        node_at = node_->start().value().unix_socket;
        admit("node", node_at);
        admit("peer", socket_name("nobody"));
        node_->set_session(kSession, {master_at});
        KV_ASSERT(node_->wait_link(LinkState::kUp, kPatienceMs));
    }
    ~Cluster() {
        node_.reset();
        master_->stop();
        port_->stop();
    }

    std::string master_at;
    std::string node_at;

  private:
    void admit(const std::string& id, const std::string& endpoint) {
        NodeInfo info;
        info.node_id = id;
        info.session_id = kSession;
        info.node_epoch = 1;
        info.unix_endpoint = endpoint;
        info.host = id;
        info.weight = 1000;
        info.capacity_bytes = info.free_bytes = 4 << 20;
        info.state = NodeState::kAlive;
        KV_ASSERT(master_->register_node(info, false).ok());
    }

    std::unique_ptr<MasterCore> master_;
    std::unique_ptr<MasterBlockPort> port_;
    std::unique_ptr<NodeCore> node_;
};

Fd shake_hands(const Cluster& cluster, uint8_t who) {
    HelloParams hello;
    hello.client_name = "fuzzer";
    if (who == 1) {
        hello.features = 0;
    } else if (who == 2 || who == 4) {
        hello.role = Role::kNode;
        hello.node_id = "peer";
        hello.node_epoch = 1;
        hello.session_id = kSession;
    }
    const std::string& at = who <= 2 ? cluster.node_at : cluster.master_at;
    auto channel =
        Channel::connect(Endpoint::parse(at).value(), hello, Deadline::after_ms(kPatienceMs));
    KV_ASSERT(channel.ok());
    return (*channel)->release_fd();
}

std::vector<uint8_t> frames_of(std::span<const uint8_t> input) {
    constexpr size_t kHead = 5;
    std::vector<uint8_t> frames;
    uint64_t request_id = 0;
    while (input.size() >= kHead) {
        FrameHeader header;
        header.type = input[0];
        header.request_id = ++request_id;
        header.body_bytes = input[1] | uint32_t{input[2]} << 8;
        header.payload_bytes = input[3] | uint64_t{input[4]} << 8;
        const FrameHeaderBytes bytes = encode_header(header);
        frames.insert(frames.end(), bytes.begin(), bytes.end());
        input = input.subspan(kHead);
        const size_t size =
            std::min<size_t>(header.body_bytes + header.payload_bytes, input.size());
        frames.insert(frames.end(), input.begin(), input.begin() + static_cast<ptrdiff_t>(size));
        input = input.subspan(size);
    }
    return frames;
}

// Sends while it hears, so that nobody waits for the other, until the port has closed.
void converse(const Fd& fd, std::span<const uint8_t> frames) {
    std::array<uint8_t, 65536> heard;
    bool has_ended = false;
    for (;;) {
        if (frames.empty() && !has_ended) {
            (void)shutdown(fd.get(), SHUT_WR);
            has_ended = true;
        }
        pollfd waiting{fd.get(), static_cast<short>(POLLIN | (frames.empty() ? 0 : POLLOUT)), 0};
        const int ready = poll(&waiting, 1, kPatienceMs);
        if (ready < 0 && errno == EINTR) {
            continue;  // libFuzzer's own timer
        }
        KV_ASSERT(ready == 1);  // else it hangs
        if ((waiting.revents & POLLOUT) != 0) {
            const ssize_t sent =
                send(fd.get(), frames.data(), frames.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
            // Who was refused may find the socket closed.
            frames = sent > 0 ? frames.subspan(static_cast<size_t>(sent)) : frames.last(0);
        }
        if ((waiting.revents & ~POLLOUT) != 0 &&
            recv(fd.get(), heard.data(), heard.size(), MSG_DONTWAIT) <= 0) {
            return;
        }
    }
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace kvstore;
    static const Cluster cluster;
    if (size > 0) {
        const Fd fd = shake_hands(cluster, data[0] % 5);
        converse(fd, frames_of({data + 1, size - 1}));
    }
    return 0;
}
