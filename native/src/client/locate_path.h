// Which keys are there, and where, without their bytes: this host's indexes, then the master.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "client/client_context.h"

namespace kvstore {

// One key's answer.
struct Located {
    int64_t size = static_cast<int64_t>(Code::kNotFound);  // or a negative code
    MissReason reason = MissReason::kNone;                 // when it is absent
    HashedKey key;
    Placement placement;  // from the master; empty for what this host has
    int local = -1;       // position in LocatePath::locals()
    bool present() const { return size >= 0; }
};

class LocatePath {
  public:
    explicit LocatePath(ClientContext& context) : context_(context) {}
    struct How {
        bool stop_at_gap = false;  // what lies behind the first absent key may be left absent
        uint32_t wait_ms = 0;      // the master answers when nothing is absent, or so much later
        bool local = false;  // what this host's indexes do not have is absent: nobody is asked
    };
    // Answers for all keys. Not being able to ask is an absence: a failing cache is a miss.
    void run(std::span<const std::string_view> keys, const How& how, Deadline deadline);

    // Puts the nodes of each placement in the order in which a read asks them.
    void nearest_first();

    std::span<const Located> found() const { return found_; }
    std::span<const LocalPeer> locals() const { return locals_; }
    // Leading keys that are present, in whole pages of `stride`.
    size_t prefix_length(size_t stride) const;
    // Why the first absent key is; kNone when none is.
    MissReason gap_reason() const;

  private:
    void probe(std::span<const std::string_view> keys, Deadline deadline);
    bool ask(std::span<const size_t> rows, Deadline deadline, Deadline wait_until);
    void take_row(const LookupReply& reply, size_t i, Located* located);
    MissReason why_not(const Placement& placement) const;
    Status exchange(Lookup request, LookupReply* reply, ChannelPool::Lease* lease,
                    Deadline deadline);

    ClientContext& context_;
    std::vector<LocalPeer> locals_;
    std::vector<Located> found_;
    CallTally tally_;
};

}  // namespace kvstore
