// Notices that this process is a forked child of the one that opened something: a child shares its
// parent's sockets, locks and lists of held blocks, so it must not use or release any of them.
#pragma once

#include <cstdint>

namespace kvstore {

// How many forks lie between the first process that asked and this one; one atomic load.
uint64_t fork_generation();

class ForkGuard {
  public:
    ForkGuard() : generation_(fork_generation()) {}
    bool in_child() const { return fork_generation() != generation_; }

  private:
    uint64_t generation_;
};

}  // namespace kvstore
