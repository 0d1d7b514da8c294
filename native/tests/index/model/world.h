// What the simulated processes share, and the invariants that are checked while they run.
//
// Cells are the shared memory that the protocol is about. Locks and messages belong to the kernel
// and are plain variables: fibers switch only at accesses. "Ghost" variables exist for the checks
// alone.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "tests/index/model/machine.h"

namespace kvstore::model {

inline constexpr uint32_t kBlocks = 3;
inline constexpr uint32_t kWords = 2;  // of a block
inline constexpr uint32_t kEntries = 2;
inline constexpr uint32_t kSlots = 2;
inline constexpr uint32_t kHazards = 2;  // of a slot
inline constexpr uint32_t kNobody = UINT32_MAX;

inline constexpr const char* kWrongBytes = "a copy that succeeded has its version's bytes";
inline constexpr const char* kMixedEntry = "an entry that was read is one that was published";
inline constexpr const char* kHeldRewritten = "a held block is not rewritten";
inline constexpr const char* kHeldWrongBytes = "a held block has its version's bytes";
inline constexpr const char* kTwoWriters = "a block has one writer at a time";
inline constexpr const char* kLeftHazard = "no hazard outlives its process";

struct Entry {
    Cell gen;
    Cell version;
    Cell block;
};
struct IndexCells {
    Cell retired;
    std::array<Entry, kEntries> entries;
};
struct HazardCells {
    Cell gen;
    Cell offset;
};
struct Slot {
    std::array<HazardCells, kHazards> hazards;
    Cell spare;
    uint32_t locked_by = kNobody;  // kernel: the record lock
};
struct Object {
    Generation gen = 0;
    uint64_t version = 0;
    uint64_t block = 0;
};

class World {
  public:
    explicit World(Machine& m) : machine(m) {
        for (auto& block : blocks) {
            for (Cell& word : block) {
                word = machine.cell(0);
            }
        }
        for (IndexCells& index : indexes) {
            index.retired = machine.cell(0);
            for (Entry& e : index.entries) {
                e = {machine.cell(0), machine.cell(0), machine.cell(0)};
            }
        }
        for (Slot& slot : slots) {
            for (HazardCells& h : slot.hazards) {
                h = {machine.cell(0), machine.cell(kBlocks)};
            }
            slot.spare = machine.cell(0);
        }
        held.fill(0);
        writer.fill(kNobody);
        machine.on_death([this](uint32_t thread) { bury(thread); });
    }
    World(const World&) = delete;
    World& operator=(const World&) = delete;

    static uint64_t content(uint64_t version, uint32_t word) { return version * 16 + word + 1; }

    // Before the run: an object that has been there for long.
    void preload(uint32_t entry, const Object& object) {
        for (uint32_t w = 0; w < kWords; ++w) {
            blocks[object.block][w] = machine.cell(content(object.version, w));
        }
        indexes[0].entries[entry] = {machine.cell(object.gen), machine.cell(object.version),
                                     machine.cell(object.block)};
        published.push_back(object);
    }

    bool lock_held(Memory& m, uint32_t slot) {
        m.pause();
        m.after_receive();
        return slots[slot].locked_by != kNobody;
    }

    void begin_writing(uint64_t block, uint32_t thread) {
        if (held[block] != 0) {
            machine.violated(kHeldRewritten);
        }
        if (writer[block] != kNobody && writer[block] != thread) {
            machine.violated(kTwoWriters);
        }
        writer[block] = thread;
    }
    void write_word(Memory& m, uint64_t block, uint64_t version, uint32_t word) {
        m.store_nontemporal(blocks[block][word], content(version, word));
        if (held[block] != 0) {
            machine.violated(kHeldRewritten);
        }
    }
    void end_writing(uint64_t block, uint32_t thread) {
        if (writer[block] == thread) {
            writer[block] = kNobody;
        }
    }

    Machine& machine;
    std::array<std::array<Cell, kWords>, kBlocks> blocks;
    std::array<IndexCells, 2> indexes;
    std::array<Slot, kSlots> slots;
    uint32_t owner_locked_by = kNobody;  // kernel: the node's lock

    std::array<uint32_t, kBlocks> held;                    // ghost: confirmed holds
    std::array<uint32_t, kBlocks> writer;                  // ghost: the thread that may be writing
    std::array<uint32_t, Machine::kMaxThreads> holding{};  // ghost: block + 1 that a thread holds
    std::vector<Object> published;  // ghost: every object that was ever published

