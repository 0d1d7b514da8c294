// Reads by io_uring, with the kernel's own interface (linux/io_uring.h): no further library.
//
// Whoever submits enters the kernel itself. The threads take turns at waiting for completions: one
// waits, takes one completion, lets the next one wait, and runs its op.
#include <errno.h>
#include <linux/io_uring.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/mutex.h"
#include "nvme/reads.h"

namespace kvstore {
namespace {

int ring_setup(unsigned entries, io_uring_params* params) {
    return static_cast<int>(syscall(__NR_io_uring_setup, entries, params));
}

int ring_enter(int fd, unsigned submit, unsigned wait, unsigned flags) {
    return static_cast<int>(
        syscall(__NR_io_uring_enter, fd, submit, wait, flags, nullptr, size_t{0}));
}

// The words that the kernel shares with us are plain memory: these are the accesses it asks for.
unsigned load_acquire(const unsigned* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
void store_release(unsigned* word, unsigned value) {
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

class RingEngine : public NvmeReadEngine {
  public:
    RingEngine(FileIo& io, size_t depth) : io_(io), depth_(depth) {}
    ~RingEngine() override;
    Status start(size_t threads);
    void submit(NvmeReadOp* op) override;
    const char* name() const override { return "io_uring"; }

  private:
    bool works();
    void issue() KV_REQUIRES(submit_mutex_);
    bool push(NvmeReadOp* op) KV_REQUIRES(submit_mutex_);
    void run();
    bool take(uint64_t* data, int32_t* result);
    template <class T>
    T* at(uint32_t offset) const {
        return reinterpret_cast<T*>(rings_.data() + offset);
    }

    FileIo& io_;
    const size_t depth_;
    Fd fd_;
    Mapping rings_;
    Mapping entries_;
    io_uring_params params_{};

    Mutex submit_mutex_;
    std::deque<NvmeReadOp*> waiting_ KV_GUARDED_BY(submit_mutex_);
    size_t under_way_ KV_GUARDED_BY(submit_mutex_) = 0;
    unsigned unsubmitted_ KV_GUARDED_BY(submit_mutex_) =
        0;  // in the ring, not yet taken by the kernel

    Mutex reap_mutex_;  // of the completion ring's head; never held with submit_mutex_
    std::vector<std::thread> threads_;
};

constexpr uint64_t kStop = 0;  // the completion that ends one thread

Status RingEngine::start(size_t threads) {
    fd_ = Fd(ring_setup(static_cast<unsigned>(std::bit_ceil(depth_ + threads + 1)), &params_));
    if (!fd_.valid()) {
        return errno_status("io_uring_setup", "NVMe reads");
    }
    if ((params_.features & IORING_FEAT_SINGLE_MMAP) == 0) {
        return {Code::kUnsupported, "io_uring of this kernel is too old"};
    }
    const size_t bytes = std::max(params_.sq_off.array + params_.sq_entries * sizeof(unsigned),
                                  params_.cq_off.cqes + params_.cq_entries * sizeof(io_uring_cqe));
    Result<Mapping> rings = Mapping::map(fd_.get(), bytes, true, IORING_OFF_SQ_RING);
    if (!rings.ok()) {
        return rings.status();
    }
    rings_ = std::move(*rings);
    Result<Mapping> entries =
        Mapping::map(fd_.get(), params_.sq_entries * sizeof(io_uring_sqe), true, IORING_OFF_SQES);
    if (!entries.ok()) {
        return entries.status();
    }
    entries_ = std::move(*entries);
    if (!works()) {
        return {Code::kUnsupported, "io_uring of this kernel knows no plain read"};
    }
    for (size_t i = 0; i < threads; ++i) {
        threads_.emplace_back([this] { run(); });
    }
    return {};
}

// IORING_OP_READ came later than io_uring: a read that must end with EBADF tells.
bool RingEngine::works() {
    class Probe : public NvmeReadOp {
        void complete(int64_t) override {}
    } probe;
    {
        const MutexLock lock(submit_mutex_);
        waiting_.push_back(&probe);
        issue();
    }
    uint64_t data = 0;
    int32_t result = 0;
    if (!take(&data, &result)) {
        return false;
    }
    const MutexLock lock(submit_mutex_);
    under_way_ = 0;
    return result == -EBADF;
}

RingEngine::~RingEngine() {
    for (size_t i = 0; i < threads_.size(); ++i) {
        const MutexLock lock(submit_mutex_);
        push(nullptr);
        issue();
    }
    for (std::thread& thread : threads_) {
        thread.join();
    }
}

// `op` null: a completion that ends a thread.
bool RingEngine::push(NvmeReadOp* op) {
    unsigned* tail = at<unsigned>(params_.sq_off.tail);
    const unsigned head = load_acquire(at<unsigned>(params_.sq_off.head));
    if (*tail - head >= params_.sq_entries) {
        return false;
    }
    const unsigned index = *tail & *at<unsigned>(params_.sq_off.ring_mask);
    io_uring_sqe& entry = reinterpret_cast<io_uring_sqe*>(entries_.data())[index];
    std::memset(&entry, 0, sizeof(entry));
    entry.opcode = op == nullptr ? IORING_OP_NOP : IORING_OP_READ;
    if (op != nullptr) {
        entry.fd = op->fd;
        entry.addr = reinterpret_cast<uint64_t>(op->to);
        entry.len = op->size;
        entry.off = op->offset;
    }
    entry.user_data = op == nullptr ? kStop : reinterpret_cast<uint64_t>(op);
    at<unsigned>(params_.sq_off.array)[index] = index;
    store_release(tail, *tail + 1);
    ++unsubmitted_;
    return true;
}

// Moves what waits into the ring, and the ring into the kernel.
void RingEngine::issue() {
    while (under_way_ < depth_ && !waiting_.empty() && push(waiting_.front())) {
        waiting_.pop_front();
        ++under_way_;
    }
    while (unsubmitted_ > 0) {
        const int taken = ring_enter(fd_.get(), unsubmitted_, 0, 0);
        if (taken > 0) {
            unsubmitted_ -= static_cast<unsigned>(taken);
        }
        // Short of memory or of completion room: the kernel asks to come again.
        if (taken < 0 && errno != EINTR) {
            std::this_thread::yield();
        }
    }
}

void RingEngine::submit(NvmeReadOp* op) {
    const MutexLock lock(submit_mutex_);
    waiting_.push_back(op);
    issue();
}

// Waits for one completion. False: the ring itself failed.
bool RingEngine::take(uint64_t* data, int32_t* result) {
    const MutexLock lock(reap_mutex_);
    unsigned* head = at<unsigned>(params_.cq_off.head);
    while (load_acquire(at<unsigned>(params_.cq_off.tail)) == *head) {
        if (ring_enter(fd_.get(), 0, 1, IORING_ENTER_GETEVENTS) < 0 && errno != EINTR &&
            errno != EAGAIN && errno != EBUSY) {
            return false;
        }
    }
    const unsigned mask = *at<unsigned>(params_.cq_off.ring_mask);
    const io_uring_cqe& completion = at<io_uring_cqe>(params_.cq_off.cqes)[*head & mask];
    *data = completion.user_data;
    *result = completion.res;
    store_release(head, *head + 1);
    return true;
}

void RingEngine::run() {
    uint64_t data = 0;
    int32_t result = 0;
    while (take(&data, &result) && data != kStop) {
        auto* op = reinterpret_cast<NvmeReadOp*>(data);
        {
            const MutexLock lock(submit_mutex_);
            --under_way_;
            if (!waiting_.empty()) {
                issue();
            }
        }
        const int64_t said = result == -EINTR || result == -EAGAIN ? 0 : result;
        if (said == 0 && result != 0) {
            submit(op);  // interrupted: once more, it is nobody's error
            continue;
        }
        op->complete(io_.ring_result(said, op->size));
    }
}

}  // namespace

Result<std::unique_ptr<NvmeReadEngine>> create_ring_engine(FileIo& io,
                                                           const NvmeReadEngine::Options& options) {
    auto engine = std::make_unique<RingEngine>(io, std::clamp<size_t>(options.depth, 1, 1024));
    Status status = engine->start(std::clamp<size_t>(options.threads, 1, 16));
    if (!status.ok()) {
        return status;
    }
    return std::unique_ptr<NvmeReadEngine>(std::move(engine));
}

}  // namespace kvstore
