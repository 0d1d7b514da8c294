// Tokens of fences that have not been answered yet.
#include "master/announce_fences.h"

#include <utility>

namespace kvstore {

bool AnnounceFences::wait(std::span<const LinkId> links, size_t request_bytes, uint64_t now_ms,
                          Then then, const Ping& ping) {
    if (links.empty()) {
        then(true);
        return true;
    }
    uint64_t token = 0;
    {
        const MutexLock lock(mutex_);
        if (bytes_ + request_bytes > kMaxBytes) {
            return false;
        }
        bytes_ += request_bytes;
        const auto wait = std::make_shared<Wait>(
            Wait{.left = links.size(), .bytes = request_bytes, .then = std::move(then)});
        token = next_token_;
        for (const LinkId link : links) {
            fences_.emplace(next_token_++, Fence{link, now_ms + kWaitMs, wait});
        }
    }
    for (const LinkId link : links) {
        ping(link, token++);
    }
    return true;
}

void AnnounceFences::end(Fences::iterator at, bool known, Ended* ended) {
    std::shared_ptr<Wait> wait = std::move(at->second.wait);
    fences_.erase(at);
    wait->known &= known;
    if (--wait->left == 0) {
        bytes_ -= wait->bytes;
        ended->push_back(std::move(wait));
    }
}

void AnnounceFences::passed(LinkId link, uint64_t token) {
    Ended ended;
    {
        const MutexLock lock(mutex_);
        const auto at = fences_.find(token);
        if (at != fences_.end() && at->second.link == link) {
            end(at, true, &ended);
        }
    }
    call(ended);
}

void AnnounceFences::lost(LinkId link) {
    Ended ended;
    {
        const MutexLock lock(mutex_);
        for (auto next = fences_.begin(); next != fences_.end();) {
            const auto at = next++;
            if (at->second.link == link) {
                end(at, true, &ended);
            }
        }
    }
    call(ended);
}

void AnnounceFences::expire(uint64_t now_ms) {
    Ended ended;
    {
        const MutexLock lock(mutex_);
        while (!fences_.empty() && fences_.begin()->second.until_ms <= now_ms) {
            end(fences_.begin(), false, &ended);
        }
    }
    call(ended);
}

void AnnounceFences::call(const Ended& ended) {
    for (const std::shared_ptr<Wait>& wait : ended) {
        wait->then(wait->known);
    }
}

}  // namespace kvstore
