// What becomes of a block of an earlier life, for every combination of what is known of it.
#include "store/kept_fate.h"

#include <gtest/gtest.h>

namespace kvstore {
namespace {

TEST(KeptFate, EveryCombination) {
    for (unsigned bits = 0; bits < 32; ++bits) {
        SCOPED_TRACE(bits);
        const KeptFacts facts{(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0,
                              (bits & 16) != 0};
        const Fate fate = fate_of(facts);
        if (!facts.is_placed) {
            EXPECT_EQ(fate, Fate::kDrop);
        } else if (facts.is_carried) {
            EXPECT_EQ(fate, Fate::kCarry);
        } else if (facts.writer_lives) {
            EXPECT_EQ(fate, Fate::kQuarantine);
        } else {
            const bool is_read = facts.is_held || facts.hazard_names_it;
            EXPECT_EQ(fate, is_read ? Fate::kDefer : Fate::kDrop);
        }
    }
}

}  // namespace
}  // namespace kvstore
