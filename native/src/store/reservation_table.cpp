// Reservations by generation, their deadlines in order, and the bytes of each client.
#include "store/reservation_table.h"

#include <algorithm>
#include <iterator>

namespace kvstore {

uint64_t ReservationTable::client_of(const Owner& owner) {
    constexpr uint64_t kSessionBit = uint64_t{1} << 63;
    return owner.slot >= 0 ? static_cast<uint64_t>(owner.slot) : owner.session | kSessionBit;
}

bool ReservationTable::has_room(const Owner& owner, uint64_t size_bytes) const {
    const auto it = clients_.find(client_of(owner));
    if (it == clients_.end() || it->second.bytes == 0) {
        return true;
    }
    const uint64_t used = it->second.bytes;
    return used <= client_cap_bytes_ && size_bytes <= client_cap_bytes_ - used;
}

void ReservationTable::add(Generation generation, Reservation reservation) {
    note_deadline(reservation.deadline_ms, generation);
    Client& client = clients_[client_of(reservation.owner)];
    ++client.count;
    bytes_ += reservation.size_bytes;
    if (reservation.spare) {
        spares_.insert(generation);
        spare_bytes_ += reservation.size_bytes;
    } else {
        client.bytes += reservation.size_bytes;
    }
    count_pin(reservation, true);
    const bool added = by_generation_.emplace(generation, std::move(reservation)).second;
    KV_ASSERT(added);
}

uint64_t ReservationTable::hard_pinned_bytes(TenantId tenant) const {
    const auto found = hard_pinned_.find(tenant);
    return found == hard_pinned_.end() ? 0 : found->second;
}

void ReservationTable::count_pin(const Reservation& reservation, bool add) {
    if (reservation.pin != Pin::kHard || reservation.ns == nullptr) {
        return;
    }
    uint64_t& bytes = hard_pinned_[reservation.ns->tenant_id];
    bytes = add ? bytes + reservation.size_bytes : bytes - reservation.size_bytes;
    if (bytes == 0) {
        hard_pinned_.erase(reservation.ns->tenant_id);
    }
}

Reservation* ReservationTable::find(Generation generation) {
    const auto it = by_generation_.find(generation);
    return it == by_generation_.end() ? nullptr : &it->second;
}

Reservation ReservationTable::take(Generation generation) {
    const auto it = by_generation_.find(generation);
    KV_ASSERT(it != by_generation_.end());
    Reservation reservation = std::move(it->second);
    by_generation_.erase(it);
    count_pin(reservation, false);
    bytes_ -= reservation.size_bytes;
    if (reservation.quarantined) {
        --quarantined_;
        quarantined_bytes_ -= reservation.size_bytes;
    }
    const auto client = clients_.find(client_of(reservation.owner));
    KV_ASSERT(client != clients_.end());
    if (reservation.spare) {
        spares_.erase(generation);
        spare_bytes_ -= reservation.size_bytes;
        quarantined_spares_ -= reservation.quarantined ? 1 : 0;
    } else {
        KV_ASSERT(client->second.bytes >= reservation.size_bytes);
        client->second.bytes -= reservation.size_bytes;
    }
    if (--client->second.count == 0) {
        clients_.erase(client);
    }
    return reservation;
}

void ReservationTable::quarantine(Generation generation) {
    Reservation* reservation = find(generation);
    KV_ASSERT(reservation != nullptr);
    if (reservation->quarantined) {
        return;
    }
    reservation->quarantined = true;
    quarantined_spares_ += reservation->spare ? 1 : 0;
    ++quarantined_;
    quarantined_bytes_ += reservation->size_bytes;
}

void ReservationTable::assign(Generation generation, Reservation object) {
    Reservation* spare = find(generation);
    KV_ASSERT(spare != nullptr && spare->spare && !spare->quarantined && !object.spare);
    KV_ASSERT(spare->offset == object.offset && spare->size_bytes == object.size_bytes);
    KV_ASSERT(client_of(spare->owner) == client_of(object.owner));
    note_deadline(object.deadline_ms, generation);
    spares_.erase(generation);
    spare_bytes_ -= spare->size_bytes;
    clients_.at(client_of(spare->owner)).bytes += spare->size_bytes;
    object.line = spare->line;
    count_pin(object, true);
    *spare = std::move(object);
}

// At the end, but for the time after a shortening, or after the clock was set back (a machine that
// was restored from a checkpoint).
void ReservationTable::note_deadline(uint64_t deadline_ms, Generation generation) {
    auto at = deadlines_.end();
    while (at != deadlines_.begin() && std::prev(at)->first > deadline_ms) {
        --at;
    }
    deadlines_.emplace(at, deadline_ms, generation);
}

// What is gone is dropped from the list, so that the search for a place in it stays short.
void ReservationTable::shorten_deadlines() {
    std::erase_if(deadlines_, [this](const std::pair<uint64_t, Generation>& noted) {
        const Reservation* reservation = find(noted.second);
        return reservation == nullptr || reservation->deadline_ms != noted.first;
    });
}

void ReservationTable::quarantine_expired(uint64_t now_ms) {
    while (!deadlines_.empty() && deadlines_.front().first <= now_ms) {
        const Generation generation = deadlines_.front().second;
        deadlines_.pop_front();
        const Reservation* reservation = find(generation);
        // One that was assigned later has another deadline.
        if (reservation != nullptr && reservation->deadline_ms <= now_ms) {
            quarantine(generation);
        }
    }
}

std::vector<std::pair<Generation, int>> ReservationTable::spares_due(uint64_t deadline_ms) const {
    std::vector<std::pair<Generation, int>> due;
    for (const Generation generation : spares_) {
        const Reservation& spare = by_generation_.at(generation);
        if (spare.deadline_ms > deadline_ms) {
            break;  // the later ones were granted later
        }
        due.emplace_back(generation, spare.owner.slot);
    }
    return due;
}

std::vector<Generation> ReservationTable::of_session(uint64_t session) const {
    std::vector<Generation> found;
    for (const auto& [generation, reservation] : by_generation_) {
        if (reservation.owner.session == session) {
            found.push_back(generation);
        }
    }
    return found;
}

std::vector<Generation> ReservationTable::of_slot(int slot) const {
    std::vector<Generation> found;
    for (const auto& [generation, reservation] : by_generation_) {
        if (reservation.owner.slot == slot) {
            found.push_back(generation);
        }
    }
    return found;
}

std::vector<int> ReservationTable::slots() const {
    std::vector<int> found;
    for (const auto& [client, sums] : clients_) {
        if (client >> 63 == 0) {
            found.push_back(static_cast<int>(client));
        }
    }
    return found;
}

bool ReservationTable::consistent() const {
    uint64_t bytes = 0;
    uint64_t quarantined_bytes = 0;
    size_t quarantined = 0;
    uint64_t spare_bytes = 0;
    std::unordered_map<uint64_t, uint64_t> clients;
    for (const auto& [generation, reservation] : by_generation_) {
        bytes += reservation.size_bytes;
        clients[client_of(reservation.owner)] += reservation.spare ? 0 : reservation.size_bytes;
        spare_bytes += reservation.spare ? reservation.size_bytes : 0;
        if (!reservation.quarantined) {
            continue;
        }
        ++quarantined;
        quarantined_bytes += reservation.size_bytes;
    }
    if (bytes != bytes_ || quarantined != quarantined_ || spare_bytes != spare_bytes_) {
        return false;
    }
    if (quarantined_bytes != quarantined_bytes_ || clients.size() != clients_.size()) {
        return false;
    }
    return std::ranges::all_of(clients, [&](const auto& item) {
        const auto it = clients_.find(item.first);
        return it != clients_.end() && it->second.bytes == item.second;
    });
}

}  // namespace kvstore
