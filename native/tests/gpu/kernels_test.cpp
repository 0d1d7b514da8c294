// The text that GPUs run (kvstore/gpu/kernels.cu), compiled for the processor: its CRC32Cs are
// those of base/checksum.h, and its pages lie where PageGrid says.
#include "gpu/kernels.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "base/checksum.h"
#include "base/checksum_join.h"
#include "gpu/page_moves.h"
#include "tests/gpu/cuda_shim.h"

namespace kvstore {
namespace {

static_assert(sizeof(KvstoreSpan) == sizeof(KernelSpan));
static_assert(offsetof(KvstoreSpan, behind) == offsetof(KernelSpan, behind));
static_assert(sizeof(KvstorePages) == sizeof(KernelPages));
static_assert(offsetof(KvstorePages, sums) == offsetof(KernelPages, sums));
static_assert(offsetof(KvstorePages, tokens) == offsetof(KernelPages, tokens));
static_assert(offsetof(KvstorePages, to_pool) == offsetof(KernelPages, to_pool));
static_assert(offsetof(KvstorePages, buffers) == offsetof(KernelPages, buffers));

uint64_t address(const void* data) { return reinterpret_cast<uintptr_t>(data); }

std::vector<uint8_t> random_bytes(size_t size, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<uint8_t> bytes(size);
    for (uint8_t& byte : bytes) {
        byte = static_cast<uint8_t>(random());
    }
    return bytes;
}

cuda_shim::Grid& grid() {
    static cuda_shim::Grid one(KVSTORE_THREADS);
    return one;
}

// What the kernel makes of an object that is cut at these places, behind a header with `crc`.
uint32_t sum_of(const uint8_t* data, const std::vector<uint32_t>& cuts, uint32_t crc = 0) {
    std::vector<KvstoreSpan> spans;
    uint64_t behind = std::accumulate(cuts.begin(), cuts.end(), uint64_t{0});
    const uint64_t total = behind;
    for (const uint32_t bytes : cuts) {
        behind -= bytes;
        spans.push_back({address(data), bytes, exponent_of_bytes(behind)});
        data += bytes;
    }
    std::vector<uint32_t> sums(spans.size());
    const auto count = static_cast<uint32_t>(spans.size());
    grid().run((count + 3) / 4,
               [&] { kvstore_checksum(address(spans.data()), address(sums.data()), count); });
    ChecksumJoin join;
    return join.append(crc, std::accumulate(sums.begin(), sums.end(), 0u, std::bit_xor<>()), total);
}

TEST(Kernels, OneSpanOfEveryLengthAndAlignment) {
    const std::vector<uint8_t> bytes = random_bytes(4000, 1);
    for (const uint32_t size : {1u, 2u, 15u, 16u, 17u, 31u, 32u, 511u, 512u, 513u, 1024u, 3000u}) {
        for (size_t at = 0; at < 18; ++at) {
            EXPECT_EQ(sum_of(&bytes[at], {size}), crc32c(&bytes[at], size)) << size << " at " << at;
        }
    }
}

TEST(Kernels, ManySpansAndAHeaderBefore) {
    const std::vector<uint8_t> bytes = random_bytes(300'000, 2);
    std::mt19937 random(3);
    for (int turn = 0; turn < 30; ++turn) {
        std::vector<uint32_t> cuts;
        size_t total = 0;
        for (size_t count = random() % 9 + 1; cuts.size() < count;) {
            cuts.push_back(static_cast<uint32_t>(random() % kSpanBytes + 1));
            total += cuts.back();
        }
        const size_t header = random() % 100;
        EXPECT_EQ(sum_of(&bytes[header], cuts, crc32c(bytes.data(), header)),
                  crc32c(bytes.data(), header + total))
            << "turn " << turn;
    }
}

TEST(Kernels, EveryBitCounts) {
    std::vector<uint8_t> bytes = random_bytes(2000, 4);
    const uint32_t whole = crc32c(bytes.data(), bytes.size());
    for (size_t bit = 0; bit < 8 * bytes.size(); bit += 61) {
        bytes[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
        EXPECT_NE(sum_of(bytes.data(), {700, 1300}), whole) << bit;
        bytes[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    }
}

TEST(ChecksumJoin, LengthsBeyondWhatCanBeSummed) {
    // Zeros behind a register of zero change nothing: x^n * x^m == x^(n+m), also for a TiB.
    const std::vector<uint8_t> zeros(1000);
    ChecksumJoin join;
    EXPECT_EQ(join.append(0, 0, 1000), crc32c(zeros.data(), zeros.size()));
    const uint64_t tib = uint64_t{1} << 40;
    const uint32_t once = join.append(join.append(7, 0, tib), 0, tib);
    EXPECT_EQ(once, ChecksumJoin().append(7, 0, 2 * tib));
    EXPECT_EQ(join.append(7, 0, 0), 7u);
}

struct Layout {
    const char* name;
    uint32_t buffers, layers, tokens, piece_bytes;
};

class PagesKernel : public ::testing::TestWithParam<Layout> {};

INSTANTIATE_TEST_SUITE_P(Layouts, PagesKernel,
                         ::testing::Values(Layout{"layer_first", 6, 1, 1, 4 * 48},
                                           Layout{"page_first", 2, 3, 4, 48},
                                           Layout{"page_first_direct", 2, 1, 1, 3 * 4 * 48},
                                           Layout{"latent", 1, 61, 4, 1152},
                                           Layout{"one_piece", 1, 1, 1, 40'000}),
                         [](const auto& of) { return of.param.name; });

TEST_P(PagesKernel, MovesBothWaysAndSums) {
    const Layout& layout = GetParam();
    PageGrid pool;
    pool.layers = layout.layers;
    pool.tokens = layout.tokens;
    pool.piece_bytes = layout.piece_bytes;
    const uint64_t in_buffer = uint64_t{layout.layers} * layout.tokens * layout.piece_bytes;
    pool.page_stride = in_buffer + 32;
    constexpr uint64_t kPages = 5;
    std::vector<std::vector<uint8_t>> buffers;
    for (uint32_t i = 0; i < layout.buffers; ++i) {
        buffers.push_back(random_bytes(kPages * pool.page_stride, i));
        pool.buffers.push_back(address(buffers.back().data()));
    }
    const std::vector<std::vector<uint8_t>> before = buffers;
    const std::vector<uint64_t> ids = {3, 0, 4};
    std::vector<std::vector<uint8_t>> objects(ids.size(), std::vector<uint8_t>(pool.page_bytes()));
    std::vector<uint64_t> blocks;
    for (std::vector<uint8_t>& object : objects) {
        blocks.push_back(address(object.data()));
    }
    KvstorePages job{};
    job.blocks = address(blocks.data());
    job.page_ids = address(ids.data());
    job.page_stride = pool.page_stride;
    job.page_bytes = static_cast<u32>(pool.page_bytes());
    job.piece_bytes = layout.piece_bytes;
    job.layers = layout.layers;
    job.tokens = layout.tokens;
    job.pages = static_cast<u32>(ids.size());
    job.span_bytes = kSpanBytes;
    job.spans = (job.page_bytes + kSpanBytes - 1) / kSpanBytes;
    std::copy(pool.buffers.begin(), pool.buffers.end(), job.buffers);
    std::vector<uint32_t> sums(ids.size() * job.spans);
    job.sums = address(sums.data());
    const auto check_sums = [&] {
        ChecksumJoin join;
        for (size_t row = 0; row < ids.size(); ++row) {
            const auto first = sums.begin() + static_cast<ptrdiff_t>(row * job.spans);
            const uint32_t sum = std::accumulate(first, first + job.spans, 0u, std::bit_xor<>());
            EXPECT_EQ(join.append(0, sum, job.page_bytes),
                      crc32c(objects[row].data(), objects[row].size()));
        }
        std::fill(sums.begin(), sums.end(), 0);
    };
    const unsigned count = (job.pages * job.spans + 3) / 4;
    grid().run(count, [&] { kvstore_pages(job); });
    check_sums();
    for (size_t row = 0; row < ids.size(); ++row) {
        std::vector<iovec> pieces;
        pool.add_pieces(ids[row], &pieces);
        std::vector<uint8_t> wanted;
        for (const iovec& piece : pieces) {
            const auto* const data = static_cast<const uint8_t*>(piece.iov_base);
            wanted.insert(wanted.end(), data, data + piece.iov_len);
            std::memset(piece.iov_base, 0, piece.iov_len);
        }
        EXPECT_EQ(objects[row], wanted) << row;
    }
    job.to_pool = 1;
    grid().run(count, [&] { kvstore_pages(job); });
    check_sums();
    EXPECT_EQ(buffers, before);
}

}  // namespace
}  // namespace kvstore
