// Batches of puts: reserve, copy with the checksum in the same pass, commit; or one Put by socket.
#include "kvstore/put_path.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "kvstore/checksum.h"
#include "kvstore/protocol_steps.h"

namespace kvstore {
namespace {

constexpr uint64_t kBatchBytes = 32u << 20;  // data of one message, but for a single larger object
constexpr uint64_t kBatchText = 4u << 20;    // keys and parents of one message
constexpr int kReattachMs = 1000;            // how long a put waits for a node that is restarting
constexpr int kRetryPauseMs = 10;
constexpr uint64_t kTableAgeMs = 1000;  // states and weights older than this are asked for again

// The item has no final answer yet; no code has this number.
constexpr Code kOpen = static_cast<Code>(1);

size_t batch_length(std::span<const PutItem> items) {
    uint64_t bytes = 0;
    uint64_t text = 0;
    size_t count = 0;
    for (const PutItem& item : items) {
        bytes += item.size;
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
        item.result = item.size > limits::kMaxObjectBytes ? Code::kTooLarge : kOpen;
    }
    // One batch may wait for a node that restarts; those behind it fail at once until one is back.
    const uint64_t patience_ms = context_.write_breaker().allow() ? kReattachMs : 0;
    const uint64_t give_up_ms = boottime_ms() + patience_ms;
    std::vector<PutItem*> open;
    for (int attempts = 0;; ++attempts) {
        open.clear();
        for (PutItem& item : batch) {
            if (item.result == kOpen) {
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
        if (deadline_.expired()) {
            return set_all(open, Code::kDeadlineExceeded);
        }
        if (attempts > 0 && boottime_ms() >= give_up_ms) {
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

// Local first: into the memory of a node of this host. False when there is none that takes puts.
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
    if (put_into(*local->node, open)) {
        chosen->breaker().success();
    } else {
        chosen->breaker().failure();
    }
    std::vector<PutItem*> refused;
    std::copy_if(open.begin(), open.end(), std::back_inserter(refused),
                 [](const PutItem* item) { return may_go_elsewhere(item->result); });
    if (!refused.empty() && !deadline_.expired()) {
        put_by_socket(refused, chosen.get());
    }
    return true;
}

// False when the node did not answer. What is open then is tried again, elsewhere or here once it
// has restarted.
bool PutPath::put_into(LocalNode& node, std::span<PutItem*> open) {
    Result<ChannelPool::Lease> lease = node.sessions().checkout(deadline_);
    if (!lease.ok()) {
        return false;
    }
    node.send_abandoned(**lease, deadline_);
    const Rows rows = rows_of(open);
    std::vector<uint64_t> generations;
    std::vector<uint64_t> offsets;
    if (Status status = reserve(*lease, rows, &generations, &offsets); !status.ok()) {
        if (status.code() == Code::kDeadlineExceeded || (*lease)->alive()) {
            set_all(open, status.code());
        }
        return (*lease)->alive();
    }
    std::vector<PutItem*> reserved;
    std::vector<uint64_t> reserved_generations;
    std::vector<uint32_t> crcs;
    for (size_t row = 0; row < rows.items.size(); ++row) {
        PutItem& item = *rows.items[row];
        if (item.result != Code::kOk) {
            continue;
        }
        uint8_t* block = node.block(offsets[row], item.size);
        if (block == nullptr) {
            item.result = Code::kProtocolError;
            node.abandon({&generations[row], 1});
            continue;
        }
        crcs.push_back(copy_crc32c(block, item.data, item.size));
        reserved.push_back(&item);
        reserved_generations.push_back(generations[row]);
        item.result = kOpen;
    }
    steps::finish_writing(steps::RealMemory{});
    return reserved.empty() || commit(node, *lease, reserved, reserved_generations, crcs);
}

// Leaves kOk in the items that got a block.
Status PutPath::reserve(ChannelPool::Lease& lease, const Rows& rows,
                        std::vector<uint64_t>* generations, std::vector<uint64_t>* offsets) {
    Reserve request;
    request.keys = rows.keys;
    request.sizes = rows.sizes;
    request.pins = rows.pins;
    request.replicas = rows.replicas;
    request.ttl_ms = rows.ttl_ms;
    request.parents = rows.parents;
    request.timeout_ms = MasterClient::remote_timeout_ms(deadline_);
    ReserveReply reply;
    if (Status status = lease->exchange(request, &reply, deadline_); !status.ok()) {
        return status;
    }
    if (reply.status.size() != rows.items.size()) {
        return {Code::kProtocolError, "the reply has another number of rows"};
    }
    for (size_t row = 0; row < rows.items.size(); ++row) {
        rows.items[row]->result = static_cast<Code>(reply.status[row]);
        generations->push_back(reply.generations[row]);
        offsets->push_back(reply.offsets[row]);
    }
    return {};
}

// False when the node did not answer.
bool PutPath::commit(LocalNode& node, ChannelPool::Lease& lease, std::span<PutItem*> items,
                     std::span<const uint64_t> generations, std::span<const uint32_t> crcs) {
    Commit request;
    request.generations = generations;
    request.crcs = crcs;
    request.timeout_ms = MasterClient::remote_timeout_ms(deadline_);
    StatusReply reply;
    Status status = lease->exchange(request, &reply, deadline_);
    if (status.ok() && reply.status.size() != items.size()) {
        status = Status(Code::kProtocolError, "the reply has another number of rows");
    }
    if (!status.ok()) {
        // Our copies have stopped: the node may have the blocks back as soon as it can be told.
        node.abandon(generations);
        if (status.code() == Code::kDeadlineExceeded || lease->alive()) {
            set_all(items, status.code());
        }
        return lease->alive();
    }
    std::vector<uint64_t> expired;
    for (size_t row = 0; row < items.size(); ++row) {
        items[row]->result = static_cast<Code>(reply.status[row]);
        if (items[row]->result == Code::kOk) {
            tally_.add(ClientCounter::kBytesPutShm, items[row]->size);
        } else if (items[row]->result == Code::kExpired) {
            expired.push_back(generations[row]);
        }
    }
    if (!expired.empty()) {
        node.abandon(expired);
        node.send_abandoned(*lease, deadline_);
    }
    return true;
}

void PutPath::put_by_socket(std::span<PutItem*> open, const PeerNode* except) {
    if (context_.options().transport == Transport::kShm) {
        for (PutItem* item : open) {
            if (item->result == kOpen) {
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
        return send_put(*peer, open);
    }
    if (except == nullptr && context_.nodes().refresh(deadline_).code() != Code::kOk) {
        set_all(open, Code::kUnavailable);  // neither a node nor a master: nothing to wait for
    }
}

void PutPath::send_put(PeerNode& peer, std::span<PutItem*> open) {
    if (!peer.breaker().allow()) {
        return;
    }
    const Rows rows = rows_of(open);
    std::vector<uint32_t> crcs(rows.items.size());
    std::vector<iovec> parts;
    for (const PutItem* item : rows.items) {
        parts.push_back({const_cast<uint8_t*>(item->data), item->size});
    }
    Put request;
    request.keys = rows.keys;
    request.sizes = rows.sizes;
    request.pins = rows.pins;
    request.replicas = rows.replicas;
    request.ttl_ms = rows.ttl_ms;
    request.parents = rows.parents;
    request.crcs_behind = true;
    request.timeout_ms = MasterClient::remote_timeout_ms(deadline_);
    StatusReply reply;
    ChannelPool::Lease lease;
    const Status status =
        peer.sockets().exchange(request, &reply, &lease, deadline_, {parts, crcs});
    if (!status.ok()) {
        const bool answered = lease && lease->alive();
        answered ? peer.breaker().success() : peer.breaker().failure();
        if (answered || status.code() == Code::kDeadlineExceeded) {
            set_all(open, status.code());
        }
        return;
    }
    peer.breaker().success();
    for (size_t row = 0; row < rows.items.size(); ++row) {
        PutItem& item = *rows.items[row];
        item.result =
            row < reply.status.size() ? static_cast<Code>(reply.status[row]) : Code::kProtocolError;
        if (item.result == Code::kOk) {
            tally_.add(ClientCounter::kBytesPutSocket, item.size);
        }
    }
}

PutPath::Rows PutPath::rows_of(std::span<PutItem*> open) const {
    Rows rows;
    rows.items.assign(open.begin(), open.end());
    bool chained = false;
    for (const PutItem* item : open) {
        rows.keys.push_back(item->key);
        rows.parents.push_back(item->parent);
        rows.sizes.push_back(item->size);
        chained |= !item->parent.empty();
    }
    if (!chained) {
        rows.parents.clear();
    }
    rows.pins.assign(options_.pin == Pin::kNone ? 0 : open.size(),
                     static_cast<uint8_t>(options_.pin));
    rows.replicas.assign(open.size(), options_.replicas);
    rows.ttl_ms.assign(options_.ttl_ms == 0 ? 0 : open.size(), options_.ttl_ms);
    return rows;
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
