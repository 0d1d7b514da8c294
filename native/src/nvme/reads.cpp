// The pool of threads with pread, and the choice between the two ways.
#include "nvme/reads.h"

#include <algorithm>
#include <deque>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace kvstore {
namespace {

class PoolEngine : public NvmeReadEngine {
  public:
    PoolEngine(FileIo& io, size_t threads) : io_(io) {
        for (size_t i = 0; i < threads; ++i) {
            threads_.emplace_back([this] { run(); });
        }
    }
    ~PoolEngine() override {
        {
            const MutexLock lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (std::thread& thread : threads_) {
            thread.join();
        }
    }
    void submit(NvmeReadOp* op) override {
        {
            const MutexLock lock(mutex_);
            waiting_.push_back(op);
        }
        wake_.notify_one();
    }
    const char* name() const override { return "pread"; }

  private:
    void run() {
        MutexLock lock(mutex_);
        while (true) {
            wake_.wait(mutex_,
                       [this]() KV_REQUIRES(mutex_) { return stopping_ || !waiting_.empty(); });
            if (waiting_.empty()) {
                return;
            }
            NvmeReadOp* op = waiting_.front();
            waiting_.pop_front();
            lock.unlock();
            op->complete(io_.read(op->fd, op->to, op->size, op->offset));
            lock.lock();
        }
    }

    FileIo& io_;
    Mutex mutex_;
    CondVar wake_;
    std::deque<NvmeReadOp*> waiting_ KV_GUARDED_BY(mutex_);
    bool stopping_ KV_GUARDED_BY(mutex_) = false;
    std::vector<std::thread> threads_;
};

}  // namespace

Result<std::unique_ptr<NvmeReadEngine>> NvmeReadEngine::create(FileIo& io, const Options& options) {
    if (options.way != Way::kPool) {
        Result<std::unique_ptr<NvmeReadEngine>> ring = create_ring_engine(io, options);
        if (ring.ok() || options.way == Way::kRing) {
            return ring;
        }
    }
    return std::unique_ptr<NvmeReadEngine>(
        std::make_unique<PoolEngine>(io, std::clamp<size_t>(options.depth, 1, 256)));
}

}  // namespace kvstore
