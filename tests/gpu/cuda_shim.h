// Compiles the text of kvstore/gpu/kernels.cu for the processor, and runs it as a GPU would.
//
// The threads of a block are fibers that take turns: each runs until it waits for the others of its
// block or warp. A turn of all of them is what such a wait lasts, so no thread may wait more often
// than those that it waits for; kernels.cu has no such branch.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace cuda_shim {

struct Index {
    unsigned x = 0;
};
struct Vector {
    unsigned x, y, z, w;
};

// Runs blocks one after the other, in this thread.
class Grid {
  public:
    explicit Grid(unsigned threads) : fibers_(threads), slots_(threads) {
        for (Fiber& fiber : fibers_) {
            fiber.stack.resize(kStackBytes);
        }
    }

    void run(unsigned blocks, const std::function<void()>& kernel) {
        running = this;
        kernel_ = &kernel;
        for (block.x = 0; block.x < blocks; ++block.x) {
            for (Fiber& fiber : fibers_) {
                begin(fiber);
            }
            for (bool is_any = true; is_any;) {
                is_any = false;
                for (thread.x = 0; thread.x < fibers_.size(); ++thread.x) {
                    Fiber& fiber = fibers_[thread.x];
                    if (!fiber.is_done) {
                        is_any = true;
                        swapcontext(&caller_, &fiber.context);
                    }
                }
            }
        }
        running = nullptr;
    }

    void wait() { swapcontext(&fibers_[thread.x].context, &caller_); }

    unsigned exchange(unsigned value, unsigned step) {
        slots_[thread.x] = value;
        wait();
        const unsigned theirs = slots_[thread.x ^ step];
        wait();
        return theirs;
    }

    static inline thread_local Grid* running = nullptr;
    static inline thread_local Index thread, block;

  private:
    static constexpr size_t kStackBytes = 64u << 10;
    struct Fiber {
        ucontext_t context{};
        std::vector<uint8_t> stack;
        bool is_done = false;
    };

    void begin(Fiber& fiber) {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = &caller_;
        fiber.is_done = false;
        makecontext(&fiber.context, enter, 0);
    }

    static void enter() {
        Grid& grid = *running;
        (*grid.kernel_)();
        grid.fibers_[thread.x].is_done = true;
    }

    ucontext_t caller_{};
    std::vector<Fiber> fibers_;
    std::vector<unsigned> slots_;  // what the threads of a warp tell each other
    const std::function<void()>* kernel_ = nullptr;
};

}  // namespace cuda_shim

#define threadIdx cuda_shim::Grid::thread
#define blockIdx cuda_shim::Grid::block
#define __device__ static inline
#define __global__
#define __constant__ static
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(threads)
#define __syncthreads() cuda_shim::Grid::running->wait()
#define __shfl_xor_sync(mask, value, step) cuda_shim::Grid::running->exchange(value, step)
using uint4 = cuda_shim::Vector;

#include "kvstore/gpu/kernels.cu"
