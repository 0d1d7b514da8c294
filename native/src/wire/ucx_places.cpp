// Places as columns.
#include "wire/ucx_places.h"

namespace kvstore {

UcxPlaceColumns::UcxPlaceColumns(const UcxPlaces& places) {
    for (size_t row = 0; row < places.rows(); ++row) {
        const std::span<const UcxPiece> pieces = places.row(row);
        const bool is_one = pieces.size() == 1;
        addresses_.push_back(is_one ? pieces.front().address : 0);
        key_of_.push_back(is_one ? pieces.front().key : kInPieces);
        for (const UcxPiece& piece : is_one ? std::span<const UcxPiece>() : pieces) {
            piece_addresses_.push_back(piece.address);
            piece_sizes_.push_back(piece.bytes);
            piece_keys_.push_back(piece.key);
        }
    }
}

}  // namespace kvstore
