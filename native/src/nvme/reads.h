// Reads from files, many at a time: by io_uring where the kernel offers it, else by a pool of
// threads with pread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "nvme/file_io.h"

namespace kvstore {

// One read of whole blocks. Both ends are multiples of kIoAlign, and so is `to`.
class NvmeReadOp {
  public:
    virtual ~NvmeReadOp() = default;
    int fd = -1;
    uint8_t* to = nullptr;
    uint32_t size = 0;
    uint64_t offset = 0;
    // Called once, on a thread of the engine, with the bytes read or -errno. The op may be
    // submitted again from inside.
    virtual void complete(int64_t result) = 0;
};

class NvmeReadEngine {
  public:
    enum class Way : uint8_t { kAuto, kRing, kPool };
    struct Options {
        Way way = Way::kAuto;
        size_t depth = 32;   // reads in progress at once, and the pool's threads
        size_t threads = 2;  // of the ring: they also run complete()
    };

    // Unsupported: the ring was asked for and the kernel refuses it.
    static Result<std::unique_ptr<NvmeReadEngine>> create(FileIo& io, const Options& options);
    // Every op that was submitted has been completed.
    virtual ~NvmeReadEngine() = default;
    // Takes any number: what is above the depth waits. `op` must live until it is completed.
    virtual void submit(NvmeReadOp* op) = 0;
    virtual const char* name() const = 0;  // "io_uring" or "pread"
};

Result<std::unique_ptr<NvmeReadEngine>> create_ring_engine(FileIo& io,
                                                           const NvmeReadEngine::Options& options);

}  // namespace kvstore
