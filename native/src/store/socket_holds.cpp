// Holds by socket, ordered by session.
#include "store/socket_holds.h"

#include "base/status.h"

namespace kvstore {

SocketHolds::Added SocketHolds::add(const Owner& owner, const Target& target) {
    const std::pair name{owner.session, target.generation};
    if (const auto it = holds_.find(name); it != holds_.end()) {
        ++it->second.count;
        return Added::kAgain;
    }
    if (holds_.size() >= max_) {
        return Added::kFull;
    }
    const Ledger::Line line = record(owner, target);
    if (line == Ledger::kNoLine) {
        return Added::kFull;
    }
    holds_.emplace(name, Hold{owner, target.ref, 1, line});
    return Added::kNew;
}

void SocketHolds::keep(const Owner& owner, const Target& target) {
    holds_.emplace(std::pair{owner.session, target.generation},
                   Hold{owner, target.ref, 1, record(owner, target)});
}

Ledger::Line SocketHolds::record(const Owner& owner, const Target& target) {
    return ledger_.add_block(BlockUse::kHeld, target.generation, target.offset, target.length,
                             owner.slot);
}

bool SocketHolds::contains(uint64_t session, Generation generation) const {
    return holds_.contains({session, generation});
}

std::optional<SocketHolds::Ended> SocketHolds::release(uint64_t session, Generation generation) {
    const auto it = holds_.find({session, generation});
    KV_ASSERT(it != holds_.end());
    if (--it->second.count > 0) {
        return std::nullopt;
    }
    std::vector<Ended> ended;
    end(it, &ended);
    return ended.front();
}

std::vector<SocketHolds::Ended> SocketHolds::end_session(uint64_t session) {
    std::vector<Ended> ended;
    auto it = holds_.lower_bound({session, 0});
    while (it != holds_.end() && it->first.first == session) {
        it = it->second.owner.slot < 0 ? end(it, &ended) : std::next(it);
    }
    return ended;
}

std::vector<SocketHolds::Ended> SocketHolds::end_slot(int slot) {
    std::vector<Ended> ended;
    for (auto it = holds_.begin(); it != holds_.end();) {
        it = it->second.owner.slot == slot ? end(it, &ended) : std::next(it);
    }
    return ended;
}

SocketHolds::Holds::iterator SocketHolds::end(Holds::iterator hold, std::vector<Ended>* ended) {
    ended->push_back({hold->first.second, hold->second.ref});
    ledger_.drop_block(hold->second.line);
    return holds_.erase(hold);
}

std::vector<int> SocketHolds::slots() const {
    std::vector<int> found;
    for (const auto& [name, hold] : holds_) {
        if (hold.owner.slot >= 0) {
            found.push_back(hold.owner.slot);
        }
    }
    return found;
}

size_t SocketHolds::recorded() const {
    size_t count = 0;
    for (const auto& [name, hold] : holds_) {
        count += hold.line != Ledger::kNoLine ? 1 : 0;
    }
    return count;
}

}  // namespace kvstore
