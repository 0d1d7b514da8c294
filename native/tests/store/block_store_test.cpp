// The life of an object in the block store: every outcome of a put, a read, a remove and a death.
#include "store/block_store.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <thread>

#include "base/file.h"
#include "index/client_slots.h"
#include "index/index.h"
#include "index/slot_registry.h"
#include "tests/store/store_harness.h"

namespace kvstore {
namespace {

constexpr uint64_t kMiB = 1u << 20;

TEST(BlockStore, PutIsReadableAndCarriesItsIdentity) {
    StoreHarness h(4 * kMiB);
    EXPECT_EQ(h.miss("a"), MissReason::kAbsent);
    EXPECT_EQ(h.put("a", 1000), Code::kOk);
    EXPECT_TRUE(h.get("a"));
    EXPECT_EQ(h.put("a", 1000), Code::kAlreadyExists);
    const auto found = h.store->find(h.ns, h.key("a", h.version));
    ASSERT_TRUE(found.hold);
    EXPECT_EQ(found.version, h.version);
    EXPECT_EQ(h.store->find(h.ns, h.key("a", h.version + 1)).reason, MissReason::kVersion);
    h.expect_sound();
}

TEST(BlockStore, SizesAtTheEdges) {
    StoreHarness h(4 * kMiB);
    for (const uint64_t size : {0ull, 1ull, 64ull, 4096ull, 4097ull}) {
        const std::string name = "size" + std::to_string(size);
        EXPECT_EQ(h.put(name, size), Code::kOk) << size;
        EXPECT_TRUE(h.get(name)) << size;
    }
    EXPECT_EQ(h.put("whole", 4 * kMiB), Code::kOk);  // evicts everything else
    EXPECT_TRUE(h.get("whole"));
    EXPECT_EQ(h.store->stats().objects, 1u);
    const auto refused = h.reserve("more", 4 * kMiB + 1);
    EXPECT_EQ(refused.code, Code::kTooLarge);
    EXPECT_NE(refused.message.find("segment_size"), std::string::npos);
    EXPECT_TRUE(h.has("whole"));
    h.expect_sound();
}

TEST(BlockStore, KeysAreChecked) {
    StoreHarness h(kMiB);
    EXPECT_EQ(h.put("", 10), Code::kInvalidArgument);
    EXPECT_EQ(h.put(std::string(1025, 'k'), 10), Code::kInvalidArgument);
    EXPECT_EQ(h.put(std::string(1024, 'k'), 10), Code::kOk);
    EXPECT_TRUE(h.get(std::string(1024, 'k')));
}

TEST(BlockStore, UpsertReplacesALowerVersionOnly) {
    StoreHarness h(4 * kMiB);
    const auto late = h.reserve("a", 100);
    const auto winner = h.reserve("a", 200);
    ASSERT_EQ(h.finish(winner, "a", 20, 200).code, Code::kOk);
    EXPECT_EQ(h.finish(late, "a", 19, 100).code, Code::kAlreadyExists);
    EXPECT_TRUE(h.get("a"));
    EXPECT_EQ(h.store->find(h.ns, h.key("a")).length, 200u);
    h.version = 20;
    EXPECT_EQ(h.put("a", 300, true), Code::kOk);
    EXPECT_TRUE(h.get("a"));
    EXPECT_EQ(h.store->find(h.ns, h.key("a")).version, 21u);
    ASSERT_EQ(h.withdrawn.size(), 1u);
    EXPECT_EQ(h.withdrawn[0].reason, MissReason::kVersion);
    EXPECT_EQ(h.withdrawn[0].version, 20u);
    EXPECT_EQ(h.store->stats().replaced, 1u);
    h.expect_sound();
}

TEST(BlockStore, RemoveOvertakesAPutUnderWay) {
    StoreHarness h(4 * kMiB);
    const auto reserved = h.reserve("a", 100);
    EXPECT_EQ(h.store->grant(reserved.generation, 7), Code::kOk);
    EXPECT_EQ(h.store->remove_upto(h.ns, h.key("a"), 7), Code::kNotFound);
    EXPECT_EQ(h.store->grant(reserved.generation, 7), Code::kRemoved);
    EXPECT_EQ(h.finish(reserved, "a", 0, 100).code, Code::kRemoved);
    EXPECT_EQ(h.miss("a"), MissReason::kRemoved);
    const auto again = h.reserve("a", 100);
    EXPECT_EQ(h.finish(again, "a", 8, 100).code, Code::kOk);
    EXPECT_EQ(h.store->remove_upto(h.ns, h.key("a"), 7), Code::kNotFound);  // 8 is newer
    EXPECT_TRUE(h.get("a"));
    EXPECT_EQ(h.store->remove_upto(h.ns, h.key("a"), 8), Code::kOk);
    EXPECT_FALSE(h.get("a"));
    EXPECT_EQ(h.miss("a"), MissReason::kRemoved);
    EXPECT_EQ(h.store->stats().used_bytes, 0u);
    // Tombstones outlive every claim that was granted before them.
    EXPECT_EQ(h.store->stats().tombstones, 1u);
    h.clock_ms += 59'000;
    h.store->tick();
    EXPECT_EQ(h.store->stats().tombstones, 1u);
    h.clock_ms += 2'000;
    h.store->tick();
    EXPECT_EQ(h.store->stats().tombstones, 0u);
    h.expect_sound();
}

TEST(BlockStore, GenerationsOfOthersAreRefused) {
    StoreHarness h(4 * kMiB);
    const auto reserved = h.reserve("a", 100);
    const BlockStore::PublishItem item{reserved.generation, 0, 5};
    EXPECT_EQ(h.store->publish({2, -1}, {&item, 1})[0].code, Code::kInvalidArgument);
    EXPECT_EQ(h.store->abort({2, -1}, reserved.generation), Code::kInvalidArgument);
    EXPECT_EQ(h.store->abort(h.owner, reserved.generation + 1), Code::kInvalidArgument);
    EXPECT_EQ(h.store->hold({2, -1}, reserved.generation), Code::kNotFound);
    const BlockStore::PublishItem ungranted{reserved.generation, 0, 0};
    EXPECT_EQ(h.store->publish(h.owner, {&ungranted, 1})[0].code, Code::kInvalidArgument);
    EXPECT_EQ(h.store->abort(h.owner, reserved.generation), Code::kOk);
    EXPECT_EQ(h.store->abort(h.owner, reserved.generation), Code::kInvalidArgument);
    EXPECT_EQ(h.store->stats().used_bytes, 0u);
    h.expect_sound();
}

TEST(BlockStore, TimeOverIsExpiredUntilAborted) {
    StoreHarness h(4 * kMiB);
    const auto reserved = h.reserve("a", 100);
    EXPECT_EQ(h.store->grant(reserved.generation, 5), Code::kOk);
    h.clock_ms += limits::kReservationMs;
    EXPECT_EQ(h.store->grant(reserved.generation, 5), Code::kExpired);
    EXPECT_EQ(h.finish(reserved, "a", 5, 100).code, Code::kExpired);
    EXPECT_EQ(h.store->stats().quarantined, 1u);
    EXPECT_GT(h.store->stats().used_bytes, 0u);
    h.store->tick();
    EXPECT_GT(h.store->stats().used_bytes, 0u);
    EXPECT_EQ(h.store->abort(h.owner, reserved.generation), Code::kOk);
    EXPECT_EQ(h.store->stats().used_bytes, 0u);
    h.expect_sound();
}

// As after a restore from a checkpoint: what is in progress lasts longer, and nothing breaks.
TEST(BlockStore, TheClockMayGoBack) {
    StoreHarness h(4 * kMiB);
    h.clock_ms = 10'000'000;
    const auto before = h.reserve("before", 100);
    ASSERT_EQ(h.put("kept", 100), Code::kOk);
    const std::vector<BlockStore::Key> keys{h.key("kept")};
    const auto lease = h.store->lease_acquire(h.owner, h.ns, keys, 1, 1000);
    ASSERT_EQ(lease.length, 1u);
    h.clock_ms = 1000;
    const auto after = h.reserve("after", 100);
    h.store->tick();
    EXPECT_EQ(h.finish(after, "after", ++h.version, 100).code, Code::kOk);
    EXPECT_EQ(h.finish(before, "before", ++h.version, 100).code, Code::kOk);
    EXPECT_TRUE(h.get("kept") && h.get("before") && h.get("after"));
    const auto late = h.reserve("late", 100);
    h.clock_ms += h.options.reservation_ms + 1;
    h.store->tick();
    EXPECT_EQ(h.finish(late, "late", ++h.version, 100).code, Code::kExpired);
    h.expect_sound();
}

TEST(BlockStore, QuarantineLastsUntilTheSlotIsDead) {
    bool alive = true;
    BlockStore::Options options;
    options.slot_alive = [&alive](int) { return alive; };
    options.client_cap_bytes = 3 * kMiB;
    StoreHarness h(4 * kMiB, options);
    h.owner = {7, 3};
    const auto first = h.reserve("a", kMiB);
    const auto second = h.reserve("b", kMiB);
    ASSERT_EQ(first.code, Code::kOk);
    ASSERT_EQ(second.code, Code::kOk);
    h.clock_ms += 10 * limits::kReservationMs;
    h.store->tick();
    h.store->on_session_closed(7);  // a hint only: forked children keep sockets
    h.store->tick();
    EXPECT_EQ(h.store->stats().quarantined_bytes, 2 * kMiB);
    EXPECT_EQ(h.finish(first, "a", 1, kMiB).code, Code::kExpired);

    // Within the cap, over all sessions of the slot, and naming the setting.
    h.owner.session = 8;
    EXPECT_EQ(h.reserve("c", kMiB).code, Code::kOk);
    const auto refused = h.reserve("d", 1);
    EXPECT_EQ(refused.code, Code::kNoSpace);
    EXPECT_NE(refused.message.find("client_cap_bytes"), std::string::npos);

    // Pressure of another client never reaches the quarantined blocks.
    h.owner = {9, 4};
    for (int i = 0; i < 64; ++i) {
        const auto other = h.reserve("other" + std::to_string(i), kMiB / 4);
        if (other.code != Code::kOk) {
            continue;
        }
        EXPECT_TRUE(other.offset + kMiB / 4 <= first.offset || other.offset >= first.offset + kMiB);
        EXPECT_TRUE(other.offset + kMiB / 4 <= second.offset ||
                    other.offset >= second.offset + kMiB);
        h.finish(other, "other" + std::to_string(i), static_cast<Version>(i) + 1, kMiB / 4);
    }
    h.expect_sound();

    alive = false;
    h.store->tick();
    const auto stats = h.store->stats();
    EXPECT_EQ(stats.quarantined + stats.reservations, 0u);
    h.expect_sound();
}

TEST(BlockStore, OneObjectAboveTheCapIsStillPossible) {
    BlockStore::Options options;
    options.client_cap_bytes = kMiB;
    StoreHarness h(4 * kMiB, options);
    EXPECT_EQ(h.put("big", 2 * kMiB), Code::kOk);
    const auto big = h.reserve("big2", 2 * kMiB);
    EXPECT_EQ(big.code, Code::kOk);
    EXPECT_EQ(h.reserve("more", 1).code, Code::kNoSpace);
}

TEST(BlockStore, LimitsChangeForWhatIsReservedThen) {
    StoreHarness h(4 * kMiB);
    const auto early = h.reserve("early", 1000);
    h.store->set_limits(50, 4096);
    const auto late = h.reserve("late", 1000);
    ASSERT_EQ(late.code, Code::kOk);
    EXPECT_EQ(h.reserve("more", 4096).code, Code::kNoSpace);
    h.clock_ms += 51;
    EXPECT_EQ(h.finish(late, "late", 1, 1000).code, Code::kExpired);
    h.clock_ms += limits::kReservationMs - 60;
    EXPECT_EQ(h.finish(early, "early", 2, 1000).code, Code::kOk);
    h.store->abort(h.owner, late.generation);
    h.store->set_limits(120'000, 0);  // 0: half of the segment again
    const auto longer = h.reserve("longer", kMiB / 4);
    ASSERT_EQ(longer.code, Code::kOk);
    EXPECT_EQ(h.reserve("more", kMiB / 4).code, Code::kOk);
    h.clock_ms += 119'000;
    EXPECT_EQ(h.finish(longer, "longer", 3, kMiB / 4).code, Code::kOk);
    EXPECT_TRUE(h.store->audit().ok());
}

TEST(BlockStore, ASessionWithoutSlotFreesWhatItReserved) {
    StoreHarness h(4 * kMiB);
    h.reserve("a", 1000);
    h.reserve("b", 1000);
    h.store->on_session_closed(2);
    EXPECT_EQ(h.store->stats().reservations, 2u);
    h.store->on_session_closed(1);
    EXPECT_EQ(h.store->stats().used_bytes, 0u);
    h.expect_sound();
}

TEST(BlockStore, AHeldBlockKeepsItsBytes) {
    StoreHarness h(kMiB);
    ASSERT_EQ(h.put("a", 1000), Code::kOk);
    auto found = h.store->find(h.ns, h.key("a"));
    const auto bytes = payload_of("a", found.version, 1000);
    auto second = found.hold;
    EXPECT_EQ(h.store->remove_upto(h.ns, h.key("a"), h.version), Code::kOk);
    EXPECT_EQ(h.store->stats().deferred, 1u);
    for (int i = 0; i < 2000; ++i) {
        h.put("n" + std::to_string(i), 1000);
    }
    EXPECT_EQ(std::memcmp(found.data, bytes.data(), 1000), 0);
    found.hold.reset();
    EXPECT_EQ(h.store->stats().deferred, 1u);
    second.reset();
    EXPECT_EQ(h.store->stats().deferred, 0u);
    h.expect_sound();
}

TEST(BlockStore, AHoldMayOutliveTheStore) {
    StoreHarness h(kMiB);
    ASSERT_EQ(h.put("a", 1000), Code::kOk);
    const auto found = h.store->find(h.ns, h.key("a"));
    h.store.reset();
    EXPECT_EQ(std::memcmp(found.data, payload_of("a", found.version, 1000).data(), 1000), 0);
}

TEST(BlockStore, HoldsBySocketEndWithTheSessionOrTheSlot) {
    StoreHarness h(kMiB);
    ASSERT_EQ(h.put("a", 1000), Code::kOk);
    const Generation generation = h.store->find(h.ns, h.key("a")).generation;
    EXPECT_EQ(h.store->hold({5, -1}, generation), Code::kOk);
    EXPECT_EQ(h.store->hold({5, -1}, generation), Code::kOk);
    EXPECT_EQ(h.store->hold({6, 2}, generation), Code::kOk);
    EXPECT_EQ(h.store->hold({6, 2}, generation + 1), Code::kNotFound);
    EXPECT_EQ(h.store->remove_upto(h.ns, h.key("a"), h.version), Code::kOk);
    EXPECT_EQ(h.store->unhold({5, -1}, generation), Code::kOk);
    EXPECT_EQ(h.store->unhold({4, -1}, generation), Code::kNotFound);
    h.store->on_session_closed(5);
    h.store->on_session_closed(6);  // its process lives on and may read
    EXPECT_EQ(h.store->stats().deferred, 1u);
    h.store->on_slot_dead(2);
    EXPECT_EQ(h.store->stats().deferred, 0u);
    h.expect_sound();
}

TEST(BlockStore, ABlockThatALivingHazardNamesIsNotReused) {
    StoreHarness h(kMiB);
    ClientSlots& slots = h.store->client_slots();
    const auto number = slots.assign();
    ASSERT_TRUE(number.ok());
    auto slot = SlotRegistry::instance().acquire(Fd(dup(slots.fd(*number))), *number);
    ASSERT_TRUE(slot.ok()) << slot.status().to_string();
    ASSERT_TRUE(slots.confirm(*number).ok());
    (*slot)->set_confirmed();

    ASSERT_EQ(h.put("viewed", 1000), Code::kOk);
    auto found = h.store->find(h.ns, h.key("viewed"));
    const uint8_t* data = found.data;
    const auto hazard = (*slot)->publish_hazard(0, found.generation);
    ASSERT_TRUE(hazard);
    found.hold.reset();

    // Pressure goes round it; a remove withdraws it and keeps the block.
    for (int i = 0; i < 3000; ++i) {
        h.put("n" + std::to_string(i), 1000);
    }
    EXPECT_TRUE(h.get("viewed"));
    EXPECT_EQ(h.store->remove_upto(h.ns, h.key("viewed"), h.version), Code::kOk);
    EXPECT_EQ(h.store->stats().deferred, 1u);
    const auto bytes = payload_of("viewed", found.version, 1000);
    for (int i = 0; i < 3000; ++i) {
        h.put("m" + std::to_string(i), 1000);
    }
    EXPECT_EQ(std::memcmp(data, bytes.data(), 1000), 0);
    h.expect_sound();
    (*slot)->clear_hazard(*hazard);
    h.store->tick();
    EXPECT_EQ(h.store->stats().deferred, 0u);

    // Death ends hazards and reservations alike.
    found = h.store->find(h.ns, h.key("m2999"));
    ASSERT_TRUE((*slot)->publish_hazard(0, found.generation));
    found.hold.reset();
    h.store->remove_upto(h.ns, h.key("m2999"), h.version);
    h.owner = {3, static_cast<int>(*number)};
    ASSERT_EQ(h.reserve("lost", 1000).code, Code::kOk);
    EXPECT_EQ(h.store->stats().deferred, 1u);
    slot->reset();
    h.store->tick();
    EXPECT_EQ(h.store->stats().deferred, 0u);
    EXPECT_EQ(h.store->stats().reservations, 0u);
    h.expect_sound();
}

TEST(BlockStore, AReservationMadeAfterItsSlotsDeathIsReaped) {
    StoreHarness h(kMiB);
    ASSERT_EQ(h.put("a", 1000), Code::kOk);
    const Generation generation = h.store->find(h.ns, h.key("a")).generation;
    h.owner = {3, 900};  // nobody locks it: a request that was in progress when its client died
    ASSERT_EQ(h.reserve("lost", 1000).code, Code::kOk);
    ASSERT_EQ(h.store->hold(h.owner, generation), Code::kOk);
    h.store->on_session_closed(3);
    h.store->remove_upto(h.ns, h.key("a"), h.version);
    h.store->tick();
    const auto stats = h.store->stats();
    EXPECT_EQ(stats.reservations + stats.quarantined + stats.deferred, 0u);
    EXPECT_EQ(stats.used_bytes, 0u);
    h.expect_sound();
}

TEST(BlockStore, ReadersOfTheIndexSeeWhatIsPublished) {
    StoreHarness h(kMiB);
    auto reader = IndexReader::attach(h.store->index_fd(), h.store->segment_bytes());
    ASSERT_TRUE(reader.ok());
    ASSERT_EQ(h.put("a", 1000), Code::kOk);
    const auto found = (*reader)->probe(h.ns->id, h.key("a").hash, "a", h.clock_ms);
    ASSERT_TRUE(found);
    EXPECT_EQ(found->length, 1000u);
    EXPECT_EQ(found->version, h.version);
    h.store->flush(h.ns);
    EXPECT_EQ((*reader)->flush_counter(), h.store->flush_counter());
    EXPECT_EQ(h.store->flush_counter(), 1u);
    h.store->tick();
    EXPECT_FALSE((*reader)->still_valid(found->ref, found->gen));
    h.store.reset();
    EXPECT_TRUE((*reader)->retired());
}

TEST(BlockStore, FlushIsAtOnceAndSweptLater) {
    StoreHarness h(4 * kMiB);
    for (int i = 0; i < 100; ++i) {
        h.put("k" + std::to_string(i), 1000);
    }
    auto pinned = h.item("pinned", 1000);
    pinned.pin = Pin::kHard;
    ASSERT_EQ(h.put_item(pinned), Code::kOk);
    const auto under_way = h.reserve("late", 1000);
    const NamespaceRef old = h.ns;
    h.store->flush(old);
    EXPECT_EQ(h.miss("k1"), MissReason::kFlushed);
    EXPECT_EQ(h.put("k200", 1000), Code::kRemoved);
    EXPECT_EQ(h.finish(under_way, "late", 999, 1000).code, Code::kRemoved);
    h.ns = h.namespace_at(1);
    EXPECT_EQ(h.miss("k1"), MissReason::kFlushed);  // known by the previous epoch
    EXPECT_EQ(h.miss("never"), MissReason::kAbsent);
    EXPECT_EQ(h.put("k1", 1000), Code::kOk);
    EXPECT_TRUE(h.get("k1"));
    std::vector<std::string> listed;
    h.store->for_each_object([&](std::span<const BlockStore::ObjectInfo> batch) {
        for (const auto& object : batch) {
            listed.push_back(object.key);
        }
    });
    EXPECT_EQ(listed, std::vector<std::string>{"k1"});
    h.store->tick();
    EXPECT_EQ(h.store->stats().objects, 1u);
    EXPECT_EQ(h.store->stats().flushed, 101u);
    EXPECT_EQ(h.miss("k2"), MissReason::kFlushed);
    EXPECT_EQ(h.withdrawn.size(), 101u);
    h.expect_sound();
}

TEST(BlockStore, TtlEndsAnObject) {
    StoreHarness h(4 * kMiB);
    auto item = h.item("a", 1000);
    item.ttl_ms = 500;
    ASSERT_EQ(h.put_item(item), Code::kOk);
    ASSERT_EQ(h.put("forever", 1000), Code::kOk);
    h.clock_ms += 499;
    EXPECT_TRUE(h.get("a"));
    EXPECT_EQ(h.store->find(h.ns, h.key("a")).ttl_ms, 1u);
    h.clock_ms += 1;
    EXPECT_EQ(h.miss("a"), MissReason::kExpired);
    EXPECT_EQ(h.put_item(item), Code::kOk);
    h.clock_ms += 500;
    h.store->tick();
    EXPECT_EQ(h.store->stats().objects, 1u);
    EXPECT_EQ(h.store->stats().expirations, 2u);
    EXPECT_EQ(h.withdrawn.back().reason, MissReason::kExpired);
    h.expect_sound();
}

TEST(BlockStore, APublishHoldDelaysExpiryUntilTheAnnounce) {
    StoreHarness h(4 * kMiB);
    auto item = h.item("a", 1000);
    item.ttl_ms = 1;
    const auto reserved = h.store->reserve(h.owner, h.ns, item);
    auto published = h.finish(reserved, "a", 1, 1000);
    h.clock_ms += 1000;
    h.store->tick();
    EXPECT_EQ(h.miss("a"), MissReason::kExpired);
    EXPECT_TRUE(h.withdrawn.empty());
    published.hold.reset();
    h.clock_ms += 1000;
    h.store->tick();
    EXPECT_EQ(h.withdrawn.size(), 1u);
    h.expect_sound();
}

TEST(BlockStore, UnpublishTakesOneGenerationBackSilently) {
    StoreHarness h(4 * kMiB);
    ASSERT_EQ(h.put("a", 1000), Code::kOk);
    const Generation generation = h.store->find(h.ns, h.key("a")).generation;
    EXPECT_EQ(h.store->unpublish(generation), Code::kOk);
    EXPECT_EQ(h.store->unpublish(generation), Code::kNotFound);
    EXPECT_FALSE(h.get("a"));
    EXPECT_TRUE(h.withdrawn.empty());
    EXPECT_EQ(h.store->stats().used_bytes, 0u);
}

TEST(BlockStore, HardPinsStayWithinTheTenantsCap) {
    BlockStore::Options options;
    options.pin_cap_bytes = 5000;
    StoreHarness h(4 * kMiB, options);
    const auto pinned = [&](const std::string& name) {
        auto item = h.item(name, 2000);
        item.pin = Pin::kHard;
        return item;
    };
    ASSERT_EQ(h.put_item(pinned("a")), Code::kOk);
    const auto writing = h.store->reserve(h.owner, h.ns, pinned("b"));
    ASSERT_EQ(writing.code, Code::kOk);
    const auto refused = h.store->reserve(h.owner, h.ns, pinned("c"));
    EXPECT_EQ(refused.code, Code::kNoSpace);
    EXPECT_NE(refused.message.find("would exceed pin_cap_bytes 5000"), std::string::npos);
    auto copy = pinned("c");
    copy.is_copy = true;  // what was pinned elsewhere stays so
    const auto copied = h.store->reserve(h.owner, h.ns, copy);
    EXPECT_EQ(copied.code, Code::kOk);
    for (const auto& one : {writing, copied}) {
        h.store->abort(h.owner, one.generation);
    }
    ASSERT_EQ(h.put("soft", 2000), Code::kOk);
    EXPECT_EQ(h.store->set_pin(h.ns, h.key("soft"), Pin::kHard), Code::kOk);
    ASSERT_EQ(h.put("more", 2000), Code::kOk);
    EXPECT_EQ(h.store->set_pin(h.ns, h.key("more"), Pin::kHard), Code::kNoSpace);
    EXPECT_EQ(h.store->stats().soft_pinned_bytes, 2000u);
    EXPECT_EQ(h.store->set_pin(h.ns, h.key("a"), Pin::kNone), Code::kOk);
    EXPECT_EQ(h.put_item(pinned("d")), Code::kOk);
    h.store->set_pin_cap(0);  // half of the segment
    EXPECT_EQ(h.put_item(pinned("e")), Code::kOk);
    h.expect_sound();
}

TEST(BlockStore, LeasesAreAPrefixWithinTheTenantsCap) {
    BlockStore::Options options;
    options.lease_cap_bytes = 5000;
    StoreHarness h(4 * kMiB, options);
    std::vector<std::string> names;
    for (int i = 0; i < 8; ++i) {
        names.push_back("k" + std::to_string(i));
    }
    std::vector<BlockStore::Key> keys;
    for (const auto& name : names) {
        keys.push_back(h.key(name));
    }
    for (const int i : {0, 1, 2, 4, 5}) {
        ASSERT_EQ(h.put(names[static_cast<size_t>(i)], 1000), Code::kOk);
    }
    const auto lease = h.store->lease_acquire(h.owner, h.ns, keys, 1, 1000);
    EXPECT_EQ(lease.length, 3u);
    EXPECT_EQ(h.store->lease_acquire(h.owner, h.ns, keys, 2, 1000).length, 2u);  // whole pages
    EXPECT_EQ(h.store->lease_acquire(h.owner, h.ns, keys, 1, 1000).length, 0u);  // the cap
    EXPECT_EQ(h.store->lease_acquire(h.owner, h.ns, {keys.data() + 3, 1}, 1, 1000).lease_id, 0u);
    EXPECT_EQ(h.store->lease_release({99, -1}, lease.lease_id), Code::kExpired);
    EXPECT_EQ(h.store->lease_renew(h.owner, lease.lease_id, 5000), Code::kOk);
    h.clock_ms += 1000;
    h.store->tick();
    EXPECT_EQ(h.store->stats().leases, 1u);
    h.expect_sound();
    EXPECT_EQ(h.store->lease_release(h.owner, lease.lease_id), Code::kOk);
    EXPECT_EQ(h.store->lease_renew(h.owner, lease.lease_id, 1), Code::kExpired);
    const auto gone = h.store->lease_acquire(h.owner, h.ns, keys, 1, 1000);
    EXPECT_EQ(gone.length, 3u);
    h.store->on_session_closed(h.owner.session);
    EXPECT_EQ(h.store->stats().leased_bytes, 0u);
    h.expect_sound();
}

TEST(BlockStore, AWithdrawCallbackMayCallTheStore) {
    StoreHarness h(4 * kMiB);
    std::vector<std::string> order;
    h.store->set_on_withdraw([&](std::span<const BlockStore::Withdrawn> batch) {
        for (const auto& gone : batch) {
            order.push_back(gone.key);
            if (gone.key == "a") {
                h.store->remove_upto(h.ns, h.key("b"), h.version);
            }
        }
    });
    h.put("a", 100);
    h.put("b", 100);
    h.store->remove_upto(h.ns, h.key("a"), h.version);
    EXPECT_EQ(order, (std::vector<std::string>{"a", "b"}));
}

TEST(BlockStore, ListingGoesOnFromItsCursor) {
    StoreHarness h(4 * kMiB);
    for (int i = 0; i < 300; ++i) {
        h.put("k" + std::to_string(i), 100);
    }
    std::vector<BlockStore::ObjectInfo> batch;
    std::map<std::string, int> seen;
    uint32_t cursor = 0;
    do {
        cursor = h.store->list_objects(cursor, 7, batch);
        EXPECT_LE(batch.size(), 7u);
        for (const auto& object : batch) {
            ++seen[object.key];
        }
    } while (cursor != 0);
    EXPECT_EQ(seen.size(), 300u);
    for (const auto& [key, count] : seen) {
        EXPECT_EQ(count, 1) << key;
    }
}

TEST(BlockStore, ThreadsShareIt) {
    StoreHarness h(2 * kMiB);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&h, t] {
            const Owner owner{static_cast<uint64_t>(t) + 10, -1};
            std::mt19937_64 random(static_cast<uint64_t>(t));
            for (uint64_t i = 0; i < 3000; ++i) {
                const std::string name = "k" + std::to_string(random() % 400);
                const uint64_t size = 1000 + random() % 8000;
                auto wanted = h.item(name, size);
                wanted.force = true;
                const auto reserved = h.store->reserve(owner, h.ns, wanted);
                if (reserved.code == Code::kOk) {
                    const BlockStore::PublishItem item{reserved.generation, 0, 4 * i + 1};
                    (void)h.store->publish(owner, {&item, 1});
                }
                const auto found = h.store->find(h.ns, h.key(name));
                if (i % 64 == 0) {
                    h.store->tick();
                }
            }
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
    h.expect_sound();
}

TEST(BlockStoreFiles, AnonymousOnesKeepTheirSize) {
    BlockStore::Options options;
    options.size_bytes = 4u << 20;
    options.node_id = "a";
    const auto store = BlockStore::create(options);
    ASSERT_TRUE(store.ok());
    for (const int fd : {(*store)->segment_fd(true), (*store)->index_fd()}) {
        const Fd writable(
            open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDWR | O_CLOEXEC));
        ASSERT_TRUE(writable.valid());
        EXPECT_NE(ftruncate(writable.get(), 4096), 0);
        EXPECT_EQ(errno, EPERM);
    }
    EXPECT_EQ((*store)->damage(), "");
}

}  // namespace
}  // namespace kvstore
