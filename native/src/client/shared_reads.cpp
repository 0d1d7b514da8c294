// Of a read from other nodes what this host's memory answers: that of a node that was found only by
// its placement, and that of one that restarts.
#include "client/remote_reads.h"
#include "index/object_reader.h"

namespace kvstore {

// A node of this host: what its index has is copied; the others are asked for by socket.
void RemoteReads::read_shared(Slice& slice) {
    const std::shared_ptr<LocalNode> node = slice.peer->local(deadline_);
    if (node == nullptr) {
        if (is_gone(slice.peer->info()->state)) {
            read_kept(slice);
        }
        return;
    }
    const Result<NamespaceId> ns = node->current_namespace(deadline_);
    if (!ns.ok()) {
        return;
    }
    const uint64_t now_ms = boottime_ms();
    std::vector<EntryRef> touched;
    for (ReadJob* job : slice.jobs) {
        GetItem& item = items_[job->item];
        HashedKey& key = keys_[job->item];
        context_.rehash(&key, *ns);
        IndexReader::Found found;
        const CopyResult result =
            read_object(node->index(), node->segment(), context_.identity(key), item.key, now_ms,
                        item.data, &found);
        if (result == CopyResult::kOk) {
            item.result = static_cast<int64_t>(found.length);
            item.reason = MissReason::kNone;
            job->done = true;
            tally_.add(ClientCounter::kHitsShm);
            tally_.add(ClientCounter::kBytesReadShm, found.length);
            touched.push_back(found.ref);
        } else if (result == CopyResult::kChecksum) {
            // The socket would bring the same bytes.
            if (item.reason != MissReason::kChecksum) {
                tally_.add(ClientCounter::kWrongChecksums);
            }
            refuse(*job, MissReason::kChecksum);
        } else if (job->remembered) {
            refuse(*job, MissReason::kAbsent);  // it was here; the master knows where it is now
        }
    }
    for (size_t i = touched.size(); i-- > 0;) {
        node->slot().touch(touched[i]);
    }
}

// A node that restarts: the version that the master has just named, from the memory that its
// process has left. Nobody would answer by socket.
void RemoteReads::read_kept(Slice& slice) {
    const std::shared_ptr<LocalNode> node = slice.peer->kept();
    const NamespaceId ns = context_.namespace_now();
    const uint64_t now_ms = boottime_ms();
    for (ReadJob* job : slice.jobs) {
        GetItem& item = items_[job->item];
        HashedKey& key = keys_[job->item];
        context_.rehash(&key, ns);
        const auto found =
            node == nullptr ? std::nullopt : node->index().probe(ns, key.hash, key.key, now_ms);
        const bool is_it =
            found && found->version == job->placement.version && found->length <= item.data.size();
        if (!is_it || copy_object(node->index(), node->segment(), *found, item.data,
                                  context_.identity(key)) != CopyResult::kOk) {
            refuse(*job, MissReason::kRestarting);
            continue;
        }
        item.result = static_cast<int64_t>(found->length);
        item.reason = MissReason::kNone;
        job->done = true;
        tally_.add(ClientCounter::kHitsShm);
        tally_.add(ClientCounter::kBytesReadShm, found->length);
    }
}

}  // namespace kvstore
