// The choice of the next replica, and of what follows the last one.
#include "client/read_job.h"

#include <bit>

namespace kvstore {
namespace {

// −1: none is left.
int nearest(const ReadJob& job, const ReplicaScores& scores, uint32_t tried) {
    int best = -1;
    int best_score = 0;
    for (int i = 0; i < job.placement.count; ++i) {
        const int score = scores[static_cast<size_t>(i)];
        if ((tried >> i & 1) == 0 && score > best_score) {
            best = i;
            best_score = score;
        }
    }
    return best;
}

}  // namespace

void break_tie(const ReadJob& job, const ReplicaLoads& loads, uint64_t random,
               ReplicaScores* scores) {
    const int first = nearest(job, *scores, job.tried);
    std::array<size_t, limits::kMaxReplicas> equals{};
    size_t count = 0;
    for (size_t i = 0; first >= 0 && i < job.placement.count; ++i) {
        if ((job.tried >> i & 1) == 0 && (*scores)[i] == (*scores)[static_cast<size_t>(first)]) {
            equals[count++] = i;
        }
    }
    if (count < 2) {
        return;
    }
    const size_t one = random % count;
    const size_t other = (one + 1 + (random >> 32) % (count - 1)) % count;
    ++(*scores)[loads[equals[other]] < loads[equals[one]] ? equals[other] : equals[one]];
}

int ReadJob::replicas_left() const { return placement.count - std::popcount(tried); }

NextStep next_step(const ReadJob& job, const ReplicaScores& scores, bool expired) {
    if (const int replica = expired ? -1 : nearest(job, scores, job.tried); replica >= 0) {
        return {.kind = NextStep::kTry, .replica = replica, .newer = job.newer};
    }
    const MissReason last = expired ? MissReason::kUnavailable : job.last;
    // "Removed" is also what a replica says whose version a newer one elsewhere has replaced.
    const bool replaced = last == MissReason::kVersion || last == MissReason::kRemoved;
    const bool asked = job.unasked == MissReason::kNone;
    if (job.remembered || (replaced && asked && !job.repeated)) {
        return {.kind = NextStep::kAskAgain};
    }
    if (last == MissReason::kVersion && job.repeated && !job.newer) {
        if (const int replica = nearest(job, scores, 0); replica >= 0) {
            return {.kind = NextStep::kTry, .replica = replica, .newer = true};
        }
    }
    const bool known = asked || last == MissReason::kNodeDown || last == MissReason::kRestarting;
    return {.kind = NextStep::kMiss, .reason = known ? last : job.unasked};
}

}  // namespace kvstore
