// The steps of the shared-memory protocol: the one place where the order of accesses is written
// down.
//
// Each step is a template over a memory policy M. The product runs them with RealMemory (atomics
// and fences); native/tests/index/model_test.cpp runs the very same functions on a simulated
// machine with store buffers and reordered loads, one access at a time, in seeded interleavings.
//
// Every rule whose breach an interleaving can show is a Guard. RealMemory enables all of them at
// compile time; the model test removes them one at a time and must then find wrong bytes. A policy
// has
//   bool enabled(Guard) const
//   load(const Word&, order), store(Word&, value, order)
//   exchange(Word&, expected, desired): in one step, if the word has `expected`; says whether
//   full_fence(), acquire_fence(), store_fence()
#pragma once

#include <atomic>
#include <cstdint>

#include "base/fence.h"
#include "base/types.h"

namespace kvstore::steps {

// One id per rule; the model test's table explains each and names what breaks without it.
enum class Guard : uint8_t {
    kReadAcquireGeneration,   // reader: the first load of the generation is an acquire
    kReadAcquireFence,        // reader: acquire fence between the bytes and the re-check
    kReadRecheckGeneration,   // reader: the generation is loaded again after the bytes
    kReadRecheckRetired,      // reader: so is `retired`
    kHoldHazard,              // holder: the hazard is published at all
    kHoldFullFence,           // holder: full fence between hazard and re-check
    kHoldRecheckGeneration,   // holder: the generation is checked after the hazard
    kHoldRecheckRetired,      // holder: so is `retired`
    kHoldAfterConfirm,        // holder: no hazard before the node has confirmed the slot
    kReuseInvalidate,         // node: the generation is invalidated before the block is reused
    kReuseFullFence,          // node: full fence between invalidation and scan
    kReuseScanHazards,        // node: all live slots are scanned
    kPublishRelease,          // node: the generation is published with release
    kWriterStoreFence,        // writer: its non-temporal stores are drained before commit or abort
    kGenerationFresh,         // node: a generation is never drawn twice
    kDeathNeedsLock,          // node: only the released lock frees a slot, not a closed session
    kSlotClearedBeforeReuse,  // node: a slot is cleared before it is handed out again
    kReservationQuarantine,   // node: an expired reservation of a living writer keeps its block
    kCommitNeedsReservation,  // node: a commit counts only for a live reservation
    kAttachOwnerLock,         // new node: starts only when the old one's lock is gone
    kAttachRetire,            // new node: the old index is marked retired
    kAttachRetireFence,       // new node: full fence between that mark and the scan
    kAttachRetireFirst,       // new node: the mark comes before anything is freed
    kAttachScanHazards,       // new node: a block that a hazard names is not free
    kAttachReservations,      // new node: blocks reserved from the old one stay quarantined
    kSpareTakenAtOnce,        // writer: takes its spare in one step, and writes only then
    kSpareRevokedAtOnce,      // node: takes a spare back in one step, and reuses it only then
    kCount,
};
inline constexpr int kGuardCount = static_cast<int>(Guard::kCount);

// The product's policy: real atomics, every guard on.
struct RealMemory {
    static constexpr bool enabled(Guard) { return true; }
    template <class T>
    static T load(const std::atomic<T>& word, std::memory_order order) {
        return word.load(order);
    }
    template <class T>
    static void store(std::atomic<T>& word, T value, std::memory_order order) {
        word.store(value, order);
    }
    template <class T>
    static bool exchange(std::atomic<T>& word, T expected, T desired) {
        return word.compare_exchange_strong(expected, desired, std::memory_order_acq_rel,
                                            std::memory_order_relaxed);
    }
    static void full_fence() { kvstore::full_fence(); }
    static void acquire_fence() { kvstore::acquire_fence(); }
    static void store_fence() { kvstore::store_fence(); }
};

// ---- readers ---------------------------------------------------------------------------------

// After everything this thread has read: does `gen_word` still have `gen`, the index not retired?
template <class M, class Word, class Flag>
bool still_valid(M&& m, const Word& gen_word, const Flag& retired, Generation gen) {
    if (m.enabled(Guard::kReadAcquireFence)) {
        m.acquire_fence();
    }
    if (m.enabled(Guard::kReadRecheckGeneration) &&
        m.load(gen_word, std::memory_order_relaxed) != gen) {
        return false;
    }
    return !m.enabled(Guard::kReadRecheckRetired) ||
           m.load(retired, std::memory_order_relaxed) == 0;
}

// First half of a stable read: what the writer published with this generation is visible after it.
template <class M, class Word>
Generation open_read(M&& m, const Word& gen_word) {
    return m.load(gen_word, m.enabled(Guard::kReadAcquireGeneration) ? std::memory_order_acquire
                                                                     : std::memory_order_relaxed);
}

// A stable read: what `body` read is one generation's if this returns true. `expected` 0 accepts
// any generation but none (0); `*seen` is the one that was read.
template <class M, class Word, class Flag, class Body>
bool read_stable(M&& m, const Word& gen_word, const Flag& retired, Generation expected,
                 Generation* seen, Body&& body) {
    *seen = open_read(m, gen_word);
    if (*seen == 0 || (expected != 0 && *seen != expected)) {
        return false;
    }
    body();
    return still_valid(m, gen_word, retired, *seen);
}

// First half of a hold: says "in use" where the node will look.
template <class M, class Hazard>
void publish_hazard(M&& m, Hazard& hazard, uint64_t offset, Generation gen) {
    if (!m.enabled(Guard::kHoldHazard)) {
        return;
    }
    m.store(hazard.offset, offset, std::memory_order_relaxed);
    m.store(hazard.gen, gen, std::memory_order_relaxed);
}

template <class M, class Hazard>
void clear_hazard(M&& m, Hazard& hazard) {
    m.store(hazard.gen, Generation{0}, std::memory_order_release);
}

// Second half: the hazard was in place while the object was still valid, so the node's scan, which
// comes after its invalidation, sees it. False: not held, and the hazard must be cleared.
template <class M, class Word, class Flag>
bool confirm_hold(M&& m, const Word& gen_word, const Flag& retired, Generation gen) {
    if (m.enabled(Guard::kHoldFullFence)) {
        m.full_fence();
    }
    if (m.enabled(Guard::kHoldRecheckGeneration) &&
        m.load(gen_word, std::memory_order_acquire) != gen) {
        return false;
    }
    return !m.enabled(Guard::kHoldRecheckRetired) ||
           m.load(retired, std::memory_order_acquire) == 0;
}

// Whether a client may use its slot: the node scans only slots it has confirmed.
template <class M>
bool may_use_slot(M&& m, bool confirmed) {
    return confirmed || !m.enabled(Guard::kHoldAfterConfirm);
}

// ---- writers of blocks -----------------------------------------------------------------------

// Before a writer says "commit" or "my copies have stopped".
template <class M>
void finish_writing(M&& m) {
    if (m.enabled(Guard::kWriterStoreFence)) {
        m.store_fence();
    }
}

// ---- spare blocks ----------------------------------------------------------------------------

// A spare lies in a word of its client's slot while nobody writes into it. Client and node each
// take it out in one step, so only one of them comes to have the block. Shown after
// finish_writing(), if it was ever written.
template <class M, class Word>
bool show_spare(M&& m, Word& word, Generation free, Generation gen) {
    return m.exchange(word, free, gen);
}

template <class M, class Word>
bool take_out(M&& m, Word& word, Generation gen, Guard guard) {
    if (m.enabled(guard)) {
        return m.exchange(word, gen, Generation{0});
    }
    if (m.load(word, std::memory_order_acquire) != gen) {
        return false;
    }
    m.store(word, Generation{0}, std::memory_order_release);
    return true;
}

// True: the caller may write into the block.
template <class M, class Word>
bool take_spare(M&& m, Word& word, Generation gen) {
    return take_out(m, word, gen, Guard::kSpareTakenAtOnce);
}

// True: the block is the node's again, and free. Like every word of a slot, the client can write
// this one at any time: who lies here writes into blocks that are not its own, which any process
// with the writable mapping could do.
template <class M, class Word>
bool revoke_spare(M&& m, Word& word, Generation gen) {
    return take_out(m, word, gen, Guard::kSpareRevokedAtOnce);
}

// ---- the node --------------------------------------------------------------------------------

// `fill` stores the entry's other words; they are visible to whoever sees the generation.
template <class M, class Word, class Fill>
void publish_entry(M&& m, Word& gen_word, Generation gen, Fill&& fill) {
    fill();
    m.store(
        gen_word, gen,
        m.enabled(Guard::kPublishRelease) ? std::memory_order_release : std::memory_order_relaxed);
}

// From here on no reader can come to trust the entry, and a scan that follows sees every hold that
// was confirmed before.
template <class M, class Word>
void invalidate_entry(M&& m, Word& gen_word) {
    if (m.enabled(Guard::kReuseInvalidate)) {
        m.store(gen_word, Generation{0}, std::memory_order_relaxed);
    }
    if (m.enabled(Guard::kReuseFullFence)) {
        m.full_fence();
    }
}

// Scan of one slot; the acquire pairs with clear_hazard().
template <class M, class Hazards, class Fn>
void for_each_hazard(M&& m, const Hazards& hazards, Fn&& fn) {
    if (!m.enabled(Guard::kReuseScanHazards)) {
        return;
    }
    for (const auto& hazard : hazards) {
        const Generation gen = m.load(hazard.gen, std::memory_order_acquire);
        if (gen != 0) {
            fn(gen);
        }
    }
}
template <class M, class Hazards>
bool slot_holds(M&& m, const Hazards& hazards, Generation gen) {
    bool found = false;
    for_each_hazard(m, hazards, [&](Generation held) { found |= held == gen; });
    return found;
}

// `counter` is private to the node and its epoch was persisted before the first draw.
template <class M>
Generation draw_generation(M&& m, uint32_t epoch, uint64_t& counter) {
    if (m.enabled(Guard::kGenerationFresh)) {
        ++counter;
    }
    return pack_epoch(epoch, counter);
}

// Whether the block of an unpublished reservation may go to somebody else. Time and a closed
// session prove nothing: the writer may be stopped in the middle of its copy.
template <class M>
bool may_reuse_reservation(M&& m, bool writer_said_stopped, bool writer_lock_held, bool expired) {
    if (writer_said_stopped || !writer_lock_held) {
        return true;
    }
    return expired && !m.enabled(Guard::kReservationQuarantine);
}

// Whether a commit counts: the reservation is this node's, its writer's, unexpired and unaborted.
template <class M>
bool may_publish(M&& m, bool reservation_live) {
    return reservation_live || !m.enabled(Guard::kCommitNeedsReservation);
}

// Whether a slot's client is dead.
template <class M>
bool slot_is_dead(M&& m, bool lock_held, bool session_closed) {
    return !lock_held || (session_closed && !m.enabled(Guard::kDeathNeedsLock));
}

// Hands a slot to its next client: nothing of the last one is left in it.
template <class M, class Clear, class HandOut>
void recycle_slot(M&& m, Clear&& clear, HandOut&& hand_out) {
    if (m.enabled(Guard::kSlotClearedBeforeReuse)) {
        clear();
    }
    hand_out();
}

// ---- a new node on an old one's memory -------------------------------------------------------

template <class M>
bool may_attach(M&& m, bool old_owner_lock_held) {
    return !old_owner_lock_held || !m.enabled(Guard::kAttachOwnerLock);
}

// For ever: who reads `retired` trusts nothing it reads through this index. A scan that follows
// sees every hold that was confirmed before.
template <class M, class Flag>
void retire_index(M&& m, Flag& retired) {
    if (m.enabled(Guard::kAttachRetire)) {
        m.store(retired, 1u, std::memory_order_relaxed);
    }
    if (m.enabled(Guard::kAttachRetireFence)) {
        m.full_fence();
    }
}

// `free_blocks` makes everything reusable that the new index does not carry over.
template <class M, class Flag, class FreeBlocks>
void take_over(M&& m, Flag& retired, FreeBlocks&& free_blocks) {
    if (!m.enabled(Guard::kAttachRetireFirst)) {
        free_blocks();
    }
    retire_index(m, retired);
    if (m.enabled(Guard::kAttachRetireFirst)) {
        free_blocks();
    }
}

// Whether a block that the new index does not carry over is held. The old node may have died
// between invalidating its entry and scanning, so the generation can be lost; the hazard names the
// block too.
template <class M, class Hazards>
bool slot_holds_block(M&& m, const Hazards& hazards, uint64_t offset) {
    if (!m.enabled(Guard::kAttachScanHazards)) {
        return false;
    }
    for (const auto& hazard : hazards) {
        if (m.load(hazard.gen, std::memory_order_acquire) != 0 &&
            m.load(hazard.offset, std::memory_order_relaxed) == offset) {
            return true;
        }
    }
    return false;
}

// Whether a block that the old node had reserved counts as free to the new one.
template <class M>
bool may_reuse_old_reservation(M&& m, bool writer_lock_held) {
    return !writer_lock_held || !m.enabled(Guard::kAttachReservations);
}

}  // namespace kvstore::steps
