// Checked copies and holds on a real index: right bytes or a named failure.
#include "index/object_reader.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "base/checksum.h"
#include "base/hash.h"
#include "index/client_slots.h"

namespace kvstore {
namespace {

constexpr HashSecret kSecret{9};
constexpr uint64_t kSegmentBytes = 1u << 20;

class ObjectReaderTest : public ::testing::Test {
  protected:
    void SetUp() override {
        Index::Options options;
        options.entries = 64;
        options.segment_bytes = kSegmentBytes;
        auto index = Index::create(options);
        ASSERT_TRUE(index.ok());
        index_ = std::move(*index);
        auto reader = IndexReader::attach(index_->fd(), kSegmentBytes);
        ASSERT_TRUE(reader.ok());
        reader_ = std::move(*reader);
        auto slots = ClientSlots::open("", "clients");
        ASSERT_TRUE(slots.ok());
        slots_ = std::move(*slots);
    }

    Identity identity_of(std::string_view key, uint64_t length = 0, Version version = 0) const {
        Identity identity;
        identity.tenant = 1;
        identity.ns = 2;
        identity.hash = key_hash(kSecret, 2, key);
        identity.version = version;
        identity.length = length;
        return identity;
    }

    // Writes the bytes and publishes them as `key`.
    EntryRef put(std::string_view key, Generation gen, uint64_t offset, std::string_view bytes) {
        std::memcpy(segment_.data() + offset, bytes.data(), bytes.size());
        Index::NewEntry entry;
        entry.identity = identity_of(key, bytes.size(), gen);
        entry.offset = offset;
        entry.crc = seal_checksum(crc32c(bytes.data(), bytes.size()), entry.identity);
        entry.gen = gen;
        entry.key = key;
        const auto ref = index_->insert(entry);
        EXPECT_TRUE(ref.ok());
        return *ref;
    }

    std::optional<IndexReader::Found> probe(std::string_view key) const {
        return reader_->probe(2, identity_of(key).hash, key, 0);
    }

    // A confirmed slot in this very process, as in embedded mode.
    std::shared_ptr<ClientSlot> confirmed_slot() {
        const auto number = slots_->assign();
        EXPECT_TRUE(number.ok());
        auto slot = SlotRegistry::instance().acquire(Fd(dup(slots_->fd(*number))), *number);
        EXPECT_TRUE(slot.ok());
        EXPECT_TRUE(slots_->confirm((*slot)->number()).ok());
        (*slot)->set_confirmed();
        return *slot;
    }

