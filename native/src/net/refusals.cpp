// Counting refusals by code, host and reason.
#include "net/refusals.h"

namespace kvstore {

void Refusals::add(Code code, std::string_view address, std::string_view reason,
                   std::string_view who) {
    Key key(code, address.substr(0, address.rfind(':')), reason, who);
    const MutexLock lock(mutex_);
    if (entries_.size() >= kMostEntries && !entries_.contains(key)) {
        key = {code, {}, {}, {}};
    }
    Refusal& entry = entries_[key];
    entry.code = code;
    entry.host = std::get<1>(key);
    entry.reason = reason;
    entry.who = std::get<3>(key);
    ++entry.count;
}

std::vector<Refusal> Refusals::take() {
    std::map<Key, Refusal> entries;
    {
        const MutexLock lock(mutex_);
        entries.swap(entries_);
    }
    std::vector<Refusal> taken;
    taken.reserve(entries.size());
    for (auto& [key, entry] : entries) {
        taken.push_back(std::move(entry));
    }
    return taken;
}

}  // namespace kvstore
