// Lookup, then rounds: every open object picks its nearest untried replica, every node gets one
// request (or several, on as many connections), all are sent before the first reply is awaited.
#include "client/remote_reads.h"

#include <algorithm>
#include <numeric>

#include "base/checksum.h"
#include "base/interrupt.h"
#include "base/mutation.h"

namespace kvstore {
namespace {

constexpr uint64_t kSliceBytes = 64u << 20;  // payload of one Get, but for a single larger object
constexpr uint64_t kStripeBytes = 1u << 20;  // at least, of each connection
constexpr uint32_t kEndedEpochs = 4;  // flushes that may happen while one answer is on its way
constexpr int kMinAttemptMs = 100;
constexpr uint64_t kLookAgainMs = 1000;          // after which a hot object may have new replicas
constexpr int kMaxAttemptMs = 500;               // while there is another replica, and
constexpr uint64_t kSlowestBytesPerMs = 10'000;  // … the time that the bytes may take

}  // namespace

uint64_t RemoteReads::Slice::bytes() const {
    return std::accumulate(
        jobs.begin(), jobs.end(), uint64_t{0},
        [](uint64_t sum, const ReadJob* job) { return sum + job->placement.size; });
}

void RemoteReads::run(std::span<GetItem> items, std::span<HashedKey> keys,
                      std::span<const size_t> pending, Deadline deadline) {
    items_ = items;
    keys_ = keys;
    deadline_ = deadline;
    for (const size_t item : pending) {
        again_.push_back({item, 0});
    }
    for (bool first_pass = true; !again_.empty(); first_pass = false) {
        std::vector<Again> now = std::move(again_);
        again_.clear();
        jobs_.clear();
        jobs_.reserve(now.size());
        if (first_pass) {
            take_known(&now);
        }
        for (size_t first = 0; first < now.size(); first += limits::kMaxBatchKeys) {
            const size_t count = std::min(limits::kMaxBatchKeys, now.size() - first);
            lookup(std::span(now).subspan(first, count));
        }
        provide_memory();
        read_all_replicas();
    }
}

// What was found lately is asked for where it was found, without a lookup: one round trip less. The
// request names the version, so a placement that is no longer true is only a trip that was wasted.
void RemoteReads::take_known(std::vector<Again>* pending) {
    std::erase_if(*pending, [&](const Again& again) {
        const size_t item = again.item;
        const auto known = context_.placements().find(keys_[item].hash);
        if (!known) {
            return false;
        }
        ReadJob job;
        job.item = item;
        job.placement = *known;
        job.remembered = true;
        jobs_.push_back(job);
        return true;
    });
    if (!jobs_.empty()) {
        // A node that the master has given up must not be read from for long.
        context_.nodes().keep_fresh(kTableAgeMs, deadline_);
    }
}

void RemoteReads::lookup(std::span<const Again> pending) {
    std::vector<std::string_view> names;
    names.reserve(pending.size());
    for (const Again& again : pending) {
        names.push_back(items_[again.item].key);
    }
    Lookup request;
    request.keys = names;
    request.flags = kLookupRestarting;
    request.timeout_ms = MasterClient::remote_timeout_ms(deadline_);
    LookupReply reply;
    ChannelPool::Lease lease;
    Status status = context_.master().exchange(request, &reply, &lease, deadline_);
    tally_.add(ClientCounter::kLookups);
    if (status.ok() && reply.status.size() != pending.size()) {
        status = Status(Code::kProtocolError, "the lookup's reply has another number of rows");
    }
    if (!status.ok()) {
        tally_.add(ClientCounter::kMasterFailures);
        return use_known_placements(pending, status.code());
    }
    take_lookup(reply, pending);
}

void RemoteReads::take_lookup(const LookupReply& reply, std::span<const Again> pending) {
    // A table that cannot be refreshed now leaves unknown nodes, which count as down.
    (void)context_.nodes().ensure(reply.nodes_id, deadline_);
    ReplyPlacements placements(reply);
    for (size_t row = 0; row < pending.size(); ++row) {
        const size_t item = pending[row].item;
        ReadJob job;
        job.item = item;
        job.repeated = pending[row].refused != 0 && pending[row].refused == reply.versions[row];
        job.placement = placements.next();
        if (reply.status[row] != 0 || job.placement.count == 0) {
            const auto code = static_cast<Code>(reply.status[row]);
            auto reason = static_cast<MissReason>(reply.reasons[row]);
            if (code == Code::kRebuilding) {
                reason = MissReason::kRebuilding;
            } else if (reason == MissReason::kNone) {
                reason = code == Code::kOk ? MissReason::kNodeDown : MissReason::kAbsent;
            }
            context_.placements().forget(keys_[item].hash);
            miss(job, reason);
            continue;
        }
        context_.placements().note(keys_[item].hash, job.placement);
        jobs_.push_back(job);
    }
}

void RemoteReads::use_known_placements(std::span<const Again> pending, Code why) {
    for (const Again& again : pending) {
        ReadJob job;
        job.item = again.item;
        job.unasked = why == Code::kRebuilding ? MissReason::kRebuilding : MissReason::kUnavailable;
        const auto known = context_.placements().find(keys_[again.item].hash);
        if (known && known->version != again.refused) {
            job.placement = *known;
            jobs_.push_back(job);
        } else {
            miss(job, job.unasked);
        }
    }
}

void RemoteReads::miss(ReadJob& job, MissReason reason) {
    GetItem& item = items_[job.item];
    // Bytes that were refused say more than that nobody else has the object.
    if (item.reason != MissReason::kChecksum) {
        item.reason = reason;
    }
    item.result = static_cast<int64_t>(code_of_miss(item.reason));
    job.done = true;
}

void RemoteReads::provide_memory() {
    std::vector<GetMemory::Want> wants;
    for (const ReadJob& job : jobs_) {
        const GetItem& item = items_[job.item];
        if (memory_ != nullptr && (item.data.size() < job.placement.size || item.data.is_null())) {
            wants.push_back({job.item, job.placement.size});
        }
    }
    if (!wants.empty()) {
        memory_->provide(wants, items_);
    }
    for (ReadJob& job : jobs_) {
        GetItem& item = items_[job.item];
        if (item.data.size() >= job.placement.size) {
            continue;
        }
        if (job.remembered) {  // it may be smaller now
            ask_again(job);
        } else {
            item.result = static_cast<int64_t>(Code::kBufferTooSmall);
            item.reason = MissReason::kBufferTooSmall;
            job.done = true;
        }
    }
}

// The master knows more than what was remembered, or than it said before a newer version came; its
// answer replaces that. Each further time takes a version that was published in between.
void RemoteReads::ask_again(ReadJob& job) {
    job.done = true;
    again_.push_back({job.item, job.placement.version});
}

void RemoteReads::read_all_replicas() {
    while (true) {
        std::vector<Slice> slices;
        for (ReadJob& job : jobs_) {
            std::shared_ptr<PeerNode> peer = job.done ? nullptr : choose_replica(job);
            if (peer == nullptr) {
                continue;
            }
            peer->reading_bytes() += job.placement.size;
            auto slice = std::find_if(slices.begin(), slices.end(),
                                      [&](const Slice& s) { return s.peer == peer; });
            if (slice == slices.end()) {
                slices.emplace_back();
                slice = std::prev(slices.end());
                slice->peer = std::move(peer);
            }
            slice->jobs.push_back(&job);
            slice->asked_bytes += job.placement.size;
        }
        if (slices.empty()) {
            return;
        }
        for (Slice& slice : slices) {
            if (direct_ == nullptr) {
                read_shared(slice);
            }
            limit(slice);
        }
        stripe(&slices);
        for (Slice& slice : slices) {
            send(slice);
        }
        receive_all(slices);
        for (const Slice& slice : slices) {
            slice.peer->reading_bytes() -= slice.asked_bytes;
        }
    }
}

// Takes the object's next step: the node to ask, or null when it is done for this pass.
std::shared_ptr<PeerNode> RemoteReads::choose_replica(ReadJob& job) {
    std::array<std::shared_ptr<PeerNode>, limits::kMaxReplicas> peers;
    ReplicaScores scores{};
    ReplicaLoads loads{};
    const bool has_choice = job.placement.count > 1;
    uint32_t down = 0;
    for (size_t i = 0; i < job.placement.count; ++i) {
        peers[i] = context_.nodes().at(job.placement.nodes[i]);
        ReadWay way = peers[i] == nullptr ? ReadWay::kNone : peers[i]->read_way();
        // What a process has left behind is read only as far as the master has confirmed it now: it
        // hears of no remove, and of no newer version.
        const bool is_confirmed = !job.remembered && job.unasked == MissReason::kNone;
        if (way == ReadWay::kKept && (!is_confirmed || direct_ != nullptr)) {
            way = ReadWay::kNone;
        }
        if (way != ReadWay::kNone) {
            const Nearness near = has_choice ? context_.nearness(*peers[i]) : Nearness();
            scores[i] = read_score(way, near);
            loads[i] = peers[i]->reading_bytes();
        }
        if (scores[i] == 0) {
            down |= 1u << i;
            const bool restarts =
                peers[i] != nullptr && peers[i]->info()->state == NodeState::kRestarting;
            if (restarts && job.last == MissReason::kNodeDown) {
                job.last = MissReason::kRestarting;
            }
        }
    }
    job.tried |= down;
    if (has_choice) {
        break_tie(job, loads, cheap_random(), &scores);
    }
    const NextStep step = next_step(job, scores, deadline_.expired() || is_interrupted());
    job.trying = step.replica;
    switch (step.kind) {
        case NextStep::kTry:
            if (step.newer && !job.newer) {
                job.newer = true;
                job.tried = down;
            }
            return std::move(peers[static_cast<size_t>(step.replica)]);
        case NextStep::kAskAgain:
            ask_again(job);
            break;
        case NextStep::kMiss:
            miss(job, step.reason);
            break;
    }
    return nullptr;
}

// Leaves in the slice what one request may carry; the others come again in the next round.
void RemoteReads::limit(Slice& slice) const {
    std::vector<ReadJob*> kept;
    uint64_t bytes = 0;
    for (ReadJob* job : slice.jobs) {
        const bool open = !job->done && job->trying >= 0;
        if (open && kept.size() < limits::kMaxBatchKeys &&
            (kept.empty() || bytes + job->placement.size <= kSliceBytes)) {
            bytes += job->placement.size;
            kept.push_back(job);
        }
    }
    slice.jobs = std::move(kept);
}

// Spreads what one node is asked for over several connections, where that is configured and each
// gets enough to be worth its request.
void RemoteReads::stripe(std::vector<Slice>* slices) const {
    const uint64_t most = context_.options().stripes;
    if (most < 2) {
        return;
    }
    std::vector<Slice> more;
    for (Slice& slice : *slices) {
        const uint64_t bytes = slice.bytes();
        const uint64_t count = std::min({most, bytes / kStripeBytes, slice.jobs.size()});
        if (count < 2) {
            continue;
        }
        const std::vector<ReadJob*> jobs = std::move(slice.jobs);
        slice.jobs.clear();
        Slice* to = &slice;
        uint64_t given = 0;
        uint64_t stripe_end = bytes / count;
        for (ReadJob* job : jobs) {
            if (given >= stripe_end && !to->jobs.empty()) {
                to = &more.emplace_back();
                to->peer = slice.peer;
                stripe_end += bytes / count;
            }
            to->jobs.push_back(job);
            given += job->placement.size;
        }
    }
    std::move(more.begin(), more.end(), std::back_inserter(*slices));
}

void RemoteReads::send(Slice& slice) {
    if (slice.jobs.empty()) {
        return;
    }
    if (context_.options().transport == Transport::kShm) {
        return refuse_all(slice, MissReason::kUnavailable);
    }
    if (!slice.peer->breaker().allow()) {  // it failed a moment ago: not asked, so no new failure
        return refuse_all(slice, MissReason::kNodeDown);
    }
    const Deadline deadline = attempt_deadline(slice);
    Result<ChannelPool::Lease> lease = slice.peer->sockets().checkout(deadline);
    if (!lease.ok()) {
        return give_up(slice, lease.status());
    }
    std::vector<GetRequest::Row> rows;
    for (const ReadJob* job : slice.jobs) {
        GetItem& item = items_[job->item];
        const Version version = job->newer ? 0 : job->placement.version;
        rows.push_back({item.key, version, item.data});
    }
    std::unique_ptr<UcxTransfer> by_ucx = transfer(slice, **lease);
    if (by_ucx == nullptr && direct_ != nullptr) {
        return refuse_all(slice, MissReason::kUnavailable);
    }
    const Status status = slice.request.send(std::move(*lease), std::move(rows), deadline,
                                             deadline_, std::move(by_ucx));
    slice.under_way = status.ok();
    if (!status.ok()) {
        give_up(slice, status);
    }
}

// Null: the bytes come by socket.
std::unique_ptr<UcxTransfer> RemoteReads::transfer(Slice& slice, Channel& channel) {
    const auto failed = [](const ReadJob* job) { return job->by_socket; };
    if (std::ranges::any_of(slice.jobs, failed)) {
        return nullptr;
    }
    if (!lane_) {
        lane_ = context_.ucx_lane(*slice.peer, slice.bytes());
    } else if (!slice.peer->ucx_breaker().allow()) {
        return nullptr;
    }
    if (!lane_ || lane_->spoiled()) {
        return nullptr;
    }
    const std::shared_ptr<const UcxRegion> region =
        slice.peer->ucx_region(channel, attempt_deadline(slice));
    if (region == nullptr) {
        return nullptr;
    }
    return std::make_unique<UcxTransfer>(context_.ucx(), *lane_, slice.peer->info()->id, region,
                                         direct_);
}

// Whichever has something: a node that is slow or hangs delays nobody's bytes but its own.
void RemoteReads::receive_all(std::span<Slice> slices) {
    std::vector<Slice*> open;
    std::vector<GetRequest*> requests;
    while (true) {
        open.clear();
        requests.clear();
        for (Slice& slice : slices) {
            if (slice.under_way) {
                open.push_back(&slice);
                requests.push_back(&slice.request);
            }
        }
        if (open.empty()) {
            if (lane_) {
                lane_->reset_bounce();
            }
            return;
        }
        GetRequest::wait_for_any(requests);
        for (Slice* slice : open) {
            const Result<bool> whole = slice->request.advance();
            slice->under_way = whole.ok() && !*whole;
            if (!whole.ok()) {
                give_up(*slice, whole.status());
            } else if (*whole) {
                take_answers(*slice);
                slice->peer->breaker().success();
            }
        }
    }
}

void RemoteReads::take_answers(Slice& slice) {
    note_transfer(slice);
    for (size_t row = 0; row < slice.jobs.size(); ++row) {
        ReadJob& job = *slice.jobs[row];
        const GetRequest::Answer& answer = slice.request.answers()[row];
        if (answer.by_socket && direct_ != nullptr) {
            refuse(job, MissReason::kUnavailable);
            continue;
        }
        if (answer.by_socket || answer.again) {
            job.by_socket = answer.by_socket;  // the same node, in the next round
            continue;
        }
        if (answer.code != Code::kOk) {
            const bool too_small = answer.code == Code::kBufferTooSmall;
            refuse(job, too_small                            ? MissReason::kVersion
                        : answer.reason == MissReason::kNone ? MissReason::kAbsent
                                                             : answer.reason);
            continue;
        }
        if (answer.version < job.placement.version) {
            refuse(job, MissReason::kVersion);
            continue;
        }
        const Verdict verdict = verify(keys_[job.item], slice, answer);
        if (verdict != Verdict::kRight) {
            tally_.add(ClientCounter::kWrongChecksums, verdict == Verdict::kWrong ? 1 : 0);
            refuse(job, verdict == Verdict::kWrong     ? MissReason::kChecksum
                        : verdict == Verdict::kFlushed ? MissReason::kVersion
                                                       : MissReason::kNodeDown);
            continue;
        }
        GetItem& item = items_[job.item];
        item.result = static_cast<int64_t>(answer.size);
        item.reason = MissReason::kNone;
        job.done = true;
        if (answer.is_hot && job.remembered &&
            boottime_ms() >= job.placement.noted_ms + kLookAgainMs) {
            context_.placements().forget(keys_[job.item].hash);
        }
        const bool by_ucx = slice.request.transfer() != nullptr;
        tally_.add(by_ucx ? ClientCounter::kHitsUcx : ClientCounter::kHitsSocket);
        tally_.add(by_ucx ? ClientCounter::kBytesReadUcx : ClientCounter::kBytesReadSocket,
                   answer.size);
    }
}

// What the transfer says of the way to this node.
void RemoteReads::note_transfer(Slice& slice) {
    const UcxTransfer* const transfer = slice.request.transfer();
    if (transfer == nullptr) {
        return;
    }
    const auto by_socket = [](const GetRequest::Answer& answer) { return answer.by_socket; };
    if (transfer->failed()) {
        slice.peer->ucx_breaker().failure();
    } else {
        slice.peer->ucx_breaker().success();
    }
    if (std::ranges::any_of(slice.request.answers(), by_socket)) {
        slice.peer->forget_ucx_region();  // it may have grown, or be of an earlier life
    }
}

// What the checksum says of an answer. It covers the namespace's id, which a flush changes: bytes
// are wrong only where they are nobody's in any epoch that the node may have read them in.
RemoteReads::Verdict RemoteReads::verify(HashedKey& key, Slice& slice,
                                         const GetRequest::Answer& answer) {
    const auto is_sealed = [&] {
        const Identity identity = context_.identity(key, answer.version, answer.size);
        return seal_checksum(answer.data_crc, identity) == answer.sealed_crc;
    };
    context_.rehash(&key, context_.namespace_now());
    if (!KV_GUARD("checksum", !is_sealed())) {
        return Verdict::kRight;
    }
    // After a flush the same key belongs to another namespace id: ask which one it is now.
    Channel& channel = *slice.request.lease();
    ResolveReply now;
    if (!channel.alive() || !channel.exchange(Resolve{}, &now, slice.request.deadline()).ok() ||
        now.code != 0) {
        return Verdict::kUnknown;
    }
    context_.rehash(&key, now.namespace_id);
    context_.set_namespace(now.namespace_id);
    if (is_sealed()) {
        return Verdict::kRight;
    }
    // It may have read them before a flush and answered the question after it.
    bool was_sealed = false;
    for (uint32_t age = 1; !was_sealed && age <= std::min(now.ns_epoch, kEndedEpochs); ++age) {
        context_.rehash(&key, context_.namespace_at(now.ns_epoch - age));
        was_sealed = is_sealed();
    }
    context_.rehash(&key, now.namespace_id);
    return was_sealed ? Verdict::kFlushed : Verdict::kWrong;
}

// The node did not answer: another replica for all of them. An idle channel that turned out to be
// dead says nothing about the node: then the same node is asked once more.
void RemoteReads::give_up(Slice& slice, const Status& why) {
    const ChannelPool::Lease& lease = slice.request.lease();
    if (slice.request.transfer() != nullptr && lease && lease->alive()) {
        slice.peer->forget_ucx_region();  // refused: the tenant may not, or the process is away
        slice.peer->ucx_breaker().failure();
        for (ReadJob* job : slice.jobs) {
            job->by_socket = true;
        }
        return;
    }
    const bool stale =
        lease && !lease.fresh() && !lease->alive() && why.code() != Code::kDeadlineExceeded;
    if (stale) {
        slice.peer->sockets().drop_idle();
        return;
    }
    const bool connection = !lease || !lease->alive();
    if (connection) {
        slice.peer->breaker().failure();
    } else {
        slice.peer->breaker().success();  // it answers, if only with an error
    }
    refuse_all(slice, connection ? MissReason::kNodeDown : MissReason::kUnavailable);
}

void RemoteReads::refuse_all(Slice& slice, MissReason reason) {
    for (ReadJob* job : slice.jobs) {
        refuse(*job, reason);
    }
}

void RemoteReads::refuse(ReadJob& job, MissReason reason) {
    GetItem& item = items_[job.item];
    if (reason == MissReason::kChecksum) {
        item.reason = reason;
    }
    job.tried |= 1u << job.trying;
    job.trying = -1;
    job.last = reason;
    if (job.replicas_left() > 0) {
        tally_.add(ClientCounter::kRetries);
    }
}

// A slow replica must leave time for the others.
Deadline RemoteReads::attempt_deadline(const Slice& slice) const {
    int others = 0;
    for (const ReadJob* job : slice.jobs) {
        others = std::max(others, job->replicas_left() - 1);
    }
    const int left = deadline_.left_ms();
    if (others == 0) {
        return Deadline::after_ms(static_cast<uint64_t>(left));
    }
    const uint64_t slow_ms = kMaxAttemptMs + slice.bytes() / kSlowestBytesPerMs;
    const int share = std::max(left / (others + 1), std::min(left, kMinAttemptMs));
    return Deadline::after_ms(std::min(slow_ms, static_cast<uint64_t>(share)));
}

}  // namespace kvstore
