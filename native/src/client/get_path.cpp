// Reads from mapped memory: probe all keys, get memory for them, copy and verify, touch tail first.
#include "client/get_path.h"

#include <algorithm>

#include "base/fault_point.h"
#include "client/remote_reads.h"

namespace kvstore {

void GetPath::run(std::span<GetItem> items, Deadline deadline) {
    tally_.add(ClientCounter::kKeysRead, items.size());
    probe_.run(context_, items.size(), deadline, [&](size_t i) { return items[i].key; });
    const std::span<LocalProbe::Row> probes = probe_.rows();
    provide_memory(items);
    const uint64_t now_ms = boottime_ms();
    pending_.clear();
    for (size_t i = 0; i < items.size(); ++i) {
        if (probes[i].local == LocalProbe::kNowhere || !copy(items[i], probes[i], now_ms)) {
            pending_.push_back(i);
        }
    }
    touch();
    if (!pending_.empty()) {
        std::vector<HashedKey> keys(items.size());
        std::transform(probes.begin(), probes.end(), keys.begin(),
                       [](const LocalProbe::Row& probe) { return probe.key; });
        RemoteReads(context_, memory_, &tally_).run(items, keys, pending_, deadline);
    }
    for (const GetItem& item : items) {
        if (item.result < 0 && item.reason != MissReason::kNone) {
            tally_.miss(item.reason);
        }
    }
    context_.count(tally_, probe_.slot());
}

void GetPath::provide_memory(std::span<GetItem> items) {
    if (memory_ == nullptr) {
        return;
    }
    wants_.clear();
    for (size_t i = 0; i < items.size(); ++i) {
        if (probe_.rows()[i].local != LocalProbe::kNowhere) {
            wants_.push_back({i, probe_.rows()[i].found.length});
        }
    }
    if (!wants_.empty()) {
        memory_->provide(wants_, items);
    }
}

// True when the item is done. Otherwise another replica, or the socket, may still have it.
bool GetPath::copy(GetItem& item, LocalProbe::Row& probe, uint64_t now_ms) {
    const LocalNode& node = *probe_.locals()[static_cast<size_t>(probe.local)].node;
    if (probe.found.length > item.data.size()) {
        item.result = static_cast<int64_t>(Code::kBufferTooSmall);
        item.reason = MissReason::kBufferTooSmall;
        return true;
    }
    const Identity identity = context_.identity(probe.key);
    CopyResult result = copy_object(node.index(), node.segment(), probe.found, item.data, identity);
    if (result == CopyResult::kStale) {
        result = read_object(node.index(), node.segment(), identity, item.key, now_ms, item.data,
                             &probe.found);
    }
    fault_point("client_get_copied");
    switch (result) {
        case CopyResult::kOk:
            item.result = static_cast<int64_t>(probe.found.length);
            item.reason = MissReason::kNone;
            tally_.add(ClientCounter::kHitsShm);
            tally_.add(ClientCounter::kBytesReadShm, probe.found.length);
            return true;
        case CopyResult::kTooSmall:
            if (memory_ == nullptr) {
                item.result = static_cast<int64_t>(Code::kBufferTooSmall);
                item.reason = MissReason::kBufferTooSmall;
                return true;
            }
            break;  // replaced by a longer one: the remote path gets new memory for it
        case CopyResult::kChecksum:
            if (node.torn()) {
                break;  // no object of this node can be read here any more
            }
            tally_.add(ClientCounter::kWrongChecksums);
            item.reason = MissReason::kChecksum;
            break;
        default:
            break;
    }
    probe.local = LocalProbe::kNowhere;
    return false;
}

// A chain's tail first and its head last, so that it loses its tail first.
void GetPath::touch() {
    for (size_t i = probe_.rows().size(); i-- > 0;) {
        const LocalProbe::Row& row = probe_.rows()[i];
        if (row.local != LocalProbe::kNowhere) {
            probe_.locals()[static_cast<size_t>(row.local)].node->slot().touch(row.found.ref);
        }
    }
}

}  // namespace kvstore
