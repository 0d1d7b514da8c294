// Coverage guidance for targets that GCC compiled. GCC calls __sanitizer_cov_trace_pc at every
// basic block; libFuzzer ignores that call and reads arrays of counters and of block addresses
// instead, which only clang emits. This file counts the calls into such arrays. It is compiled
// without instrumentation, and the linker's --wrap sends the calls here. Comparisons need nothing:
// both compilers call the same functions, except for floating point, which libFuzzer ignores.
#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

extern "C" {
extern const char __executable_start;  // these two are the linker's
extern const char etext;
void __sanitizer_cov_8bit_counters_init(uint8_t* start, uint8_t* stop);
void __sanitizer_cov_pcs_init(const uintptr_t* start, const uintptr_t* stop);
void __wrap___sanitizer_cov_trace_pc();
void __sanitizer_cov_trace_cmpf(float, float) {}
void __sanitizer_cov_trace_cmpd(double, double) {}
}

namespace {

struct Block {
    uintptr_t address;
    uintptr_t flags;
};

// libFuzzer looks at every counter after every run: a small target has fewer.
constexpr size_t kMostCounters = 1 << 18;
constexpr size_t kCodeBytesACounter = 64;  // a block has about 140: few of them share a counter
constexpr uint64_t kGoldenRatio = 0x9e3779b97f4a7c15;
alignas(64) std::array<uint8_t, kMostCounters> counters;
std::array<Block, kMostCounters> blocks;
int hash_shift = 64 - 1;  // until the number of counters is known

uint64_t offset_of(uintptr_t address) {
    return address - reinterpret_cast<uintptr_t>(&__executable_start);
}

__attribute__((constructor)) void register_counters() {
    const uint64_t wanted = offset_of(reinterpret_cast<uintptr_t>(&etext)) / kCodeBytesACounter;
    const size_t count = std::min<uint64_t>(std::bit_ceil(wanted), kMostCounters);
    hash_shift = 64 - std::countr_zero(count);
    __sanitizer_cov_8bit_counters_init(counters.data(), counters.data() + count);
    const auto* first = reinterpret_cast<const uintptr_t*>(blocks.data());
    __sanitizer_cov_pcs_init(first, first + 2 * count);
}

}  // namespace

void __wrap___sanitizer_cov_trace_pc() {
    const auto address = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
    // The program is loaded at another address each time; its blocks keep their counters.
    const size_t i = (offset_of(address) * kGoldenRatio) >> hash_shift;
    // Threads may lose a count to each other, which changes nothing that matters.
    counters[i] = static_cast<uint8_t>(counters[i] + 1);
    if (blocks[i].address == 0) {
        blocks[i].address = address;
    }
}
