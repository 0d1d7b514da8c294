// Fuzzes what a peer says after a good handshake, at the block ports of a real master and a node.
// The first byte of an input says who the peer is: 0 a client of the node, 1 one without shared
// memory, 2 another node, 3 a client of the master, 4 a node that the master knows; with 8 added,
// the peer waits a moment for an answer before it goes on. The others are
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

#include "base/little_endian.h"
#include "index/slot_registry.h"
#include "master/master_block_port.h"
#include "master/master_core.h"
#include "net/channel.h"
#include "node/node_core.h"

namespace kvstore {
namespace {

constexpr int kPatienceMs = 20'000;
constexpr int kMomentMs = 5;
constexpr uint64_t kSession = 1;
constexpr uint8_t kWaits = 8;
constexpr uint64_t kGenerations = 0x4e45'47ff'ff00'0000;

Deadline soon() { return Deadline::after_ms(kPatienceMs); }

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

// A client of this host holds the lock of a slot: of one, however many sessions it has.
void take_slot(Channel& channel, const std::string& place) {
    static std::shared_ptr<ClientSlot> slot;  // the registry itself does not keep it
    std::vector<Fd> fds = channel.take_fds();
    if (slot == nullptr) {
        KV_ASSERT(fds.size() == 3);
        const auto number = static_cast<uint32_t>(channel.welcome().slot);
        slot = SlotRegistry::instance().acquire(std::move(fds[2]), number, place).value();
    }
    StatusReply reply;
    KV_ASSERT(channel.exchange(SlotReady{.slot = slot->number()}, &reply, soon()).ok());
    slot->set_confirmed();
}

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
    } else if (const auto held = SlotRegistry::instance().find(cluster.node_at); who == 0 && held) {
        hello.slot_plus_one = held->number() + 1;
        hello.slot_device = held->file().device;
        hello.slot_inode = held->file().inode;
    }
    const std::string& at = who <= 2 ? cluster.node_at : cluster.master_at;
    auto channel = Channel::connect(Endpoint::parse(at).value(), hello, soon());
    KV_ASSERT(channel.ok());
    if (who == 0) {
        take_slot(**channel, at);
    }
    return (*channel)->release().take_fd();
}

// One end of a session. Says frames and hears what comes, so that nobody waits for the other.
class Speaker {
  public:
    explicit Speaker(Fd fd) : fd_(std::move(fd)) {}

    void say(FrameHeader header, std::span<const uint8_t> rest) {
        header.request_id = ++request_id_;
        const FrameHeaderBytes head = encode_header(header);
        std::vector<uint8_t> frame(head.begin(), head.end());
        frame.insert(frame.end(), rest.begin(), rest.end());
        name_generations(frame);
        for (std::span<const uint8_t> left(frame); !left.empty() && !has_ended_;) {
            if ((await(POLLIN | POLLOUT, kPatienceMs) & POLLOUT) != 0) {
                const ssize_t sent =
                    send(fd_.get(), left.data(), left.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
                // Who was refused may find the socket closed.
                left = left.subspan(sent > 0 ? static_cast<size_t>(sent) : left.size());
            }
        }
    }
    // Whether or not an answer comes.
    void wait_a_moment() { (void)await(POLLIN, kMomentMs); }
    void end() {
        (void)shutdown(fd_.get(), SHUT_WR);
        while (!has_ended_) {
            (void)await(POLLIN, kPatienceMs);
        }
    }

  private:
    short await(short events, int patience_ms) {
        pollfd waiting{fd_.get(), events, 0};
        const int ready = poll(&waiting, 1, patience_ms);
        if (ready < 0 && errno == EINTR) {
            return 0;  // libFuzzer's own timer
        }
        KV_ASSERT(ready == 1 || patience_ms == kMomentMs);  // else it hangs
        if ((waiting.revents & ~POLLOUT) != 0) {
            hear();
        }
        return waiting.revents;
    }
    void hear() {
        std::array<uint8_t, 65536> bytes;
        const ssize_t count = recv(fd_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
        has_ended_ = count <= 0;
        // A reply comes in one piece, unless it is a long one.
        const std::span<const uint8_t> heard(bytes.data(),
                                             has_ended_ ? 0 : static_cast<size_t>(count));
        FrameHeader header;
        ReserveReply reply;
        if (heard.size() >= kFrameHeaderBytes &&
            decode_header(heard.first<kFrameHeaderBytes>(), &header).ok() &&
            header.message() == MessageType::kReserveReply &&
            heard.size() - kFrameHeaderBytes >= header.body_bytes &&
            decode_message(heard.subspan(kFrameHeaderBytes, header.body_bytes), &reply).ok()) {
            generations_.assign(reply.generations.begin(), reply.generations.end());
        }
    }
    // Nobody guesses what a node has drawn: kGenerations + n stands for the nth reserved last.
    void name_generations(std::span<uint8_t> frame) const {
        for (size_t at = 0; at + sizeof(uint64_t) <= frame.size(); ++at) {
            const uint64_t n = load_word<uint64_t>(frame.data() + at) - kGenerations;
            if (n < generations_.size()) {
                store_word(frame.data() + at, generations_[n]);
            }
        }
    }

    Fd fd_;
    bool has_ended_ = false;
    uint64_t request_id_ = 0;
    std::vector<uint64_t> generations_;
};

void converse(Speaker& speaker, std::span<const uint8_t> input, bool waits) {
    constexpr size_t kHead = 5;
    while (input.size() >= kHead) {
        FrameHeader header;
        header.type = input[0];
        header.body_bytes = input[1] | uint32_t{input[2]} << 8;
        header.payload_bytes = input[3] | uint64_t{input[4]} << 8;
        input = input.subspan(kHead);
        const size_t size =
            std::min<size_t>(header.body_bytes + header.payload_bytes, input.size());
        speaker.say(header, input.first(size));
        input = input.subspan(size);
        if (waits) {
            speaker.wait_a_moment();
        }
    }
    speaker.end();
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace kvstore;
    static const Cluster cluster;
    if (size > 0) {
        Speaker speaker(shake_hands(cluster, data[0] % 8 % 5));
        converse(speaker, {data + 1, size - 1}, (data[0] & kWaits) != 0);
    }
    return 0;
}
