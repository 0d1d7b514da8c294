// Local probes, then one lookup for the keys that this host does not have.
#include "client/locate_path.h"

#include <algorithm>

#include "client/pipeline.h"

namespace kvstore {
namespace {

// Whether this client could read it: not where its own calls to every holder have just failed,
// whatever the master says.
bool is_within_reach(const Placement& placement, std::span<const uint32_t> broken) {
    const std::span<const uint32_t> holders(placement.nodes.data(), placement.count);
    return broken.empty() || !std::ranges::all_of(holders, [&](uint32_t node) {
               return std::ranges::find(broken, node) != broken.end();
           });
}

MissReason reason_of(const LookupReply& reply, size_t row) {
    if (reply.status[row] == static_cast<int32_t>(Code::kRebuilding)) {
        return MissReason::kRebuilding;
    }
    if (reply.status[row] == 0) {
        return MissReason::kNodeDown;  // known, and nobody has it now
    }
    const uint8_t reason = reply.reasons[row];
    return reason == 0 || reason >= kMissReasonCount ? MissReason::kAbsent
                                                     : static_cast<MissReason>(reason);
}

}  // namespace

void LocatePath::run(std::span<const std::string_view> keys, const How& how, Deadline deadline) {
    const Deadline wait_until = Deadline::after_ms(how.wait_ms);
    probe(keys, deadline);
    std::vector<size_t> rows;
    for (size_t row = 0; row <= keys.size() && !how.local; ++row) {
        const bool end = row == keys.size();
        if (!end && !found_[row].present()) {
            rows.push_back(row);
        }
        if (!rows.empty() && (end || rows.size() == limits::kMaxBatchKeys)) {
            const bool complete = ask(rows, deadline, wait_until);
            rows.clear();
            if (!complete && how.stop_at_gap) {
                break;
            }
        }
    }
    const auto present = [](const Located& located) { return located.present(); };
    const auto count = how.stop_at_gap ? std::ranges::find_if_not(found_, present) - found_.begin()
                                       : std::ranges::count_if(found_, present);
    tally_.add(ClientCounter::kKeysSought, keys.size());
    tally_.add(ClientCounter::kKeysPresent, static_cast<uint64_t>(count));
    context_.count(tally_, locals_.empty() ? nullptr : &locals_.front().node->slot());
}

void LocatePath::probe(std::span<const std::string_view> keys, Deadline deadline) {
    context_.nodes().locals(deadline, &locals_);
    found_.resize(keys.size());
    const uint64_t now_ms = boottime_ms();
    NamespaceId ns = context_.namespace_now();
    for (size_t row = 0; row < keys.size(); ++row) {
        found_[row].key.key = keys[row];
    }
    std::vector<uint8_t> may_be(keys.size());  // the index's tags do not rule it out
    for (size_t n = 0; n < locals_.size(); ++n) {
        const Result<NamespaceId> here = locals_[n].node->current_namespace(deadline);
        if (!here.ok()) {
            continue;
        }
        ns = *here;
        const IndexReader& index = locals_[n].node->index();
        in_pipeline<IndexReader::kPrefetchStages + 1>(keys.size(), [&](size_t stage, size_t row) {
            Located& located = found_[row];
            if (stage == 0) {
                context_.rehash(&located.key, ns);
                index.prefetch(0, located.key.hash);
                return;
            }
            if (stage == 1) {
                may_be[row] = !located.present() && index.prefetch(1, located.key.hash) ? 1 : 0;
                return;
            }
            if (may_be[row] == 0) {
                return;
            }
            if (stage < IndexReader::kPrefetchStages) {
                index.prefetch(stage, located.key.hash);
                return;
            }
            if (const auto hit = index.probe(ns, located.key.hash, located.key.key, now_ms)) {
                located.size = static_cast<int64_t>(hit->length);
                located.local = static_cast<int>(n);
            }
        });
    }
    for (Located& located : found_) {
        context_.rehash(&located.key, ns);
    }
}

// False when a key of them is absent.
bool LocatePath::ask(std::span<const size_t> rows, Deadline deadline, Deadline wait_until) {
    std::vector<std::string_view> names;
    names.reserve(rows.size());
    for (const size_t row : rows) {
        names.push_back(found_[row].key.key);
    }
    Lookup request;
    request.keys = names;
    request.flags = kLookupRestarting;
    request.timeout_ms = MasterClient::remote_timeout_ms(deadline);
    request.wait_ms = std::min(static_cast<uint32_t>(wait_until.left_ms()), request.timeout_ms);
    LookupReply reply;
    ChannelPool::Lease lease;
    const Status status = exchange(request, &reply, &lease, deadline);
    tally_.add(ClientCounter::kLookups);
    const bool answered = status.ok() && reply.status.size() == rows.size();
    if (!answered) {
        tally_.add(ClientCounter::kMasterFailures);
    } else {
        (void)context_.nodes().ensure(reply.nodes_id, deadline);  // unknown nodes count as down
    }
    ReplyPlacements placements(reply);
    bool complete = true;
    const std::vector<uint32_t> broken = context_.nodes().broken();
    for (size_t i = 0; i < rows.size(); ++i) {
        Located& located = found_[rows[i]];
        if (answered) {
            located.placement = placements.next();
            take_row(reply, i, &located);
        } else if (const auto known = context_.placements().find(located.key.hash)) {
            located.placement = *known;
            located.size = static_cast<int64_t>(known->size);
        } else {
            located.size = static_cast<int64_t>(Code::kUnavailable);
            located.reason = MissReason::kUnavailable;
        }
        if (located.present() && !is_within_reach(located.placement, broken)) {
            located.size = static_cast<int64_t>(Code::kNotFound);
            located.reason = why_not(located.placement);
        }
        complete &= located.present();
    }
    return complete;
}

// Of an object whose every holder is out of this client's reach.
MissReason LocatePath::why_not(const Placement& placement) const {
    const std::span<const uint32_t> holders(placement.nodes.data(), placement.count);
    return std::ranges::any_of(
               holders,
               [&](uint32_t number) {
                   const std::shared_ptr<PeerNode> node = context_.nodes().at(number);
                   return node != nullptr && node->info()->state == NodeState::kRestarting;
               })
               ? MissReason::kRestarting
               : MissReason::kNodeDown;
}

void LocatePath::take_row(const LookupReply& reply, size_t i, Located* located) {
    const Placement& placement = located->placement;
    if (reply.status[i] == 0 && placement.count > 0) {
        located->size = static_cast<int64_t>(placement.size);
        context_.placements().note(located->key.hash, placement);
    } else {
        located->size = reply.status[i] < 0 ? reply.status[i] : located->size;
        located->reason = reason_of(reply, i);
    }
}

Status LocatePath::exchange(Lookup request, LookupReply* reply, ChannelPool::Lease* lease,
                            Deadline deadline) {
    Status status = context_.master().exchange(request, reply, lease, deadline);
    if (request.wait_ms != 0 && status.code() == Code::kOverloaded) {
        request.wait_ms = 0;  // too many wait there already: then what is present now
        status = context_.master().exchange(request, reply, lease, deadline);
    }
    return status;
}

void LocatePath::nearest_first() {
    for (Located& located : found_) {
        context_.nearest_first(&located.placement);
    }
}

MissReason LocatePath::gap_reason() const {
    const auto gap = std::find_if(found_.begin(), found_.end(),
                                  [](const Located& located) { return !located.present(); });
    // Without a reason nobody was asked: it is not on this host.
    return gap == found_.end()                ? MissReason::kNone
           : gap->reason == MissReason::kNone ? MissReason::kAbsent
                                              : gap->reason;
}

size_t LocatePath::prefix_length(size_t stride) const {
    const auto gap = std::find_if(found_.begin(), found_.end(),
                                  [](const Located& located) { return !located.present(); });
    const auto length = static_cast<size_t>(gap - found_.begin());
    return length - length % stride;
}

}  // namespace kvstore