    std::vector<uint8_t> segment_ = std::vector<uint8_t>(kSegmentBytes);
    std::unique_ptr<Index> index_;
    std::unique_ptr<IndexReader> reader_;
    std::unique_ptr<ClientSlots> slots_;
};

TEST_F(ObjectReaderTest, CopiesExactlyTheBytes) {
    for (const size_t size : {size_t{0}, size_t{1}, size_t{4096}, size_t{300'001}}) {
        const std::string key = "size" + std::to_string(size);
        std::string bytes(size, '\0');
        for (size_t i = 0; i < size; ++i) {
            bytes[i] = static_cast<char>(i * 31 >> 3);
        }
        put(key, size + 1, 64, bytes);
        std::string out(size, 'x');
        IndexReader::Found found;
        ASSERT_EQ(read_object(*reader_, segment_.data(), identity_of(key), key, 0,
                              Pieces(out.data(), out.size()), &found),
                  CopyResult::kOk);
        EXPECT_EQ(out, bytes);
        EXPECT_EQ(found.length, size);
        EXPECT_TRUE(verify_object(segment_.data(), found, identity_of(key)));
    }
}

TEST_F(ObjectReaderTest, NamesWhatIsMissingOrTooLarge) {
    put("a", 1, 0, "hello");
    char out[8];
    IndexReader::Found found;
    EXPECT_EQ(
        read_object(*reader_, segment_.data(), identity_of("b"), "b", 0, Pieces(out, 8), &found),
        CopyResult::kNotFound);
    EXPECT_EQ(
        read_object(*reader_, segment_.data(), identity_of("a"), "a", 0, Pieces(out, 4), &found),
        CopyResult::kTooSmall);
    EXPECT_EQ(found.length, 5u);
}

TEST_F(ObjectReaderTest, StaleAfterInvalidationAndAfterRetirement) {
    const EntryRef ref = put("a", 1, 0, "hello");
    put("b", 2, 64, "world");
    const auto a = probe("a");
    const auto b = probe("b");
    char out[8];
    index_->invalidate(ref);
    EXPECT_EQ(copy_object(*reader_, segment_.data(), *a, Pieces(out, sizeof out), identity_of("a")),
              CopyResult::kStale);
    EXPECT_EQ(copy_object(*reader_, segment_.data(), *b, Pieces(out, sizeof out), identity_of("b")),
              CopyResult::kOk);
    index_->retire();
    EXPECT_EQ(copy_object(*reader_, segment_.data(), *b, Pieces(out, sizeof out), identity_of("b")),
              CopyResult::kStale);
}

// Two blocks take turns under one key, each rewritten while the other is published. The seal would
// catch what the generation let through, so a single kChecksum is a failure of the protocol.
TEST_F(ObjectReaderTest, RightBytesOrNoneWhileTheObjectIsReplaced) {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "a copy that is thrown away when its generation has changed is a race to TSan";
#endif
    constexpr size_t kSize = 20'000;
    std::atomic<bool> done{false};
    std::array<std::atomic<uint64_t>, 5> results{};
    std::thread reading([&] {
        std::string out(kSize, ' ');
        IndexReader::Found found;
        while (!done) {
            const CopyResult result = read_object(*reader_, segment_.data(), identity_of("a"), "a",
                                                  0, Pieces(out.data(), kSize), &found);
            ++results[static_cast<size_t>(result)];
            if (result != CopyResult::kOk) {
                continue;
            }
            EXPECT_EQ(out, std::string(kSize, static_cast<char>(found.gen)));
        }
    });
    EntryRef last = kNoEntry;
    const auto ok = [&] { return results[static_cast<size_t>(CopyResult::kOk)].load(); };
    for (Generation gen = 1; gen < 20'000 || (ok() < 100 && gen < 5'000'000); ++gen) {
        const std::string bytes(kSize, static_cast<char>(gen));
        const EntryRef ref = put("a", gen, gen % 2 * 65536, bytes);
        if (last != kNoEntry) {
            index_->invalidate(last);
            index_->release(last);
        }
        last = ref;
    }
    done = true;
    reading.join();
    EXPECT_GE(ok(), 100u);
    EXPECT_EQ(results[static_cast<size_t>(CopyResult::kChecksum)], 0u);
    EXPECT_EQ(results[static_cast<size_t>(CopyResult::kTooSmall)], 0u);
}

TEST_F(ObjectReaderTest, AFlippedByteIsAChecksumFailure) {
    put("a", 1, 0, "hello");
    segment_[2] ^= 1;
    char out[8];
    EXPECT_EQ(copy_object(*reader_, segment_.data(), *probe("a"), Pieces(out, sizeof out),
                          identity_of("a")),
              CopyResult::kChecksum);
    EXPECT_FALSE(verify_object(segment_.data(), *probe("a"), identity_of("a")));
}

// The seal proves whose bytes they are: whole bytes of somebody else do not pass.
TEST_F(ObjectReaderTest, TheSealBindsTheIdentity) {
    put("a", 1, 0, "hello");
    const auto found = *probe("a");
    char out[8];
    const auto copy_as = [&](const IndexReader::Found& f, const Identity& identity) {
        return copy_object(*reader_, segment_.data(), f, Pieces(out, sizeof out), identity);
    };
    EXPECT_EQ(copy_as(found, identity_of("a")), CopyResult::kOk);
    Identity other = identity_of("a");
    other.tenant = 3;
    EXPECT_EQ(copy_as(found, other), CopyResult::kChecksum);
    other = identity_of("a");
    other.ns = 3;
    EXPECT_EQ(copy_as(found, other), CopyResult::kChecksum);
    EXPECT_EQ(copy_as(found, identity_of("b")), CopyResult::kChecksum);
    IndexReader::Found older = found;
    older.version = 7;
    EXPECT_EQ(copy_as(older, identity_of("a")), CopyResult::kChecksum);
    IndexReader::Found shorter = found;
    shorter.length = 4;
    EXPECT_EQ(copy_as(shorter, identity_of("a")), CopyResult::kChecksum);
}

TEST_F(ObjectReaderTest, RefusesExtentsOutsideTheSegment) {
    put("a", 1, 0, "hello");
    IndexReader::Found found = *probe("a");
    char out[8];
    found.offset = kSegmentBytes - 1;
    EXPECT_EQ(
        copy_object(*reader_, segment_.data(), found, Pieces(out, sizeof out), identity_of("a")),
        CopyResult::kStale);
    found = *probe("a");
    found.ref = 64;
    EXPECT_EQ(
        copy_object(*reader_, segment_.data(), found, Pieces(out, sizeof out), identity_of("a")),
        CopyResult::kStale);
    found = *probe("a");
    found.length = UINT64_MAX;
    EXPECT_EQ(
        copy_object(*reader_, segment_.data(), found, Pieces(out, sizeof out), identity_of("a")),
        CopyResult::kStale);
}

TEST_F(ObjectReaderTest, AHoldIsSeenByTheNodeUntilItIsReleased) {
    const EntryRef ref = put("a", 5, 0, "hello");
    const auto found = *probe("a");
    const auto slot = confirmed_slot();
    ClientSlot::Handle handle = 0;
    ASSERT_EQ(hold_object(*reader_, *slot, found, &handle), HoldResult::kHeld);
    index_->invalidate(ref);
    EXPECT_TRUE(slots_->hazard_present(5));
    EXPECT_FALSE(slots_->hazard_present(6));
    std::vector<Generation> held;
    slots_->collect_hazards(&held);
    EXPECT_EQ(held, std::vector<Generation>{5});
    slot->clear_hazard(handle);
    EXPECT_FALSE(slots_->hazard_present(5));
    EXPECT_EQ(hold_object(*reader_, *slot, found, &handle), HoldResult::kStale);
    EXPECT_EQ(slot->hazards_in_use(), 0u);
}

TEST_F(ObjectReaderTest, AFullSlotSaysSo) {
    put("a", 5, 0, "hello");
    const auto slot = confirmed_slot();
    std::vector<ClientSlot::Handle> handles(kSlotHazards);
    for (auto& handle : handles) {
        ASSERT_EQ(hold_object(*reader_, *slot, *probe("a"), &handle), HoldResult::kHeld);
    }
    ClientSlot::Handle extra = 0;
    EXPECT_EQ(hold_object(*reader_, *slot, *probe("a"), &extra), HoldResult::kFull);
    slot->clear_hazard(handles[17]);
    EXPECT_EQ(hold_object(*reader_, *slot, *probe("a"), &extra), HoldResult::kHeld);
    EXPECT_EQ(extra, 17u);
}

}  // namespace
}  // namespace kvstore
