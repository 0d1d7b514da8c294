// The model test of the shared-memory rules: runs the product's own protocol steps on a simulated
// machine in seeded interleavings, and shows that every guard is needed.
//
// KVSTORE_MODEL_SEEDS sets the number of seeds of the run with all guards (default 50,000 a plot).
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/index/model/scenarios.h"

namespace kvstore::model {
namespace {

// One thread of the host runs everything, so ThreadSanitizer has nothing to say; it only knows
// fibers by heavy bookkeeping.
class Model : public ::testing::Test {
#if defined(__SANITIZE_THREAD__)
  protected:
    void SetUp() override { GTEST_SKIP() << "single-threaded"; }
#endif
};

struct Plot {
    const char* name;
    void (*run)(Machine&);
};
constexpr Plot kPlots[] = {{"reuse", reuse},
                           {"reservation", reservation},
                           {"slots", slots},
                           {"attach", attach},
                           {"spares", spares}};
constexpr uint64_t kSeedsPerGuard = 200'000;

struct Rule {
    Guard guard;
    const char* id;
    const char* text;
};
constexpr Rule kRules[] = {
    {Guard::kReadAcquireGeneration, "ReadAcquireGeneration", "3 load generation with acquire"},
    {Guard::kReadAcquireFence, "ReadAcquireFence", "3 acquire fence after the copy"},
    {Guard::kReadRecheckGeneration, "ReadRecheckGeneration", "3 reload generation"},
    {Guard::kReadRecheckRetired, "ReadRecheckRetired", "3 reload retired"},
    {Guard::kHoldHazard, "HoldHazard", "2 publish the hazard"},
    {Guard::kHoldFullFence, "HoldFullFence", "2 full fence after the hazard"},
    {Guard::kHoldRecheckGeneration, "HoldRecheckGeneration", "2 re-check generation"},
    {Guard::kHoldRecheckRetired, "HoldRecheckRetired", "2 re-check retired"},
    {Guard::kHoldAfterConfirm, "HoldAfterConfirm", "1 no hold before the slot is confirmed"},
    {Guard::kReuseInvalidate, "ReuseInvalidate", "2 invalidate before reuse"},
    {Guard::kReuseFullFence, "ReuseFullFence", "2 full fence before the scan"},
    {Guard::kReuseScanHazards, "ReuseScanHazards", "2 scan live slots"},
    {Guard::kPublishRelease, "PublishRelease", "3 publish with release"},
    {Guard::kWriterStoreFence, "WriterStoreFence", "3 sfence after non-temporal stores"},
    {Guard::kGenerationFresh, "GenerationFresh", "- generations are never reused"},
    {Guard::kDeathNeedsLock, "DeathNeedsLock", "1 only a released lock proves death"},
    {Guard::kSlotClearedBeforeReuse, "SlotClearedBeforeReuse", "1 slots are cleared before reuse"},
    {Guard::kReservationQuarantine, "ReservationQuarantine", "1 expired blocks are quarantined"},
    {Guard::kCommitNeedsReservation, "CommitNeedsReservation",
     "1 expired reservations cannot commit"},
    {Guard::kAttachOwnerLock, "AttachOwnerLock", "8 attach needs the owner's lock"},
    {Guard::kAttachRetire, "AttachRetire", "- attach retires the old index"},
    {Guard::kAttachRetireFence, "AttachRetireFence", "- full fence after retiring"},
    {Guard::kAttachRetireFirst, "AttachRetireFirst", "- retire before anything is freed"},
    {Guard::kAttachScanHazards, "AttachScanHazards", "1 holds survive a node restart"},
    {Guard::kAttachReservations, "AttachReservations", "1 reservations survive a node restart"},
    {Guard::kSpareTakenAtOnce, "SpareTakenAtOnce", "1 a spare is taken before it is written"},
    {Guard::kSpareRevokedAtOnce, "SpareRevokedAtOnce", "1 a spare is free once it is revoked"},
};
static_assert(std::size(kRules) == steps::kGuardCount);

// Rules that no interleaving can show, and where they are tested.
constexpr const char* kTestedElsewhere[][2] = {
    {"1 SIGSTOP is not death, SIGKILL is", "index_client_slots_test DeathFreesAndAStopDoesNot"},
    {"1 no stray close drops a lock", "index_client_slots_test FurtherDescriptorsDoNotDropTheLock"},
    {"1 embedded mode: registry for locks", "index_client_slots_test NodeAndClientInOneProcess"},
    {"2 the index is mapped read-only", "index_index_test CannotWriteToTheIndex"},
    {"2 a full slot falls back", "index_object_reader_test AFullSlotSaysSo"},
    {"3 at most four tries", "index_object_reader_test RightBytesOrNoneWhileTheObjectIsReplaced"},
    {"4 the seal binds the identity", "index_object_reader_test TheSealBindsTheIdentity"},
    {"5 nothing client-writable is trusted",
     "index_client_slots_test TheTouchRingIsLossyAndBounded"},
    {"5 readers stay within bounds", "index_index_test StaysWithinBoundsOfACorruptedIndex"},
    {"6 only pre-faulted memory is handed out", "memory_segment_test"},
    {"8 fork", "index_client_slots_test AForkedChildKeepsItsHandsOff"},
    {"8 the owner's lock", "index_client_slots_test ClientsSeeTheOwnersDeath"},
    {"9 readers check expiry", "index_index_test EveryReaderChecksExpiry"},
};

struct Finding {
    const char* violation = nullptr;
    const char* plot = "";
    const char* machine = "";
    uint64_t seed = 0;
};

Finding explore(const Plot& plot, uint64_t seed, Guard removed) {
    Machine machine(seed, removed);
    plot.run(machine);
    return {machine.violation(), plot.name, machine.relaxed() ? "relaxed" : "tso", seed};
}

std::string describe(const Finding& f) {
    return std::string(f.plot) + " seed " + std::to_string(f.seed) + " (" + f.machine +
           "): " + f.violation;
}

// The machine itself, by the classical litmus tests: how often out of 2,000 seeds does each of the
// two kinds of machine show the outcome that its order permits or forbids?
struct Outcomes {
    int tso = 0;
    int relaxed = 0;
};
Outcomes count(bool (*litmus)(Machine&)) {
    Outcomes outcomes;
    for (uint64_t seed = 1; seed <= 2'000; ++seed) {
        Machine machine(seed, Guard::kCount);
        if (litmus(machine)) {
            ++(machine.relaxed() ? outcomes.relaxed : outcomes.tso);
        }
    }
    return outcomes;
}

template <bool kFence>
bool both_miss_the_others_store(Machine& machine) {
    const Cell x = machine.cell(0);
    const Cell y = machine.cell(0);
    uint64_t seen_x = 1;
    uint64_t seen_y = 1;
    const auto body = [](const Cell mine, const Cell other, uint64_t* seen) {
        return [=](Memory& m) {
            m.store(mine, 1, std::memory_order_release);
            if (kFence) {
                m.full_fence();
            }
            *seen = m.load(other, std::memory_order_acquire);
        };
    };
    machine.spawn(body(x, y, &seen_y));
    machine.spawn(body(y, x, &seen_x));
    machine.run();
    return seen_x == 0 && seen_y == 0;
}

template <std::memory_order kStore, std::memory_order kLoad, bool kNontemporal = false>
bool flag_without_data(Machine& machine) {
    const Cell data = machine.cell(0);
    const Cell flag = machine.cell(0);
    uint64_t seen_flag = 0;
    uint64_t seen_data = 0;
    machine.spawn([&](Memory& m) {
        if (kNontemporal) {
            m.store_nontemporal(data, 1);
        }
        if (!kNontemporal) {
            m.store(data, 1, std::memory_order_relaxed);
        }
        m.store(flag, 1, kStore);
    });
    machine.spawn([&](Memory& m) {
        seen_flag = m.load(flag, kLoad);
        seen_data = m.load(data, std::memory_order_relaxed);
    });
    machine.run();
    return seen_flag == 1 && seen_data == 0;
}

TEST_F(Model, TheMachineReordersWhatRealOnesDo) {
    constexpr auto kRelaxed = std::memory_order_relaxed;
    constexpr auto kAcquire = std::memory_order_acquire;
    constexpr auto kRelease = std::memory_order_release;
    const Outcomes buffered = count(both_miss_the_others_store<false>);
    EXPECT_GT(buffered.tso, 0);
    EXPECT_GT(buffered.relaxed, 0);
    const Outcomes fenced = count(both_miss_the_others_store<true>);
    EXPECT_EQ(fenced.tso + fenced.relaxed, 0);
    const Outcomes ordered = count(flag_without_data<kRelease, kAcquire>);
    EXPECT_EQ(ordered.tso + ordered.relaxed, 0);
    const Outcomes no_release = count(flag_without_data<kRelaxed, kAcquire>);
    EXPECT_EQ(no_release.tso, 0);
    EXPECT_GT(no_release.relaxed, 0);
    const Outcomes no_acquire = count(flag_without_data<kRelease, kRelaxed>);
    EXPECT_EQ(no_acquire.tso, 0);
    EXPECT_GT(no_acquire.relaxed, 0);
    const Outcomes streamed = count(flag_without_data<kRelease, kAcquire, true>);
    EXPECT_GT(streamed.tso, 0) << "x86 orders a release store before no non-temporal one";
    EXPECT_GT(streamed.relaxed, 0);
}

TEST_F(Model, AllGuardsKeepEveryInvariant) {
    const char* text = std::getenv("KVSTORE_MODEL_SEEDS");
    const uint64_t seeds = text != nullptr ? std::strtoull(text, nullptr, 10) : 50'000;
    for (const Plot& plot : kPlots) {
        for (uint64_t seed = 1; seed <= seeds; ++seed) {
            const Finding found = explore(plot, seed, Guard::kCount);
            ASSERT_EQ(found.violation, nullptr) << describe(found);
        }
    }
    std::printf("all guards: %zu plots x %llu seeds, no violation\n", std::size(kPlots),
                static_cast<unsigned long long>(seeds));
}

TEST_F(Model, EveryRemovedGuardIsFound) {
    std::printf("%-39s | %-24s | %-16s | %s\n", "rule", "guard removed", "found by", "violated");
    for (const Rule& rule : kRules) {
        Finding found;
        for (uint64_t seed = 1; seed <= kSeedsPerGuard && found.violation == nullptr; ++seed) {
            for (const Plot& plot : kPlots) {
                found = explore(plot, seed, rule.guard);
                if (found.violation != nullptr) {
                    break;
                }
            }
        }
        ASSERT_NE(found.violation, nullptr) << rule.id << " can be removed unnoticed";
        const std::string where = std::string(found.plot) + " " + std::to_string(found.seed);
        std::printf("%-39s | %-24s | %-16s | not: %s\n", rule.text, rule.id, where.c_str(),
                    found.violation);
        // A seed is worth printing only if it tells the same story again.
        for (const Plot& plot : kPlots) {
            if (plot.name != found.plot) {
                continue;
            }
            EXPECT_STREQ(explore(plot, found.seed, rule.guard).violation, found.violation);
            EXPECT_EQ(explore(plot, found.seed, Guard::kCount).violation, nullptr);
        }
    }
    for (const auto& row : kTestedElsewhere) {
        std::printf("%-39s | %-24s | %s\n", row[0], "(no interleaving)", row[1]);
    }
}

}  // namespace
}  // namespace kvstore::model
