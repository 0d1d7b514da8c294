// Who has a turn, and what the others will hear.
#include "master/announce_turns.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace kvstore {
namespace {

void run(const std::vector<AnnounceTurns::Answer>& answers) {
    for (const AnnounceTurns::Answer& answer : answers) {
        answer();
    }
}

}  // namespace

void AnnounceTurns::answer(LinkId link, uint64_t now_ms, bool is_last, Answer answer) {
    std::vector<Answer> due;
    {
        const MutexLock lock(mutex_);
        if (const auto at = having_.find(link); at != having_.end()) {
            at->second = now_ms;
            due.push_back(std::move(answer));
            if (is_last) {
                having_.erase(at);
            }
        } else {
            Held& held = held_[link];
            if (held.answers.empty()) {
                waiting_.push_back(link);
            }
            held.answers.push_back(std::move(answer));
            held.is_last = is_last;
        }
        give(now_ms, due);
    }
    run(due);
}

void AnnounceTurns::lost(LinkId link, uint64_t now_ms) {
    std::vector<Answer> due;
    {
        const MutexLock lock(mutex_);
        having_.erase(link);
        held_.erase(link);
        give(now_ms, due);
    }
    run(due);
}

void AnnounceTurns::expire(uint64_t now_ms) {
    std::vector<Answer> due;
    {
        const MutexLock lock(mutex_);
        if (waiting_.empty()) {
            return;
        }
        std::erase_if(having_, [&](const auto& one) { return one.second + kIdleMs <= now_ms; });
        give(now_ms, due);
    }
    run(due);
}

void AnnounceTurns::give(uint64_t now_ms, std::vector<Answer>& out) {
    while (having_.size() < kAtOnce && !waiting_.empty()) {
        const LinkId next = waiting_.front();
        waiting_.pop_front();
        const auto held = held_.find(next);
        if (held == held_.end()) {
            continue;
        }
        if (!held->second.is_last) {
            having_[next] = now_ms;
        }
        std::ranges::move(held->second.answers, std::back_inserter(out));
        held_.erase(held);
    }
}

}  // namespace kvstore
