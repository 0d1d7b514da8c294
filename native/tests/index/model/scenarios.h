// The plots: small casts of processes whose every interleaving must keep the invariants.
#pragma once

#include "tests/index/model/world.h"

namespace kvstore::model {

// Eviction and rewriting under a copying reader and a holder.
inline void reuse(Machine& machine) {
    World world(machine);
    world.preload(0, {1, 1, 0});
    world.preload(1, {2, 2, 1});
    world.slots[0].locked_by = 2;
    Node node(world, 0, 0, 2);
    node.know(0, {1, 1, 0});
    node.know(1, {2, 2, 1});
    node.set_spare(2);
    node.live[0] = true;
    machine.spawn([&](Memory& m) {
        for (int i = 0; i < 3; ++i) {
            node.evict_and_put(m, static_cast<uint32_t>(machine.random().below(kEntries)));
        }
    });
    machine.spawn([&](Memory& m) { read_copies(world, m, 3); });
    machine.spawn([&](Memory& m) {
        for (int i = 0; i < 2; ++i) {
            hold_and_read(world, m, 0, 0, static_cast<uint32_t>(machine.random().below(kEntries)));
        }
    });
    machine.run();
}

// What the node knows of a reservation, and what its writer has said.
struct Reservation {
    enum class Said : uint8_t { kNothing, kCommit, kStopped };
    Object object;
    Said said = Said::kNothing;  // kernel: the message in the socket
    bool heard = false;
    bool live = true;
    bool expired = false;
    bool stopped = false;
    bool published = false;
};

// One turn of the node: time passes, a message is taken, or space is short.
inline void reservation_turn(World& world, Memory& m, Node& node, Reservation& r) {
    Random& random = world.machine.random();
    m.pause();
    if (random.one_in(4)) {
        r.expired = true;
    }
    if (r.said != Reservation::Said::kNothing && !r.heard && random.one_in(2)) {
        m.after_receive();
        r.heard = true;
        const bool commit = r.said == Reservation::Said::kCommit;
        if (commit && steps::may_publish(m, r.live && !r.expired)) {
            r.published = true;
            node.publish(m, 0, r.object);
        } else {
            r.stopped = true;  // a refused commit is answered; its writer had stopped before it
        }
    }
    if (r.published || !r.live || !random.one_in(2)) {
        return;
    }
    if (steps::may_reuse_reservation(m, r.stopped, world.lock_held(m, 0), r.expired)) {
        r.live = false;
        node.put(m, 1, r.object.block);
    }
}

// A reservation that expires while its writer writes, is stopped or dies; a late commit.
inline void reservation(Machine& machine) {
    World world(machine);
    world.slots[0].locked_by = 1;
    Node node(world, 0, 0, 5);
    Reservation r;
    r.object = {5, 5, 0};
    world.begin_writing(0, 1);
    machine.spawn([&](Memory& m) {
        for (int i = 0; i < 12; ++i) {
            reservation_turn(world, m, node, r);
        }
    });
    const uint32_t writer = machine.spawn([&](Memory& m) {
        const bool abort = machine.random().one_in(3);
        world.write_word(m, 0, 5, 0);
        if (!abort) {
            world.write_word(m, 0, 5, 1);
        }
        steps::finish_writing(m);
        m.before_send();
        world.end_writing(0, m.thread());
        r.said = abort ? Reservation::Said::kStopped : Reservation::Said::kCommit;
    });
    machine.spawn([&](Memory& m) { read_copies(world, m, 5); });
    machine.spawn([&](Memory& m) {
        for (uint64_t i = machine.random().below(20); i > 0; --i) {
            m.pause();
        }
        if (machine.random().one_in(2)) {
            machine.kill(writer);
        }
    });
    machine.run();
}

// A spare that its client takes to write into, shows again when its object is refused, and that the
// node has back meanwhile.
inline void spares(Machine& machine) {
    World world(machine);
    world.slots[0].locked_by = 1;
    world.preload(0, {1, 1, 1});
    world.slots[0].spare = machine.cell(5);
    Node node(world, 0, 0, 9);
    node.know(0, {1, 1, 1});
    machine.spawn([&](Memory& m) {
        for (int i = 0; i < 6; ++i) {
            m.pause();
            if (machine.random().one_in(3) && steps::revoke_spare(m, world.slots[0].spare, 5)) {
                node.put(m, 1, 0);
                return;
            }
        }
    });
    machine.spawn([&](Memory& m) {
        for (int i = 0; i < 2; ++i) {
            if (!steps::take_spare(m, world.slots[0].spare, 5)) {
                return;
            }
            world.begin_writing(0, m.thread());
            world.write_word(m, 0, 5, 0);
            world.write_word(m, 0, 5, 1);
            steps::finish_writing(m);
            world.end_writing(0, m.thread());
            steps::show_spare(m, world.slots[0].spare, Generation{0}, Generation{5});
        }
    });
    machine.spawn([&](Memory& m) { read_copies(world, m, 5); });
    machine.run();
}

// The kernel's and the sockets' part of a slot that passes from one client to the next.
struct SlotPassing {
    bool session_closed = false;  // the first client's socket is gone: a hint, no proof
    bool assigned = false;
    bool ready = false;
    bool confirmed = false;
};

inline void slot_turn(World& world, Memory& m, Node& node, SlotPassing& p, bool* passed) {
    Random& random = world.machine.random();
    if (!*passed && random.one_in(2) &&
        steps::slot_is_dead(m, world.lock_held(m, 0), p.session_closed)) {
        *passed = true;
        node.live[0] = false;
        steps::recycle_slot(
            m,
            [&] {
                for (HazardCells& h : world.slots[0].hazards) {
                    steps::clear_hazard(m, h);
                }
            },
            [&] {
                m.before_send();
                p.assigned = true;
            });
    }
    if (p.ready && !p.confirmed && random.one_in(2)) {
        m.after_receive();
        node.live[0] = true;
        m.before_send();
        p.confirmed = true;
    }
    if (random.one_in(2)) {
        node.evict_and_put(m, static_cast<uint32_t>(random.below(kEntries)));
    }
}

// The second client: locks the slot that it was assigned, says so, and holds once it is confirmed.
inline void second_client(World& world, Memory& m, SlotPassing& p) {
    m.wait_for([&] { return p.assigned; });
    if (world.slots[0].locked_by != kNobody) {
        return;
    }
    world.slots[0].locked_by = m.thread();
    m.before_send();
    p.ready = true;
    if (!steps::may_use_slot(m, p.confirmed)) {
        m.wait_for([&] { return p.confirmed; });
    }
    hold_and_read(world, m, 0, 0, 0);
}

// A client that closes its session, is stopped or dies; its slot is given to another.
inline void slots(Machine& machine) {
    World world(machine);
    world.preload(0, {1, 1, 0});
    world.preload(1, {2, 2, 1});
    world.slots[0].locked_by = 1;
    Node node(world, 0, 0, 2);
    node.know(0, {1, 1, 0});
    node.know(1, {2, 2, 1});
    node.set_spare(2);
    node.live[0] = true;
    SlotPassing p;
    bool passed = false;
    bool second_done = false;
    machine.spawn([&](Memory& m) {
        for (int i = 0; i < 10; ++i) {
            slot_turn(world, m, node, p, &passed);
            m.pause();
        }
    });
    const uint32_t first = machine.spawn([&](Memory& m) {
        hold_and_read(world, m, 0, 1, static_cast<uint32_t>(machine.random().below(kEntries)));
    });
    machine.spawn([&](Memory& m) {
        second_client(world, m, p);
        second_done = world.slots[0].locked_by == m.thread();
    });
    machine.spawn([&](Memory& m) {
        for (uint64_t i = machine.random().below(12); i > 0; --i) {
            m.pause();
        }
        p.session_closed = true;
        for (uint64_t i = machine.random().below(12); i > 0; --i) {
            m.pause();
        }
        if (machine.random().one_in(2)) {
            machine.kill(first);
        }
    });
    machine.run();
    for (const HazardCells& h : world.slots[0].hazards) {
        if (second_done && machine.final_value(h.gen) != 0) {
            machine.violated(kLeftHazard);
        }
    }
}

// A new node on the old one's memory: entry 0 is carried over if it is valid, all else is freed.
inline void attach_and_go_on(World& world, Memory& m, Node& fresh) {
    if (!steps::may_attach(m, world.owner_locked_by != kNobody)) {
        m.wait_for([&] { return world.owner_locked_by == kNobody; });
    }
    world.owner_locked_by = m.thread();
    m.after_receive();  // what the dead process stored is visible to who takes its lock
    const Entry& old = world.indexes[0].entries[0];
    const Generation gen = m.load(old.gen, std::memory_order_acquire);
    Object carried{gen, m.load(old.version, std::memory_order_relaxed),
                   m.load(old.block, std::memory_order_relaxed)};
    if (gen != 0) {
        fresh.publish(m, 0, carried);
    }
    fresh.live.fill(true);  // slots survive: whoever holds a lock is alive
    steps::take_over(m, world.indexes[0].retired, [&] {
        for (uint32_t block = 0; block < kBlocks; ++block) {
            if (gen != 0 && block == carried.block) {
                continue;
            }
            // Block 2 was reserved from the old node by the client in slot 1.
            if (block == 2 && !steps::may_reuse_old_reservation(m, world.lock_held(m, 1))) {
                continue;
            }
            bool held = false;
            for (const Slot& slot : world.slots) {
                held |= steps::slot_holds_block(m, slot.hazards, block);
            }
            if (!held) {
                fresh.put(m, 1, block);
            }
        }
    });
    if (gen != 0) {
        fresh.evict_and_put(m, 0);
    }
}

// Death of a node and attach of the next, under readers, a holder and a writer.
inline void attach(Machine& machine) {
    World world(machine);
    world.preload(0, {1, 1, 0});
    world.preload(1, {2, 2, 1});
    world.owner_locked_by = 0;
    world.slots[0].locked_by = 4;
    world.slots[1].locked_by = 2;
    world.begin_writing(2, 2);
    Node old(world, 0, 0, 2);
    old.know(0, {1, 1, 0});
    old.know(1, {2, 2, 1});
    old.live.fill(true);
    Node fresh(world, 1, 1, 0);
    const uint32_t first = machine.spawn([&](Memory& m) {
        for (int i = 0; i < 2; ++i) {
            old.evict_and_put(m, 0);
        }
    });
    machine.spawn([&](Memory& m) { attach_and_go_on(world, m, fresh); });
    machine.spawn([&](Memory& m) {
        for (uint32_t w = 0; w < kWords; ++w) {
            world.write_word(m, 2, 5, w);
        }
        steps::finish_writing(m);
        m.pause();
        world.end_writing(2, m.thread());
    });
    machine.spawn([&](Memory& m) { read_copies(world, m, 4); });
    machine.spawn([&](Memory& m) {
        for (int i = 0; i < 2; ++i) {
            hold_and_read(world, m, 0, 0, static_cast<uint32_t>(machine.random().below(kEntries)));
        }
    });
    machine.spawn([&](Memory& m) {
        for (uint64_t i = machine.random().below(12); i > 0; --i) {
            m.pause();
        }
        machine.kill(first);
    });
    machine.run();
}

}  // namespace kvstore::model
