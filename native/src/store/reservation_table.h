// Reservations: blocks that are being written and not published, with who writes them and until
// when.
//
// A reservation is active until its deadline or its session's end, then quarantined: it can only be
// taken out by its writer or by the writer's death. Unpublished bytes are counted per client (a
// slot, or a session without one) against a cap; spares are not, since the node can have them back.
// Private to the node and not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/namespace_epoch.h"
#include "base/types.h"
#include "index/ledger.h"
#include "store/store_types.h"

namespace kvstore {

struct Reservation {
    Owner owner;
    NamespaceRef ns;
    std::string key;
    Hash128 hash;
    Hash128 parent;            // zero: none
    uint64_t put_wall_ms = 0;  // 0: when it is published
    uint64_t offset = 0;
    uint64_t size_bytes = 0;
    uint64_t ttl_ms = 0;
    uint64_t deadline_ms = 0;
    Pin pin = Pin::kNone;
    Version version = 0;  // 0 until granted
    bool quarantined = false;
    Ledger::Line line = Ledger::kNoLine;  // its record
    bool spare = false;  // granted before it is known what for: neither key nor namespace yet
};

class ReservationTable {
  public:
    explicit ReservationTable(uint64_t client_cap_bytes) : client_cap_bytes_(client_cap_bytes) {}

    // Whether the client may reserve `size_bytes` more. A client that writes nothing else may
    // always reserve one object, so that a cap below an object's size does not forbid the object.
    bool has_room(const Owner& owner, uint64_t size_bytes) const;
    // Deadlines must not decrease from one call to the next, except after shorten_deadlines().
    void add(Generation generation, Reservation reservation);
    Reservation* find(Generation generation);
    Reservation take(Generation generation);  // must be present
    void quarantine(Generation generation);   // must be present; again is no harm
    // A spare gets its object and a new deadline; must be present and not quarantined.
    void assign(Generation generation, Reservation object);
    void quarantine_expired(uint64_t now_ms);

    void set_client_cap(uint64_t bytes) { client_cap_bytes_ = bytes; }
    // From now on deadlines may be earlier than those that are kept already; each of them stays.
    void shorten_deadlines();

    std::vector<Generation> of_session(uint64_t session) const;
    std::vector<Generation> of_slot(int slot) const;
    std::vector<int> slots() const;  // that have anything reserved

    size_t active() const { return by_generation_.size() - quarantined_; }  // spares included
    size_t spares() const { return spares_.size() - quarantined_spares_; }  // may be assigned
    // All of them, the quarantined ones included.
    uint64_t spare_bytes() const { return spare_bytes_; }
    // Oldest first, with the slots that they were granted to: those due at `deadline_ms` or before.
    std::vector<std::pair<Generation, int>> spares_due(uint64_t deadline_ms) const;
    // What will be hard-pinned once it is published.
    uint64_t hard_pinned_bytes(TenantId tenant) const;
    uint64_t active_bytes() const { return bytes_ - quarantined_bytes_; }
    size_t quarantined() const { return quarantined_; }
    uint64_t quarantined_bytes() const { return quarantined_bytes_; }
    const std::unordered_map<Generation, Reservation>& all() const { return by_generation_; }
    bool consistent() const;  // the sums agree; for audits

  private:
    struct Client {
        uint64_t bytes = 0;  // without spares
        uint64_t count = 0;  // with them
    };
    static uint64_t client_of(const Owner& owner);
    void note_deadline(uint64_t deadline_ms, Generation generation);
    void count_pin(const Reservation& reservation, bool add);

    uint64_t client_cap_bytes_;
    uint64_t bytes_ = 0;
    size_t quarantined_ = 0;
    uint64_t quarantined_bytes_ = 0;
    std::set<Generation> spares_;
    size_t quarantined_spares_ = 0;
    uint64_t spare_bytes_ = 0;
    std::unordered_map<TenantId, uint64_t> hard_pinned_;
    std::unordered_map<Generation, Reservation> by_generation_;
    std::unordered_map<uint64_t, Client> clients_;
    std::deque<std::pair<uint64_t, Generation>> deadlines_;  // in order; may name what is gone
};

}  // namespace kvstore
