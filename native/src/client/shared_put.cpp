// The pipeline of a put into shared memory: reserve ahead, copy with the checksum, commit, collect.
#include "client/shared_put.h"

#include <algorithm>
#include <utility>

#include "base/fault_point.h"
#include "client/device_source.h"
#include "client/short_put.h"
#include "index/protocol_steps.h"

namespace kvstore {
namespace {

// Groups grow from the lower bound to the upper one and shrink again towards the end: long in the
// middle, so that their messages weigh little beside the copy; short at the ends, where reserving
// the first and publishing the last are waited for.
constexpr uint64_t kLeastGroupBytes = 2u << 20;
constexpr uint64_t kMostGroupBytes = 4u << 20;
constexpr uint64_t kGroupText = 1u << 20;  // keys and parents
// Groups that are reserved ahead of the one that is being copied. A process that dies or stops
// keeps no more blocks than this from others.
constexpr size_t kAhead = 3;

}  // namespace

// A chain must lose its tail before its head: what is published later counts as newer, unless it
// names its parent, whose stamp it then renews. So a list without parents goes tail first.
void SharedPut::cut(std::span<PutItem*> items) {
    uint64_t left = 0;
    for (const PutItem* item : items) {
        left += item->data.size();
    }
    uint64_t grown = kLeastGroupBytes;
    for (size_t first = 0; first < items.size();) {
        const uint64_t enough = std::max(kLeastGroupBytes, std::min(grown, left / 2));
        uint64_t bytes = 0;
        uint64_t text = 0;
        size_t count = 0;
        while (first + count < items.size() && count < limits::kMaxBatchKeys && bytes < enough &&
               text < kGroupText) {
            const PutItem& item = *items[first + count];
            bytes += item.data.size();
            text += item.key.size() + item.parent.size();
            ++count;
        }
        groups_.emplace_back().items = items.subspan(first, count);
        first += count;
        left -= bytes;
        grown = std::min(kMostGroupBytes, 2 * grown);
    }
    if (std::none_of(items.begin(), items.end(),
                     [](auto* item) { return !item->parent.empty(); })) {
        std::reverse(groups_.begin(), groups_.end());
    }
}

bool SharedPut::run(std::span<PutItem*> items) {
    Result<ChannelPool::Lease> lease = node_.channels().checkout(sooner(deadline_, patience_ms_));
    if (!lease.ok()) {
        return false;
    }
    lease_ = std::move(*lease);
    node_.send_abandoned(*lease_, sooner(deadline_, patience_ms_));
    if (!node_.slot().begin_writing(node_.node_epoch())) {
        return false;
    }
    ShortPut at_once(node_, options_, deadline_, patience_ms_, &tally_);
    const Status status = at_once.takes(items) ? at_once.run(*lease_, items) : work(items);
    node_.slot().end_writing(node_.node_epoch());
    if (!status.ok()) {
        give_up(items, status);
        // Other answers may still be on their way: nobody else may meet them.
        const bool answered = lease_->alive();
        lease_->shutdown();
        return answered || deadline_.expired();
    }
    node_.send_abandoned(*lease_, deadline_);
    return true;
}

Status SharedPut::work(std::span<PutItem*> items) {
    cut(items);
    use_spare();
    if (spare_) {
        return put_into_spare(groups_[0]);
    }
    size_t asked = 0;
    for (size_t now = 0; now < groups_.size(); ++now) {
        Group& group = groups_[now];
        for (; asked < std::min(groups_.size(), now + 1 + kAhead); ++asked) {
            if (Status status = send_reserve(groups_[asked]); !status.ok()) {
                return status;
            }
        }
        if (Status status = await_reserved(group); !status.ok()) {
            return status;
        }
        if (Status status = copy(group); !status.ok()) {
            return status;
        }
        if (Status status = commit(group); !status.ok()) {
            return status;
        }
    }
    for (const Group& group : groups_) {
        if (Status status = await_decided(group); !status.ok()) {
            return status;
        }
    }
    return {};
}

// The block is known, so nothing is waited for but the end: the commit follows the name of the key.
Status SharedPut::put_into_spare(Group& group) {
    if (Status status = send_reserve(group); !status.ok()) {
        return status;
    }
    if (Status status = copy(group); !status.ok()) {
        return status;
    }
    if (Status status = commit(group); !status.ok()) {
        return status;
    }
    if (Status status = await_reserved(group); !status.ok()) {
        return status;
    }
    return await_decided(group);
}

void SharedPut::use_spare() {
    if (groups_.size() != 1 || groups_[0].items.size() != 1) {
        return;
    }
    Group& group = groups_[0];
    spare_ = node_.spares().take(node_.slot(), group.items[0]->data.size(), boottime_ms());
    if (spare_) {
        group.generations = {spare_->generation};
        group.offsets = {spare_->offset};
    }
}

Status SharedPut::send_reserve(Group& group) {
    const PutRows rows(group.items, options_);
    Reserve request;
    rows.fill(&request);
    if (spare_) {
        request.spares = group.generations;
    }
    if (group.items.size() == 1) {
        const uint64_t size_bytes = group.items[0]->data.size();
        const bool wanted = node_.spares().wants(node_.slot(), size_bytes, boottime_ms());
        request.spare_size = wanted ? size_bytes : 0;
    }
    request.timeout_ms = MasterClient::remote_timeout_ms(deadline_);
    body_.clear();
    encode_message(request, body_);
    const Status sent = lease_->send(Reserve::kType, body_, {}, deadline_);
    group.reserve_id = lease_->last_request();
    return sent;
}

Status SharedPut::await_reserved(Group& group) {
    const Deadline until = sooner(deadline_, patience_ms_);
    while (!group.reserved) {
        if (Status status = receive(until); !status.ok()) {
            return status;
        }
    }
    return {};
}

Status SharedPut::await_decided(const Group& group) {
    while (!group.decided) {
        if (Status status = receive(deadline_); !status.ok()) {
            return status;
        }
    }
    return {};
}

Status SharedPut::copy(Group& group) {
    fault_point("client_reserved");
    if (options_.device != nullptr) {
        return copy_from_device(group);
    }
    for (size_t row = 0; row < group.items.size(); ++row) {
        PutItem& item = *group.items[row];
        uint8_t* const block = block_of(group, row);
        if (block == nullptr) {
            continue;
        }
        group.crcs.push_back(gather_crc32c(block, item.data));
        fault_point("client_copying");
        group.copied.push_back(&item);
        group.copied_generations.push_back(group.generations[row]);
    }
    steps::finish_writing(steps::RealMemory{});
    return {};
}

// All blocks of the group at once: the copies run beside each other, and are waited for together.
Status SharedPut::copy_from_device(Group& group) {
    std::vector<DeviceSource::Block> blocks;
    std::vector<size_t> rows;
    for (size_t row = 0; row < group.items.size(); ++row) {
        if (uint8_t* const block = block_of(group, row); block != nullptr) {
            blocks.push_back(
                {&group.items[row]->data, block, group.offsets[row], group.generations[row], 0});
            rows.push_back(row);
        }
    }
    const Status status = options_.device->fill(node_, blocks, deadline_);
    for (size_t i = 0; i < rows.size(); ++i) {
        group.generations[rows[i]] = blocks[i].generation;
        if (status.ok()) {
            group.crcs.push_back(blocks[i].crc);
            group.copied.push_back(group.items[rows[i]]);
            group.copied_generations.push_back(blocks[i].generation);
        }
    }
    steps::finish_writing(steps::RealMemory{});
    return status;
}

// Where the row is written; null when it got no block.
uint8_t* SharedPut::block_of(Group& group, size_t row) {
    PutItem& item = *group.items[row];
    if (group.generations[row] == 0) {
        return nullptr;
    }
    uint8_t* const block = node_.block(group.offsets[row], item.data.size());
    if (block == nullptr) {
        item.result = Code::kProtocolError;
        node_.abandon({&group.generations[row], 1});
        group.generations[row] = 0;
    }
    return block;
}

Status SharedPut::commit(Group& group) {
    if (group.copied.empty()) {
        group.decided = true;
        return {};
    }
    if (node_.torn()) {
        lease_->shutdown();  // the node forgets the blocks; the items are put by socket
        return {Code::kUnavailable, "the node's memory has lost pages"};
    }
    fault_point("client_commit");
    Commit request;
    request.generations = group.copied_generations;
    request.crcs = group.crcs;
    request.trace = current_trace();
    request.timeout_ms = MasterClient::remote_timeout_ms(deadline_);
    body_.clear();
    encode_message(request, body_);
    const Status sent = lease_->send(Commit::kType, body_, {}, deadline_);
    group.commit_id = lease_->last_request();
    fault_point("client_committed");
    return sent;
}

// The next answer, of whichever group.
Status SharedPut::receive(Deadline until) {
    Result<Channel::Reply> answer = lease_->receive_any(until);
    if (!answer.ok()) {
        return answer.status();
    }
    const uint64_t id = answer->header.request_id;
    for (Group& group : groups_) {
        if (id == group.reserve_id && !group.reserved) {
            return take_reserved(group, *answer);
        }
        if (id == group.commit_id && !group.decided) {
            return take_committed(group, *answer);
        }
    }
    return {Code::kProtocolError, "an answer to no request"};
}

Status SharedPut::take_reserved(Group& group, const Channel::Reply& answer) {
    ReserveReply reply;
    if (Status status = lease_->decode_reply(answer, &reply); !status.ok()) {
        return status;
    }
    if (reply.status.size() != group.items.size()) {
        return {Code::kProtocolError, "the reply has another number of rows"};
    }
    node_.keep_spare(group.items[0]->data.size(), reply.spare_generation, reply.spare_offset,
                     reply.spare_ms);
    group.reserved = true;
    if (spare_) {
        // Refused: the commit behind it gives the block back. One that the node has taken back is
        // no reason to give up: the item is tried again.
        const auto code = static_cast<Code>(reply.status[0]);
        group.refused = code != Code::kOk;
        if (group.refused && code != Code::kExpired) {
            group.items[0]->result = code;
        }
        return {};
    }
    for (size_t row = 0; row < group.items.size(); ++row) {
        const auto code = static_cast<Code>(reply.status[row]);
        if (code != Code::kOk) {
            group.items[row]->result = code;
        }
        group.generations.push_back(code == Code::kOk ? reply.generations[row] : 0);
        group.offsets.push_back(reply.offsets[row]);
    }
    return {};
}

Status SharedPut::take_committed(Group& group, const Channel::Reply& answer) {
    StatusReply reply;
    if (Status status = lease_->decode_reply(answer, &reply); !status.ok()) {
        return status;
    }
    if (reply.status.size() != group.copied.size()) {
        return {Code::kProtocolError, "the reply has another number of rows"};
    }
    group.decided = true;
    for (size_t row = 0; row < group.copied.size() && !group.refused; ++row) {
        PutItem& item = *group.copied[row];
        item.result = static_cast<Code>(reply.status[row]);
        if (item.result == Code::kOk) {
            tally_.add(ClientCounter::kBytesPutShm, item.data.size());
        } else if (item.result == Code::kExpired) {
            node_.abandon({&group.copied_generations[row], 1});
        }
    }
    return {};
}

// Our copies have stopped: the node may have the blocks back as soon as it can be told.
void SharedPut::give_up(std::span<PutItem* const> items, const Status& why) {
    for (const Group& group : groups_) {
        std::vector<Generation> reserved;
        std::copy_if(group.generations.begin(), group.generations.end(),
                     std::back_inserter(reserved),
                     [&](Generation gen) { return gen != 0 && !group.decided; });
        node_.abandon(reserved);
    }
    const bool is_final = deadline_.expired() || lease_->alive();
    for (PutItem* item : items) {
        if (item->result == kPutOpen && is_final) {
            item->result = why.code();
        }
    }
}

}  // namespace kvstore
