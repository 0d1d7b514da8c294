// Coverage guidance for targets that GCC compiled. GCC calls __sanitizer_cov_trace_pc at every
// basic block; libFuzzer ignores that call and reads arrays of counters and of block addresses
// instead, which only clang emits. This file counts the calls into such arrays. It is compiled
// without instrumentation, and the linker's --wrap sends the calls here. Comparisons need nothing:
// both compilers call the same functions, except for floating point, which libFuzzer ignores.
#include <array>
#include <cstddef>
#include <cstdint>

extern "C" {
extern const char __executable_start;  // from the linker
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

// Several times the blocks of the largest target, so that few share a counter.
constexpr size_t kCounters = 1 << 16;
constexpr uint64_t kGoldenRatio = 0x9e3779b97f4a7c15;
alignas(64) std::array<uint8_t, kCounters> counters;
std::array<Block, kCounters> blocks;

__attribute__((constructor)) void register_counters() {
    __sanitizer_cov_8bit_counters_init(counters.data(), counters.data() + kCounters);
    const auto* first = reinterpret_cast<const uintptr_t*>(blocks.data());
    __sanitizer_cov_pcs_init(first, first + 2 * kCounters);
}

}  // namespace

void __wrap___sanitizer_cov_trace_pc() {
    const auto address = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
    // The program is loaded at another address each time; its blocks keep their counters.
    const uint64_t offset = address - reinterpret_cast<uintptr_t>(&__executable_start);
    const size_t i = (offset * kGoldenRatio) >> 48;
    static_assert(kCounters == 1 << 16);
    // Threads may lose a count to each other, which changes nothing that matters.
    counters[i] = static_cast<uint8_t>(counters[i] + 1);
    if (blocks[i].address == 0) {
        blocks[i].address = address;
    }
}
