// Where a client has the bytes of each object that is to be fetched from it: in one piece or in
// several, each in memory with a key.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "base/status.h"
#include "wire/messages_ucx.h"

namespace kvstore {

struct UcxPiece {
    uint64_t address = 0;
    uint64_t bytes = 0;
    uint32_t key = 0;  // which of the message's memory_keys
};

// A row for each object.
class UcxPlaces {
  public:
    void begin_row() { ends_.push_back(pieces_.size()); }
    void add(const UcxPiece& piece) {
        pieces_.push_back(piece);
        ends_.back() = pieces_.size();
    }
    size_t rows() const { return ends_.size(); }
    size_t pieces() const { return pieces_.size(); }
    std::span<const UcxPiece> row(size_t number) const {
        const size_t first = number == 0 ? 0 : ends_[number - 1];
        return std::span(pieces_).subspan(first, ends_[number] - first);
    }
    // Of UcxPut or UcxPull. kInvalidArgument: a row has not all of its bytes, or names a key that
    // is not there.
    template <class Message>
    static Result<UcxPlaces> of(const Message& message);

  private:
    std::vector<UcxPiece> pieces_;
    std::vector<size_t> ends_;
};

// What the messages say of it. A row with one piece has it in `addresses` and `key_of`; the pieces
// of the others follow each other in lists.
class UcxPlaceColumns {
  public:
    explicit UcxPlaceColumns(const UcxPlaces& places);
    template <class Message>
    void fill(Message* message) const {
        message->addresses = addresses_;
        message->key_of = key_of_;
        message->piece_addresses = piece_addresses_;
        message->piece_sizes = piece_sizes_;
        message->piece_keys = piece_keys_;
    }

  private:
    std::vector<uint64_t> addresses_;
    std::vector<uint32_t> key_of_;
    std::vector<uint64_t> piece_addresses_;
    std::vector<uint64_t> piece_sizes_;
    std::vector<uint32_t> piece_keys_;
};

template <class Message>
Result<UcxPlaces> UcxPlaces::of(const Message& message) {
    UcxPlaces places;
    size_t next = 0;
    bool is_whole = message.addresses.size() == message.sizes.size();
    for (size_t row = 0; row < message.sizes.size() && is_whole; ++row) {
        places.begin_row();
        uint64_t left = message.sizes[row];
        if (message.key_of[row] != kInPieces) {
            places.add({message.addresses[row], left, message.key_of[row]});
            left = 0;
        }
        while (left != 0 && next < message.piece_sizes.size()) {
            const UcxPiece piece{message.piece_addresses[next], message.piece_sizes[next],
                                 message.piece_keys[next]};
            if (piece.bytes == 0 || piece.bytes > left) {
                break;
            }
            places.add(piece);
            left -= piece.bytes;
            ++next;
        }
        is_whole = left == 0;
    }
    const auto has_key = [&](const UcxPiece& piece) {
        return piece.key < message.memory_keys.size();
    };
    if (!is_whole || !std::ranges::all_of(places.pieces_, has_key)) {
        return {Code::kInvalidArgument, "a row of the put names no memory"};
    }
    return places;
}

}  // namespace kvstore
