// Memory of every size: aligned, writable to its end, given back.
#include "base/large_memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>

namespace kvstore {
namespace {

TEST(LargeMemoryTest, IsAlignedAndWritable) {
    for (const size_t bytes : {size_t{1}, size_t{4096}, kHugePageBytes - 1, kHugePageBytes,
                               kHugePageBytes + 1, 3 * kHugePageBytes}) {
        const std::unique_ptr<char, FreeLarge> memory(static_cast<char*>(allocate_large(bytes)),
                                                      FreeLarge{bytes});
        ASSERT_NE(memory, nullptr);
        const size_t align = bytes < kHugePageBytes ? kLargeMemoryAlign : kHugePageBytes;
        EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.get()) % align, 0u) << bytes;
        std::memset(memory.get(), 1, bytes);
    }
}

TEST(LargeMemoryTest, TooMuchIsNull) { EXPECT_EQ(allocate_large(size_t{1} << 50), nullptr); }

// Thousands of times what the machine has, if it were kept.
TEST(LargeMemoryTest, IsGivenBack) {
    for (int i = 0; i < 2000; ++i) {
        const size_t bytes = 32 * kHugePageBytes;
        void* memory = allocate_large(bytes);
        ASSERT_NE(memory, nullptr);
        std::memset(memory, 1, 4096);
        free_large(memory, bytes);
    }
}

}  // namespace
}  // namespace kvstore
