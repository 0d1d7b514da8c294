// Reads from mapped memory: probe all keys, get memory for them, copy and verify, touch tail first.
#include "client/get_path.h"

#include <algorithm>

#include "base/fault_point.h"
#include "client/pipeline.h"
#include "client/remote_reads.h"

namespace kvstore {
namespace {

constexpr size_t kMaxLocals = 8;  // nodes of one host that are probed

}  // namespace

void GetPath::run(std::span<GetItem> items, Deadline deadline) {
    tally_.add(ClientCounter::kKeysRead, items.size());
    probe_all(items, deadline);
    provide_memory(items);
    const uint64_t now_ms = boottime_ms();
    pending_.clear();
    for (size_t i = 0; i < items.size(); ++i) {
        if (probes_[i].local == kNowhere || !copy(items[i], probes_[i], now_ms)) {
            pending_.push_back(i);
        }
    }
    touch();
    if (!pending_.empty()) {
        std::vector<HashedKey> keys(items.size());
        std::transform(probes_.begin(), probes_.end(), keys.begin(),
                       [](const Probe& probe) { return probe.key; });
        RemoteReads(context_, memory_, &tally_).run(items, keys, pending_, deadline);
    }
    for (const GetItem& item : items) {
        if (item.result < 0 && item.reason != MissReason::kNone) {
            tally_.miss(item.reason);
        }
    }
    context_.count(tally_, locals_.empty() ? nullptr : &locals_.front().node->slot());
}

void GetPath::probe_all(std::span<GetItem> items, Deadline deadline) {
    context_.nodes().locals(deadline, &locals_);
    namespaces_.clear();
    std::erase_if(locals_, [&](const LocalPeer& local) {
        const Result<NamespaceId> ns = local.node->current_namespace(deadline);
        if (!ns.ok() || namespaces_.size() >= kMaxLocals) {
            return true;
        }
        namespaces_.push_back(*ns);
        return false;
    });
    probes_.resize(items.size());
    const NamespaceId ns = namespaces_.empty() ? context_.namespace_now() : namespaces_.front();
    const uint64_t now_ms = boottime_ms();
    in_pipeline<IndexReader::kPrefetchStages + 1>(items.size(), [&](size_t stage, size_t i) {
        Probe& probe = probes_[i];
        if (stage == 0) {
            probe.key.key = items[i].key;
            context_.rehash(&probe.key, ns);
        }
        for (size_t n = 0; n < locals_.size() && probe.local == kNowhere; ++n) {
            const IndexReader& index = locals_[n].node->index();
            if (stage < IndexReader::kPrefetchStages) {
                index.prefetch(stage, probe.key.hash);
                continue;
            }
            context_.rehash(&probe.key, namespaces_[n]);
            if (const auto found =
                    index.probe(namespaces_[n], probe.key.hash, probe.key.key, now_ms)) {
                probe.found = *found;
                probe.local = static_cast<int8_t>(n);
            }
        }
    });
}

void GetPath::provide_memory(std::span<GetItem> items) {
    if (memory_ == nullptr) {
        return;
    }
    wants_.clear();
    for (size_t i = 0; i < items.size(); ++i) {
        if (probes_[i].local != kNowhere) {
            wants_.push_back({i, probes_[i].found.length});
        }
    }
    if (!wants_.empty()) {
        memory_->provide(wants_, items);
    }
}

// True when the item is done. Otherwise another replica, or the socket, may still have it.
bool GetPath::copy(GetItem& item, Probe& probe, uint64_t now_ms) {
    const LocalNode& node = *locals_[static_cast<size_t>(probe.local)].node;
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
    probe.local = kNowhere;
    return false;
}

// A chain's tail first and its head last, so that it loses its tail first.
void GetPath::touch() {
    for (size_t i = probes_.size(); i-- > 0;) {
        if (probes_[i].local != kNowhere) {
            locals_[static_cast<size_t>(probes_[i].local)].node->slot().touch(probes_[i].found.ref);
        }
    }
}

}  // namespace kvstore
