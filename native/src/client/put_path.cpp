// Batches of puts: to a node of this host through its memory, else one Put by socket; tried again.
#include "client/put_path.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/interrupt.h"
#include "client/put_request.h"
#include "client/shared_put.h"
#include "client/ucx_put.h"

namespace kvstore {
namespace {

constexpr uint64_t kBatchBytes = 32u << 20;  // data of one message, but for a single larger object
constexpr uint64_t kBatchText = 4u << 20;    // keys and parents of one message
constexpr int kReattachMs = 1000;            // how long a put waits for a node that is restarting
constexpr int kRetryPauseMs = 10;
// A node that gives no sign of life for this share of the deadline hangs, where another one could
// take the objects; but bytes take their time, on the slowest of networks.
constexpr uint64_t kPatienceShare = 4;
constexpr uint64_t kLeastPatienceMs = 250;
constexpr uint64_t kSlowBytesPerMs = 16u << 10;

size_t batch_length(std::span<const PutItem> items) {
    uint64_t bytes = 0;
    uint64_t text = 0;
    size_t count = 0;
    for (const PutItem& item : items) {
        bytes += item.data.size();
        text += item.key.size() + item.parent.size();
        if (count > 0 &&
            (count == limits::kMaxBatchKeys || bytes > kBatchBytes || text > kBatchText)) {
            break;
        }
        ++count;
    }
    return count;
}

// Another node may still take what this one refused.
bool may_go_elsewhere(Code code) {
    return code == Code::kNoSpace || code == Code::kTooLarge || code == Code::kUnavailable;
}

std::vector<PutItem*> with_result(std::span<PutItem* const> items, bool (*wanted)(Code)) {
    std::vector<PutItem*> found;
    std::copy_if(items.begin(), items.end(), std::back_inserter(found),
                 [&](const PutItem* item) { return wanted(item->result); });
    return found;
}

void set_all(std::span<PutItem*> items, Code code) {
    for (PutItem* item : items) {
        item->result = code;
    }
}

}  // namespace

void PutPath::run(std::span<PutItem> items, Deadline deadline) {
    deadline_ = deadline;
    context_.nodes().keep_fresh(kTableAgeMs, deadline);
    for (size_t first = 0; first < items.size();) {
        const size_t count = batch_length(items.subspan(first));
        put_batch(items.subspan(first, count));
        first += count;
    }
    count_results(items);
}

void PutPath::put_batch(std::span<PutItem> batch) {
    for (PutItem& item : batch) {
        item.result = item.data.size() > limits::kMaxObjectBytes ? Code::kTooLarge : kPutOpen;
    }
    // One batch may wait for a node that restarts; those behind it fail at once until one is back.
    give_up_ms_ = boottime_ms() + (context_.write_breaker().allow() ? kReattachMs : 0);
    std::vector<PutItem*> open;
    for (int attempts = 0;; ++attempts) {
        open.clear();
        for (PutItem& item : batch) {
            if (item.result == kPutOpen) {
                open.push_back(&item);
            }
        }
        if (open.empty()) {
            context_.write_breaker().success();
            return;
        }
        if (context_.closed()) {
            return set_all(open, Code::kClosed);
        }
        if (deadline_.expired() || (attempts > 0 && check_interrupt())) {
            return set_all(open, Code::kDeadlineExceeded);
        }
        if (attempts > 0 && boottime_ms() >= give_up_ms_) {
            context_.write_breaker().failure();
            return set_all(open, Code::kUnavailable);
        }
        if (attempts == 1) {
            tally_.add(ClientCounter::kRetries, open.size());
        } else if (attempts > 1) {
            std::this_thread::sleep_for(std::chrono::milliseconds(kRetryPauseMs));
        }
        if (!put_shared(open)) {
            put_by_socket(open, nullptr);
        }
    }
}

// Local first: into the memory of a node of this host, or by socket where it may only be read.
// False when there is none that takes puts.
bool PutPath::put_shared(std::span<PutItem*> open) {
    context_.nodes().locals(deadline_, &locals_);
    std::vector<std::shared_ptr<PeerNode>> eligible;
    for (const LocalPeer& local : locals_) {
        if (local.peer->takes_puts()) {
            eligible.push_back(local.peer);
        }
    }
    const std::shared_ptr<PeerNode> chosen = context_.nodes().choose(eligible);
    const auto local = std::find_if(locals_.begin(), locals_.end(),
                                    [&](const LocalPeer& l) { return l.peer == chosen; });
    if (local == locals_.end() || !chosen->breaker().allow()) {
        return false;
    }
    // What is open then, because the node did not answer, is tried again: elsewhere, or here once
    // it has restarted.
    if (local->node->may_write()) {
        const uint64_t begun_ms = boottime_ms();
        SharedPut put(*local->node, options_, deadline_, patience_ms(*chosen, open), &tally_);
        if (put.run(open)) {
            chosen->breaker().success();
        } else {
            pass_over(*chosen, begun_ms);
        }
    } else if (context_.options().transport == Transport::kShm) {
        set_all(open, Code::kPermissionDenied);
    } else {
        send_put(*chosen, open);
    }
    std::vector<PutItem*> refused = with_result(open, may_go_elsewhere);
    if (!refused.empty() && !deadline_.expired()) {
        put_by_socket(refused, chosen.get());
    }
    return true;
}

void PutPath::put_by_socket(std::span<PutItem*> open, const PeerNode* except) {
    if (context_.options().transport == Transport::kShm) {
        for (PutItem* item : open) {
            if (item->result == kPutOpen) {
                item->result = Code::kUnavailable;
            }
        }
        return;
    }
    std::vector<std::shared_ptr<PeerNode>> eligible =
        PeerTable::taking_puts(context_.nodes().all());
    std::erase_if(eligible, [&](const auto& peer) { return peer.get() == except; });
    const std::shared_ptr<PeerNode> peer = context_.nodes().choose(eligible);
    if (peer != nullptr) {
        send_put(*peer, open);
        std::vector<PutItem*> refused =
            with_result(open, [](Code code) { return code == Code::kUnavailable; });
        // It has lost its master, or is stopping: another one may have not.
        if (except == nullptr && !refused.empty() && !deadline_.expired()) {
            put_by_socket(refused, peer.get());
        }
        return;
    }
    if (except == nullptr && context_.nodes().refresh(deadline_).code() != Code::kOk) {
        set_all(open, Code::kUnavailable);  // neither a node nor a master: nothing to wait for
    }
}

void PutPath::send_put(PeerNode& peer, std::span<PutItem*> open) {
    if (!peer.breaker().allow()) {
        return;
    }
    std::vector<PutItem*> left;
    if (context_.ucx().wanted()) {
        left = UcxPuts(context_, options_, deadline_, &tally_)
                   .run(peer, open, patience_ms(peer, open));
        open = left;
    }
    if (open.empty()) {
        return;
    }
    DeviceSource::Staged staged;  // what a GPU's memory holds, where a socket reads it
    if (Status status = stage(open, &staged); !status.ok()) {
        return set_all(open, status.code());
    }
    PutPayload bytes;
    for (size_t row = 0; row < open.size(); ++row) {
        bytes.add(staged.objects.empty() ? open[row]->data : staged.objects[row]);
    }
    const PutRows rows(open, options_);
    Put request;
    rows.fill(&request);
    request.crcs_behind = true;
    request.trace = current_trace();
    request.timeout_ms = MasterClient::remote_timeout_ms(deadline_);
    std::vector<uint8_t> body;
    encode_message(request, body);
    const uint64_t begun_ms = boottime_ms();
    const uint64_t patience = patience_ms(peer, open);
    const PutRequest asked{Put::kType, body, bytes.payload(), deadline_, patience};
    PutAnswer answer;
    ChannelPool::Lease lease;
    const Status status =
        peer.sockets().call(&lease, sooner(deadline_, patience),
                            [&](Channel& channel) { return ask(channel, asked, &answer); });
    if (!status.ok()) {
        const bool answered = lease && lease->alive();
        if (answered) {
            peer.breaker().success();
        } else {
            pass_over(peer, begun_ms);
        }
        if (answered || deadline_.expired()) {
            set_all(open, status.code());
        }
        return;
    }
    peer.breaker().success();
    for (size_t row = 0; row < open.size(); ++row) {
        PutItem& item = *open[row];
        item.result = answer.code(row);
        if (item.result == Code::kOk) {
            tally_.add(ClientCounter::kBytesPutSocket, item.data.size());
        }
    }
}

Status PutPath::stage(std::span<PutItem* const> open, DeviceSource::Staged* staged) const {
    if (options_.device == nullptr) {
        return {};
    }
    Result<DeviceSource::Staged> copied = options_.device->stage(open, deadline_);
    if (!copied.ok()) {
        return copied.status();
    }
    *staged = std::move(*copied);
    return {};
}

uint64_t PutPath::patience_ms(const PeerNode& peer, std::span<PutItem* const> open) const {
    const auto left = static_cast<uint64_t>(deadline_.left_ms());
    if (context_.options().transport == Transport::kShm ||
        !context_.nodes().another_takes_puts(peer)) {
        return left;
    }
    uint64_t bytes = 0;
    for (const PutItem* item : open) {
        bytes += item->data.size();
    }
    return std::max(left / kPatienceShare, kLeastPatienceMs) + bytes / kSlowBytesPerMs;
}

void PutPath::pass_over(PeerNode& peer, uint64_t since_ms) {
    peer.breaker().failure();
    give_up_ms_ += boottime_ms() - since_ms;  // the wait was for this node, not for one to come
}

void PutPath::count_results(std::span<const PutItem> items) {
    for (const PutItem& item : items) {
        tally_.add(item.result == Code::kOk              ? ClientCounter::kPutsOk
                   : item.result == Code::kAlreadyExists ? ClientCounter::kPutsExisting
                                                         : ClientCounter::kPutsFailed);
    }
    context_.count(tally_, locals_.empty() ? nullptr : &locals_.front().node->slot());
}

}  // namespace kvstore
