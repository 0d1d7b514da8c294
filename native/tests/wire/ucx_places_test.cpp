// Places of a put's bytes: there and back, and what a hostile message is answered with.
#include "wire/ucx_places.h"

#include <gtest/gtest.h>

namespace kvstore {
namespace {

constexpr std::string_view kKeys[] = {"one", "two"};

// A message with these columns, over its body as a receiver has it.
class Sent {
  public:
    Sent(std::vector<uint64_t> sizes, const UcxPlaces& places) : sizes_(std::move(sizes)) {
        const UcxPlaceColumns columns(places);
        UcxPull message;
        columns.fill(&message);
        send(message);
    }
    explicit Sent(UcxPull message, std::vector<uint64_t> sizes) : sizes_(std::move(sizes)) {
        send(message);
    }
    Result<UcxPlaces> places() const { return UcxPlaces::of(received_); }

  private:
    void send(UcxPull& message) {
        const std::vector<uint64_t> offsets(sizes_.size(), 0);
        message.offsets = offsets;
        message.sizes = sizes_;
        message.memory_keys = std::span<const std::string_view>(kKeys);
        encode_message(message, body_);
        EXPECT_TRUE(decode_message(body_, &received_).ok());
    }
    std::vector<uint64_t> sizes_;
    std::vector<uint8_t> body_;
    UcxPull received_;
};

TEST(UcxPlaces, GoThereAndBack) {
    UcxPlaces places;
    places.begin_row();
    places.add({100, 10, 1});
    places.begin_row();
    places.add({200, 7, 0});
    places.add({300, 3, 1});
    places.begin_row();
    places.add({0, 0, 0});
    places.begin_row();
    places.add({400, 1, 0});
    places.add({500, 1, 0});
    const Sent sent({10, 10, 0, 2}, places);
    const Result<UcxPlaces> there = sent.places();
    ASSERT_TRUE(there.ok());
    ASSERT_EQ(there->rows(), 4u);
    for (size_t row = 0; row < 4; ++row) {
        const std::span<const UcxPiece> got = there->row(row);
        ASSERT_EQ(got.size(), places.row(row).size());
        for (size_t i = 0; i < got.size(); ++i) {
            EXPECT_EQ(got[i].address, places.row(row)[i].address);
            EXPECT_EQ(got[i].bytes, places.row(row)[i].bytes);
            EXPECT_EQ(got[i].key, places.row(row)[i].key);
        }
    }
}

TEST(UcxPlaces, EveryByteHasAPlaceAndEveryPlaceAKey) {
    struct Case {
        const char* what;
        std::vector<uint64_t> sizes;
        std::vector<uint32_t> key_of;
        std::vector<uint64_t> piece_sizes;
        std::vector<uint32_t> piece_keys;
        bool right = false;
    };
    const Case cases[] = {
        {"one piece", {10}, {1}, {}, {}, true},
        {"two pieces", {10}, {kInPieces}, {4, 6}, {0, 1}, true},
        {"a key that is not there", {10}, {2}, {}, {}},
        {"a piece whose key is not there", {10}, {kInPieces}, {4, 6}, {0, 2}},
        {"too few pieces", {10}, {kInPieces}, {4}, {0}},
        {"no pieces", {10}, {kInPieces}, {}, {}},
        {"a piece over the object's end", {10}, {kInPieces}, {4, 7}, {0, 0}},
        {"an empty piece", {10}, {kInPieces}, {0, 4, 6}, {0, 0, 0}},
        {"a size that wraps", {10}, {kInPieces}, {UINT64_MAX, 11}, {0, 0}},
        {"the second row's pieces are gone", {10, 5}, {kInPieces, kInPieces}, {4, 6}, {0, 0}},
    };
    for (const Case& one : cases) {
        const std::vector<uint64_t> addresses(one.sizes.size(), 1000);
        const std::vector<uint64_t> piece_addresses(one.piece_sizes.size(), 2000);
        UcxPull message;
        message.addresses = addresses;
        message.key_of = one.key_of;
        message.piece_addresses = piece_addresses;
        message.piece_sizes = one.piece_sizes;
        message.piece_keys = one.piece_keys;
        EXPECT_EQ(Sent(message, one.sizes).places().ok(), one.right) << one.what;
    }
}

TEST(UcxPlaces, AMessageWithoutPlacesIsRefused) {
    EXPECT_FALSE(Sent(UcxPull(), {10}).places().ok());
}

}  // namespace
}  // namespace kvstore