  private:
    // The kernel's and the ghosts' part of a death.
    void bury(uint32_t thread) {
        for (Slot& slot : slots) {
            if (slot.locked_by == thread) {
                slot.locked_by = kNobody;
            }
        }
        if (owner_locked_by == thread) {
            owner_locked_by = kNobody;
        }
        for (uint64_t block = 0; block < kBlocks; ++block) {
            end_writing(block, thread);
        }
        if (holding[thread] != 0) {
            --held[holding[thread] - 1];
        }
        holding[thread] = 0;
    }
};

// ---- what clients do -------------------------------------------------------------------------

// IndexReader::probe(), on one entry.
inline bool probe(World& world, Memory& m, uint32_t index, uint32_t entry, Object* found) {
    const IndexCells& cells = world.indexes[index];
    const Entry& e = cells.entries[entry];
    const bool stable = steps::read_stable(m, e.gen, cells.retired, 0, &found->gen, [&] {
        found->version = m.load(e.version, std::memory_order_relaxed);
        found->block = m.load(e.block, std::memory_order_relaxed);
    });
    if (!stable) {
        return false;
    }
    for (const Object& o : world.published) {
        if (o.gen == found->gen && o.version == found->version && o.block == found->block) {
            return true;
        }
    }
    world.machine.violated(kMixedEntry);
    return false;
}

// copy_object(), without the checksum that would catch what the protocol must not let happen.
inline void copy(World& world, Memory& m, uint32_t index, uint32_t entry, const Object& found) {
    const IndexCells& cells = world.indexes[index];
    std::array<uint64_t, kWords> words{};
    Generation seen = 0;
    const bool stable =
        steps::read_stable(m, cells.entries[entry].gen, cells.retired, found.gen, &seen, [&] {
            for (uint32_t w = 0; w < kWords; ++w) {
                words[w] = m.load(world.blocks[found.block][w], std::memory_order_relaxed);
            }
        });
    if (!stable) {
        return;
    }
    for (uint32_t w = 0; w < kWords; ++w) {
        if (words[w] != World::content(found.version, w)) {
            world.machine.violated(kWrongBytes);
        }
    }
}

inline void read_copies(World& world, Memory& m, int times) {
    for (int i = 0; i < times; ++i) {
        const auto entry = static_cast<uint32_t>(world.machine.random().below(kEntries));
        Object found;
        if (probe(world, m, 0, entry, &found)) {
            copy(world, m, 0, entry, found);
        }
    }
}

// hold_object(), reading the bytes twice, clear_hazard().
inline void hold_and_read(World& world, Memory& m, uint32_t slot, uint32_t hazard, uint32_t entry) {
    const IndexCells& cells = world.indexes[0];
    HazardCells& h = world.slots[slot].hazards[hazard];
    Object found;
    if (!probe(world, m, 0, entry, &found)) {
        return;
    }
    steps::publish_hazard(m, h, found.block, found.gen);
    if (steps::confirm_hold(m, cells.entries[entry].gen, cells.retired, found.gen)) {
        ++world.held[found.block];
        world.holding[m.thread()] = static_cast<uint32_t>(found.block) + 1;
        for (uint32_t i = 0; i < 2 * kWords; ++i) {
            const uint64_t word =
                m.load(world.blocks[found.block][i % kWords], std::memory_order_relaxed);
            if (word != World::content(found.version, i % kWords)) {
                world.machine.violated(kHeldWrongBytes);
            }
        }
        --world.held[found.block];
        world.holding[m.thread()] = 0;
    }
    steps::clear_hazard(m, h);
}

// ---- what a node does ------------------------------------------------------------------------

// The private state of one node process, and the block store's use of the steps.
class Node {
  public:
    Node(World& world, uint32_t index, uint32_t epoch, uint64_t counter)
        : world_(world), index_(index), epoch_(epoch), counter_(counter) {}

    // The node writes a block itself and publishes it.
    void put(Memory& m, uint32_t entry, uint64_t block) {
        world_.begin_writing(block, m.thread());
        const uint64_t version = ++versions_ + 100 * epoch_;
        for (uint32_t w = 0; w < kWords; ++w) {
            world_.write_word(m, block, version, w);
        }
        steps::finish_writing(m);
        world_.end_writing(block, m.thread());
        publish(m, entry, {steps::draw_generation(m, epoch_, counter_), version, block});
    }

    void publish(Memory& m, uint32_t entry, const Object& object) {
        world_.published.push_back(object);
        Entry& e = world_.indexes[index_].entries[entry];
        steps::publish_entry(m, e.gen, object.gen, [&] {
            m.store(e.version, object.version, std::memory_order_relaxed);
            m.store(e.block, object.block, std::memory_order_relaxed);
        });
        objects_[entry] = object;
    }
    void know(uint32_t entry, const Object& object) { objects_[entry] = object; }

    // Evicts and says whether the block may be rewritten now.
    bool evict(Memory& m, uint32_t entry) {
        steps::invalidate_entry(m, world_.indexes[index_].entries[entry].gen);
        const Generation gen = std::exchange(objects_[entry].gen, 0);
        for (uint32_t slot = 0; slot < kSlots; ++slot) {
            if (live[slot] && steps::slot_holds(m, world_.slots[slot].hazards, gen)) {
                return false;
            }
        }
        return true;
    }
    // Evicts the entry and puts another object there: over the old block if nobody holds it.
    void evict_and_put(Memory& m, uint32_t entry) {
        const Object old = objects_[entry];
        if (old.gen == 0) {
            return;
        }
        const bool free = evict(m, entry);
        const bool keep = !free || world_.machine.random().one_in(3);
        if (keep && spare_ == kNobody) {
            return;
        }
        const uint64_t target = keep ? spare_ : old.block;
        if (keep) {
            spare_ = free ? static_cast<uint32_t>(old.block) : kNobody;
        }
        put(m, entry, target);
    }

    const Object& object(uint32_t entry) const { return objects_[entry]; }
    void set_spare(uint32_t block) { spare_ = block; }
    std::array<bool, kSlots> live{};  // slots it has confirmed

  private:
    World& world_;
    uint32_t index_;
    uint32_t epoch_;
    uint64_t counter_;
    uint64_t versions_ = 10;
    uint32_t spare_ = kNobody;
    std::array<Object, kEntries> objects_{};
};

}  // namespace kvstore::model
