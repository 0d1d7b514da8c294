// Client slots with real child processes: death frees, SIGSTOP does not, and no stray descriptor or
// fork drops a lock.
#include "index/client_slots.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <thread>

#include "base/clock.h"
#include "index/slot_registry.h"
#include "tests/temp_dir.h"
#include "tests/waiting.h"

namespace kvstore {
namespace {

std::unique_ptr<ClientSlots> make_slots() {
    auto slots = ClientSlots::open("", "clients");
    EXPECT_TRUE(slots.ok()) << slots.status().to_string();
    return std::move(*slots);
}

// A forked child that runs `body`, says "ready" when body calls its argument, and is killed at the
// latest when the test ends. A body that returns false makes wait_ready() fail.
class Child {
  public:
    using Ready = std::function<void()>;
    explicit Child(const std::function<bool(const Ready& ready)>& body) {
        int ends[2];
        KV_ASSERT(pipe2(ends, O_CLOEXEC) == 0);
        ready_ = Fd(ends[0]);
        Fd write_end(ends[1]);
        pid_ = fork();
        KV_ASSERT(pid_ >= 0);
        if (pid_ == 0) {
            ready_.reset();
            const bool ok = body([&] { KV_ASSERT(write(write_end.get(), "r", 1) == 1); });
            _exit(ok ? 0 : 1);
        }
    }
    ~Child() {
        if (pid_ > 0) {
            end(SIGKILL);
        }
    }
    bool wait_ready() {
        pollfd event{ready_.get(), POLLIN, 0};
        char byte = 0;
        return poll(&event, 1, 20'000) == 1 && read(ready_.get(), &byte, 1) == 1;
    }
    void signal(int number) const { kill(pid_, number); }
    void wait_stopped() const {
        int status = 0;
        ASSERT_EQ(waitpid(pid_, &status, WUNTRACED), pid_);
        ASSERT_TRUE(WIFSTOPPED(status));
    }
    // Exit status of the child, which is asked to end by `number` unless that is 0.
    int end(int number) {
        int status = 0;
        if (number != 0) {
            kill(pid_, number);
        }
        waitpid(std::exchange(pid_, -1), &status, 0);
        return status;
    }

  private:
    pid_t pid_ = -1;
    Fd ready_;
};

void wait_for_signal() {
    for (;;) {
        pause();
    }
}

std::shared_ptr<ClientSlot> acquire(const ClientSlots& slots, uint32_t number) {
    auto slot = SlotRegistry::instance().acquire(Fd(dup(slots.fd(number))), number);
    return slot.ok() ? *slot : nullptr;
}

// Two stores of one process share its slot, so both have to be through.
TEST(ClientSlots, WritesOfEarlierEpochsEndOnce) {
    auto slots = make_slots();
    const auto number = slots->assign();
    ASSERT_TRUE(number.ok());
    const auto one = acquire(*slots, *number);
    const auto two = acquire(*slots, *number);
    ASSERT_TRUE(one->begin_writing(3));
    ASSERT_TRUE(two->begin_writing(4));
    EXPECT_FALSE(two->end_earlier_writes(4));
    EXPECT_TRUE(one->begin_writing(3));  // nothing was said yet
    one->end_writing(3);
    one->end_writing(3);
    EXPECT_TRUE(two->end_earlier_writes(4));
    EXPECT_FALSE(one->begin_writing(3));
    EXPECT_FALSE(two->end_earlier_writes(5));
    two->end_writing(4);
    EXPECT_TRUE(one->end_earlier_writes(5));
    EXPECT_FALSE(two->begin_writing(4));
    EXPECT_TRUE(two->begin_writing(5));
    two->end_writing(5);
}

TEST(ClientSlots, DeathFreesAndAStopDoesNot) {
    auto slots = make_slots();
    const uint32_t number = *slots->assign();
    EXPECT_EQ(slots->confirm(number).code(), Code::kInvalidArgument) << "nobody has locked it yet";
    Child child([&](const Child::Ready& ready) {
        const auto slot = acquire(*slots, number);
        if (!slot || slot->number() != number) {
            return false;
        }
        slot->set_confirmed();
        if (!slot->publish_hazard(64, 99)) {
            return false;
        }
        slot->touch(7);
        slot->add_counter(3, 5);
        ready();
        wait_for_signal();
        return true;
    });
    ASSERT_TRUE(child.wait_ready());
    ASSERT_TRUE(slots->confirm(number).ok());
    EXPECT_TRUE(slots->hazard_present(99));
    EXPECT_EQ(slots->counters(number)[3], 5u);
    std::vector<uint32_t> touched;
    slots->drain_touches([&](uint32_t ref) { touched.push_back(ref); });
    EXPECT_EQ(touched, std::vector<uint32_t>{7});

    child.signal(SIGSTOP);
    child.wait_stopped();
    EXPECT_TRUE(slots->is_alive(number));
    EXPECT_TRUE(slots->collect_dead().empty());
    EXPECT_FALSE(slots->free_slot(number));
    EXPECT_TRUE(slots->hazard_present(99));

    child.end(SIGKILL);
    EXPECT_FALSE(slots->is_alive(number));
    EXPECT_EQ(slots->collect_dead(), std::vector<uint32_t>{number});
    EXPECT_TRUE(slots->collect_dead().empty()) << "each death is reported once";
    EXPECT_FALSE(slots->hazard_present(99));
    EXPECT_EQ(slots->total_counters()[3], 5u) << "counters outlive their client";
    EXPECT_TRUE(slots->free_slot(number));
}

// The kernel may drop its lock before the driver has stopped its copies.
TEST(ClientSlots, ADeadClientsGpusAreGivenTimeToStop) {
    auto slots = make_slots();
    const uint32_t number = *slots->assign();
    Child child([&](const Child::Ready& ready) {
        const auto slot = acquire(*slots, number);
        slot->set_confirmed();
        slot->set_reached_by_devices();
        if (!slot->publish_hazard(64, 99)) {
            return false;
        }
        ready();
        wait_for_signal();
        return true;
    });
    ASSERT_TRUE(child.wait_ready());
    ASSERT_TRUE(slots->confirm(number).ok());
    const uint64_t killed_ms = boottime_ms();
    child.end(SIGKILL);
    EXPECT_TRUE(slots->is_alive(number)) << "its reservations are nobody else's yet";
    EXPECT_TRUE(slots->collect_dead().empty());
    EXPECT_FALSE(slots->free_slot(number));
    EXPECT_TRUE(slots->hazard_present(99));
    while (slots->collect_dead().empty()) {
        ASSERT_LT(boottime_ms(), killed_ms + 20'000);
        EXPECT_TRUE(slots->hazard_present(99));
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    EXPECT_GE(boottime_ms(), killed_ms + ClientSlots::kDeviceDrainMs);
    EXPECT_FALSE(slots->is_alive(number));
    EXPECT_FALSE(slots->hazard_present(99));
    EXPECT_TRUE(slots->free_slot(number));
}

// The node died with its client: the next one waits, too.
TEST(ClientSlots, ADeadClientsGpusAreGivenTimeToStopOverARestart) {
    const TempDir folder;
    const auto open = [&] { return std::move(*ClientSlots::open(folder.path(), "clients")); };
    auto slots = open();
    const uint32_t number = *slots->assign();
    Child child([&](const Child::Ready& ready) {
        const auto slot = acquire(*slots, number);
        slot->set_confirmed();
        slot->set_reached_by_devices();
        const bool held = slot->publish_hazard(64, 99).has_value();
        ready();
        wait_for_signal();
        return held;
    });
    ASSERT_TRUE(child.wait_ready());
    ASSERT_TRUE(slots->confirm(number).ok());
    child.end(SIGKILL);
    slots = nullptr;
    slots = open();
    EXPECT_TRUE(slots->is_alive(number));
    EXPECT_TRUE(slots->holds_block(1, 64));
    const Deadline deadline = Deadline::after_ms(20'000);
    while (slots->collect_dead().empty()) {
        ASSERT_FALSE(deadline.expired());
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    EXPECT_FALSE(slots->holds_block(1, 64));
    EXPECT_TRUE(slots->free_slot(number));
}

// Nothing that the last client of a number left, or still writes, reaches the next one.
TEST(ClientSlots, AReusedSlotIsClean) {
    auto slots = make_slots();
    const uint32_t first = *slots->assign();
    Child child([&](const Child::Ready& ready) {
        const auto slot = acquire(*slots, first);
        slot->set_confirmed();
        slot->publish_hazard(0, 1234);
        slot->touch(1);
        ready();
        wait_for_signal();
        return true;
    });
    ASSERT_TRUE(child.wait_ready());
    ASSERT_TRUE(slots->confirm(first).ok());
    child.end(SIGKILL);
    Fd kept(dup(slots->fd(first)));  // somebody has a descriptor still
    ASSERT_EQ(slots->collect_dead().size(), 1u);
    ASSERT_TRUE(slots->free_slot(first));
    uint32_t number = *slots->assign();
    for (; number != first; number = *slots->assign()) {
        ASSERT_TRUE(slots->free_slot(number));
    }
    const auto slot = acquire(*slots, number);
    ASSERT_TRUE(slots->confirm(number).ok());
    EXPECT_FALSE(slots->hazard_present(1234));
    slots->drain_touches([](uint32_t ref) { FAIL() << ref; });
    const Generation forged = 4321;
    ASSERT_EQ(pwrite(kept.get(), &forged, sizeof forged, kSlotPageOffset), ssize_t(sizeof forged));
    EXPECT_FALSE(slots->hazard_present(forged));
}

// fcntl(2): closing any descriptor of a file drops the process's locks on it. The registry
// therefore keeps every one that reaches the process.
TEST(ClientSlots, FurtherDescriptorsDoNotDropTheLock) {
    auto slots = make_slots();
    const uint32_t number = *slots->assign();
    Child child([&](const Child::Ready& ready) {
        auto slot = acquire(*slots, number);
        SlotRegistry::instance().dispose(Fd(dup(slots->fd(number))));
        auto again = acquire(*slots, number);  // a second connection: the same slot once more
        if (!slot || !again || again->number() != number) {
            return false;
        }
        again.reset();
        SlotRegistry::instance().dispose(Fd(dup(slots->fd(number))));
        const auto wrong = SlotRegistry::instance().acquire(Fd(dup(slots->fd(number))), number + 1);
        if (wrong.code() != Code::kVersionMismatch) {
            return false;
        }
        ready();
        wait_for_signal();
        return true;
    });
    ASSERT_TRUE(child.wait_ready());
    EXPECT_TRUE(slots->is_alive(number));
}

// The control for the test above: without the registry, one close(2) is enough.
TEST(ClientSlots, ABareCloseWouldDropTheLock) {
    auto slots = make_slots();
    const uint32_t number = *slots->assign();
    Child child([&](const Child::Ready& ready) {
        const auto slot = acquire(*slots, number);
        const int stray = dup(slots->fd(number));
        close(stray);
        ready();
        wait_for_signal();
        return true;
    });
    ASSERT_TRUE(child.wait_ready());
    EXPECT_FALSE(slots->is_alive(number));
}

TEST(ClientSlots, TheLastHandleGivesTheSlotBack) {
    auto slots = make_slots();
    const uint32_t number = *slots->assign();
    Child child([&](const Child::Ready& ready) {
        auto slot = acquire(*slots, number);
        auto second = acquire(*slots, number);
        slot->set_confirmed();
        slot->publish_hazard(0, 77);
        slot.reset();
        if (!second->usable()) {
            return false;
        }
        second.reset();
        ready();
        wait_for_signal();
        return true;
    });
    ASSERT_TRUE(child.wait_ready());
    EXPECT_FALSE(slots->is_alive(number));
    EXPECT_TRUE(slots->free_slot(number));
}

TEST(ClientSlots, ASlotIsOneProcessesOnly) {
    auto slots = make_slots();
    const uint32_t number = *slots->assign();
    Child first([&](const Child::Ready& ready) {
        const auto slot = acquire(*slots, number);
        ready();
        wait_for_signal();
        return true;
    });
    ASSERT_TRUE(first.wait_ready());
    Child second([&](const Child::Ready& ready) {
        const auto slot = SlotRegistry::instance().acquire(Fd(dup(slots->fd(number))), number);
        if (slot.code() != Code::kUnavailable) {
            return false;
        }
        ready();
        return true;
    });
    ASSERT_TRUE(second.wait_ready());
    EXPECT_EQ(second.end(0), 0);
    // The node keeps away from a lock that it did not expect, too.
    EXPECT_FALSE(slots->free_slot(number));
}

// A child of a client shares its parent's sockets and must not disturb its slot.
TEST(ClientSlots, AForkedChildKeepsItsHandsOff) {
    auto slots = make_slots();
    const uint32_t number = *slots->assign();
    Child client([&](const Child::Ready& ready) {
        auto slot = acquire(*slots, number);
        slot->set_confirmed();
        const auto handle = slot->publish_hazard(0, 55);
        const pid_t grandchild = fork();
        if (grandchild == 0) {
            const bool refused =
                !slot->usable() && !slot->publish_hazard(0, 66) && !slot->owner_alive();
            slot->touch(1);
            slot->add_counter(0, 1);
            slot->clear_hazard(*handle);
            slot.reset();
            _exit(refused ? 0 : 1);
        }
        int status = 1;
        waitpid(grandchild, &status, 0);
        if (status != 0 || !slot->usable()) {
            return false;
        }
        ready();
        wait_for_signal();
        return true;
    });
    ASSERT_TRUE(client.wait_ready());
    ASSERT_TRUE(slots->confirm(number).ok());
    EXPECT_TRUE(slots->hazard_present(55));
    EXPECT_EQ(slots->counters(number)[0], 0u);
}

TEST(ClientSlots, AForkedChildMayHaveASlotOfItsOwnAndOutliveItsParent) {
    auto slots = make_slots();
    const uint32_t parents = *slots->assign();
    const uint32_t childs = *slots->assign();
    int life[2];
    ASSERT_EQ(pipe2(life, O_CLOEXEC), 0);
    Fd hold_grandchild(life[1]);
    Fd grandchild_waits(life[0]);
    Child client([&](const Child::Ready& ready) {
        const auto slot = acquire(*slots, parents);
        if (fork() == 0) {
            const auto own = acquire(*slots, childs);
            if (own && own->number() == childs) {
                ready();
            }
            hold_grandchild.reset();
            char byte = 0;
            _exit(static_cast<int>(read(grandchild_waits.get(), &byte, 1)));
        }
        wait_for_signal();
        return true;
    });
    ASSERT_TRUE(client.wait_ready());
    EXPECT_TRUE(slots->is_alive(parents));
    EXPECT_TRUE(slots->is_alive(childs));
    client.end(SIGKILL);
    EXPECT_FALSE(slots->is_alive(parents)) << "a fork does not inherit the lock";
    EXPECT_TRUE(slots->is_alive(childs));
    hold_grandchild.reset();
    EXPECT_TRUE(testing::eventually([&] { return !slots->is_alive(childs); }));
}

TEST(ClientSlots, ClientsSeeTheOwnersDeath) {
    Fd file(memfd_create("slot", MFD_CLOEXEC));
    ASSERT_EQ(ftruncate(file.get(), static_cast<off_t>(kSlotFileBytes)), 0);
    SlotHeader header{kSlotMagic, kLayoutVersion, kSlotBytes, 0, 0};
    ASSERT_EQ(pwrite(file.get(), &header, sizeof(header), 0), ssize_t(sizeof(header)));
    Child owner([&](const Child::Ready& ready) {
        FileKey key;
        if (!SlotRegistry::instance().adopt_owner(Fd(dup(file.get())), &key).ok()) {
            return false;
        }
        ready();
        wait_for_signal();
        return true;
    });
    ASSERT_TRUE(owner.wait_ready());
    auto slot = SlotRegistry::instance().acquire(std::move(file), 0);
    ASSERT_TRUE(slot.ok());
    EXPECT_TRUE((*slot)->owner_alive());
    owner.end(SIGKILL);
    EXPECT_FALSE((*slot)->owner_alive());
}

// Embedded mode: node and client in one process, where record locks do not conflict.
TEST(ClientSlots, NodeAndClientInOneProcess) {
    auto slots = make_slots();
    const uint32_t number = *slots->assign();
    EXPECT_FALSE(slots->is_alive(number));
    auto slot = acquire(*slots, number);
    ASSERT_TRUE(slot);
    EXPECT_FALSE(slot->usable());
    EXPECT_FALSE(slot->publish_hazard(0, 5)) << "not before the node has confirmed";
    ASSERT_TRUE(slots->confirm(number).ok());
    slot->set_confirmed();
    EXPECT_TRUE(slot->owner_alive());
    EXPECT_TRUE(slots->is_alive(number));
    ASSERT_TRUE(slot->publish_hazard(0, 5));
    EXPECT_TRUE(slots->hazard_present(5));
    slot.reset();
    EXPECT_FALSE(slots->is_alive(number));
    EXPECT_EQ(slots->collect_dead(), std::vector<uint32_t>{number});
    EXPECT_TRUE(slots->free_slot(number));
    slot = acquire(*slots, *slots->assign());
    slot->set_confirmed();
    slots.reset();
    EXPECT_FALSE(slot->owner_alive());
    EXPECT_TRUE(slot->usable()) << "the client outlives an embedded node without harm";
}

TEST(ClientSlots, RunsOutAtTheLimit) {
    auto slots = make_slots();
    for (uint32_t i = 0; i < kSlotCount; ++i) {
        ASSERT_TRUE(slots->assign().ok());
    }
    EXPECT_EQ(slots->assign().code(), Code::kOverloaded);
    EXPECT_TRUE(slots->free_slot(500));
    EXPECT_EQ(*slots->assign(), 500u);
    EXPECT_FALSE(slots->free_slot(kSlotCount));
}

// Its client can shorten its file; that costs nobody else anything, and its death is still seen.
TEST(ClientSlots, AShortenedSlotIsLost) {
    const TempDir folder;
    auto opened = ClientSlots::open(folder.path(), "clients");
    ASSERT_TRUE(opened.ok()) << opened.status().to_string();
    auto slots = std::move(*opened);
    const uint32_t number = *slots->assign();
    const uint32_t others = *slots->assign();
    const auto other = acquire(*slots, others);
    ASSERT_TRUE(slots->confirm(others).ok());
    other->set_confirmed();
    ASSERT_TRUE(other->publish_hazard(0, 7));
    Child child([&](const Child::Ready& ready) {
        const auto slot = acquire(*slots, number);
        slot->set_confirmed();
        if (!slot->publish_hazard(0, 8) || ftruncate(slots->fd(number), 0) != 0 ||
            slot->publish_hazard(0, 9)) {
            return false;
        }
        ready();
        wait_for_signal();
        return true;
    });
    ASSERT_TRUE(child.wait_ready());
    ASSERT_TRUE(slots->confirm(number).ok());
    EXPECT_FALSE(slots->hazard_present(8));
    EXPECT_TRUE(slots->hazard_present(7));
    EXPECT_EQ(slots->collect_lost(), std::vector<uint32_t>{number});
    EXPECT_TRUE(slots->collect_lost().empty());
    EXPECT_EQ(slots->live_slots(), std::vector<uint32_t>{others});
    EXPECT_TRUE(slots->is_alive(number));
    EXPECT_FALSE(slots->free_slot(number));
    EXPECT_TRUE(slots->collect_dead().empty());

    // A new life of the node finds it lost, too.
    slots.reset();
    slots = std::move(*ClientSlots::open(folder.path(), "clients"));
    EXPECT_TRUE(slots->kept());
    EXPECT_EQ(slots->live_slots(), std::vector<uint32_t>{others});
    EXPECT_TRUE(slots->hazard_present(7));
    EXPECT_TRUE(slots->is_alive(number));
    child.end(SIGKILL);
    const Deadline deadline = Deadline::after_ms(20'000);
    while (slots->collect_dead() != std::vector<uint32_t>{number}) {
        ASSERT_FALSE(deadline.expired());  // whether it used GPUs cannot be read: it is waited for
    }
    EXPECT_TRUE(slots->free_slot(number));
}

// What its client could do to keep its file from a new life of the node: nothing but lose it.
TEST(ClientSlots, AClientThatTakesTheOwnersLockIsLost) {
    const TempDir folder;
    auto slots = std::move(*ClientSlots::open(folder.path(), "clients"));
    const uint32_t number = *slots->assign();
    const Fd file(dup(slots->fd(number)));
    slots.reset();
    Child child([&](const Child::Ready& ready) {
        const auto slot = SlotRegistry::instance().acquire(Fd(dup(file.get())), number);
        FileKey key;
        if (!slot.ok() || !SlotRegistry::instance().adopt_owner(Fd(dup(file.get())), &key).ok()) {
            return false;
        }
        ready();
        wait_for_signal();
        return true;
    });
    ASSERT_TRUE(child.wait_ready());
    slots = std::move(*ClientSlots::open(folder.path(), "clients"));
    EXPECT_TRUE(slots->live_slots().empty());
    EXPECT_TRUE(slots->is_alive(number));
    child.end(SIGKILL);
    EXPECT_EQ(slots->collect_dead(), std::vector<uint32_t>{number});
}

// A file for each, and none of them is left when they are gone.
TEST(ClientSlots, FilesComeAndGo) {
    const TempDir folder;
    const auto names = [&] {
        std::set<std::string> found;
        for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
            found.insert(entry.path().filename());
        }
        return found;
    };
    auto slots = std::move(*ClientSlots::open(folder.path(), "clients"));
    ASSERT_EQ(*slots->assign(), 0u);
    ASSERT_EQ(*slots->assign(), 1u);
    EXPECT_EQ(names(), (std::set<std::string>{"clients", "clients.0", "clients.1"}));
    EXPECT_TRUE(slots->free_slot(0));
    EXPECT_EQ(names(), (std::set<std::string>{"clients", "clients.1"}));
    slots.reset();
    std::ofstream(folder.path() + "/clients.x") << "not a slot";
    slots = std::move(*ClientSlots::open(folder.path(), "clients"));
    EXPECT_EQ(names(), (std::set<std::string>{"clients", "clients.x"})) << "nobody had locked it";
    ASSERT_EQ(*slots->assign(), 0u);
    slots->remove_files();
    EXPECT_EQ(names(), std::set<std::string>{"clients.x"});
}

// Clients of a release whose slots all lay in the clients file: this one does not scan them.
TEST(ClientSlots, SlotsOfAnEarlierReleaseMustNotBeInUse) {
    const TempDir folder;
    const std::string path = folder.path() + "/clients";
    Fd file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    const ClientsHeader header{kClientsMagic, 1, kSlotCount, kSlotBytes, 0};
    ASSERT_EQ(pwrite(file.get(), &header, sizeof header, 0), ssize_t(sizeof header));
    ASSERT_EQ(ftruncate(file.get(), static_cast<off_t>((kSlotCount + 1) * kSlotBytes)), 0);
    {
        Child client([&](const Child::Ready& ready) {
            struct flock lock{};
            lock.l_type = F_WRLCK;
            lock.l_start = static_cast<off_t>(5 * kSlotBytes);
            lock.l_len = 1;
            if (fcntl(file.get(), F_SETLK, &lock) != 0) {
                return false;
            }
            ready();
            wait_for_signal();
            return true;
        });
        ASSERT_TRUE(client.wait_ready());
        EXPECT_EQ(ClientSlots::open(folder.path(), "clients").code(), Code::kVersionMismatch);
    }
    const auto slots = ClientSlots::open(folder.path(), "clients");
    ASSERT_TRUE(slots.ok()) << slots.status().to_string();
    EXPECT_TRUE((*slots)->kept());
}

TEST(ClientSlots, TheTouchRingIsLossyAndBounded) {
    auto slots = make_slots();
    const uint32_t number = *slots->assign();
    const auto slot = acquire(*slots, number);
    ASSERT_TRUE(slots->confirm(number).ok());
    slot->set_confirmed();
    for (uint32_t i = 0; i < kSlotTouches + 100; ++i) {
        slot->touch(i);
    }
    std::vector<uint32_t> touched;
    const auto drain = [&] { slots->drain_touches([&](uint32_t ref) { touched.push_back(ref); }); };
    drain();
    ASSERT_EQ(touched.size(), kSlotTouches);
    EXPECT_EQ(touched.front(), 100u);
    EXPECT_EQ(touched.back(), kSlotTouches + 99);
    // A client that writes nonsense into its counter costs one ring's worth of work.
    auto mapping = Mapping::map(slots->fd(number), kSlotFileBytes, true);
    ASSERT_TRUE(mapping.ok());
    for (const uint64_t nonsense : {uint64_t{0}, UINT64_MAX, uint64_t{1} << 63}) {
        reinterpret_cast<SlotPage*>((*mapping).data() + kSlotPageOffset)
            ->touch_count.store(nonsense);
        touched.clear();
        drain();
        EXPECT_LE(touched.size(), kSlotTouches);
    }
}

TEST(SlotRegistry, RefusesForeignFiles) {
    Fd file(memfd_create("other", MFD_CLOEXEC));
    const auto acquire_dup = [&] {
        return SlotRegistry::instance().acquire(Fd(dup(file.get())), 0).code();
    };
    EXPECT_EQ(acquire_dup(), Code::kVersionMismatch);
    ASSERT_EQ(ftruncate(file.get(), static_cast<off_t>(kSlotFileBytes)), 0);
    EXPECT_EQ(acquire_dup(), Code::kVersionMismatch);
    SlotHeader header{kSlotMagic, kLayoutVersion + 1, kSlotBytes, 0, 0};
    ASSERT_EQ(pwrite(file.get(), &header, sizeof(header), 0), ssize_t(sizeof(header)));
    EXPECT_EQ(acquire_dup(), Code::kVersionMismatch);
    header.layout_version = kLayoutVersion;
    header.number = 1;
    ASSERT_EQ(pwrite(file.get(), &header, sizeof(header), 0), ssize_t(sizeof(header)));
    EXPECT_EQ(acquire_dup(), Code::kVersionMismatch);
    header.number = 0;
    ASSERT_EQ(pwrite(file.get(), &header, sizeof(header), 0), ssize_t(sizeof(header)));
    EXPECT_EQ(acquire_dup(), Code::kOk);
    EXPECT_FALSE(SlotRegistry::instance().acquire(Fd(), 0).ok());
}

}  // namespace
}  // namespace kvstore
