// A GPU's memory as UCX reads into it and out of it: no byte of it passes through the processor.
#pragma once

#include <optional>
#include <span>

#include "client/device_call.h"

namespace kvstore {

class DirectMemory {
  public:
    // An object's memory, of which the first `bytes` count.
    struct Object {
        const Pieces* memory = nullptr;
        uint64_t bytes = 0;
        uint32_t crc = 0;  // in: of the header on the host; out: of all bytes
    };

    DirectMemory(ClientContext& context, const DeviceCall& call) : context_(context), call_(call) {}

    // Whether UCX may reach all of it, and a kernel can sum it.
    bool reaches(const Pieces& memory) const;
    const CudaContext& context() const { return *call_.device.context; }
    bool on_host(size_t piece) const { return call_.on_host(piece); }
    // A network does not wait for a stream: nothing is written before this is Ok. What the stream
    // was given before has been done then.
    Status wait_for_stream(Deadline deadline);
    // Waits for the sums, which a kernel makes behind what the stream does.
    Status sum(std::span<Object> objects, Deadline deadline);

  private:
    ClientContext& context_;
    const DeviceCall& call_;
    std::optional<Status> waited_;
};

// As ClientUcx::register_memory, for memory of one CUDA device.
Status register_device_memory(ClientContext& context, uintptr_t address, size_t bytes);

}  // namespace kvstore
