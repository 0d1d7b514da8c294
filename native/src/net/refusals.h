// Refused peers and connections that ended with an error, kept for whoever writes the log.
//
// A flood makes few entries: one for each code, host, principal and reason, with its count.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"

namespace kvstore {

struct Refusal {
    Code code = Code::kInternal;
    std::string host;    // of the peer, without its port; empty: of many hosts
    std::string who;     // the principal, or whom it claims to be; empty: nobody, or many
    std::string reason;  // of many hosts: the last one
    uint64_t count = 0;
};

// Thread-safe.
class Refusals {
  public:
    static constexpr size_t kMostEntries = 64;  // further ones are counted together, by code

    void add(Code code, std::string_view address, std::string_view reason,
             std::string_view who = {}) KV_EXCLUDES(mutex_);
    // All since the last call.
    std::vector<Refusal> take() KV_EXCLUDES(mutex_);

  private:
    using Key = std::tuple<Code, std::string, std::string, std::string>;

    Mutex mutex_;
    std::map<Key, Refusal> entries_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
