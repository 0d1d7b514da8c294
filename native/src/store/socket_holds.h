// Holds by socket: a client whose slot is full asks the node to keep a block where it is.
//
// A hold belongs to a session and names a generation. Its process may go on reading after this life
// of the node, so the ledger has a record of each. Private to the node and not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "base/types.h"
#include "index/index.h"
#include "index/ledger.h"
#include "store/store_types.h"

namespace kvstore {

class SocketHolds {
  public:
    static constexpr size_t kMaxHolds = 65'536;
    struct Target {
        Generation generation = 0;
        EntryRef ref = kNoEntry;  // where its object was when the hold began
        uint64_t offset = 0;
        uint64_t length = 0;
    };
    // kFull: too many holds, or no memory for a further record.
    enum class Added : uint8_t { kNew, kAgain, kFull };
    struct Ended {
        Generation generation = 0;
        EntryRef ref = kNoEntry;
    };

    explicit SocketHolds(Ledger& ledger, size_t max = kMaxHolds) : ledger_(ledger), max_(max) {}

    // Of one session on one generation they add up; only the first counts as a hold of the block.
    Added add(const Owner& owner, const Target& target);
    // As add(), for a hold that began in an earlier life: without limit, recorded if possible.
    void keep(const Owner& owner, const Target& target);
    bool contains(uint64_t session, Generation generation) const;
    // One of them less; must be there. The hold that ended, when it was the last.
    std::optional<Ended> release(uint64_t session, Generation generation);
    // The session's holds end, except those of a process with a slot: it may still be reading.
    std::vector<Ended> end_session(uint64_t session);
    std::vector<Ended> end_slot(int slot);

    std::vector<int> slots() const;  // of the holders, with repetitions
    size_t recorded() const;         // that have a record in the ledger

  private:
    struct Hold {
        Owner owner;
        EntryRef ref = kNoEntry;
        uint32_t count = 1;
        Ledger::Line line = Ledger::kNoLine;
    };
    using Holds = std::map<std::pair<uint64_t, Generation>, Hold>;  // by session
    Ledger::Line record(const Owner& owner, const Target& target);
    Holds::iterator end(Holds::iterator hold, std::vector<Ended>* ended);

    Ledger& ledger_;
    size_t max_;
    Holds holds_;
};

}  // namespace kvstore
