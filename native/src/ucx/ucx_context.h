// A UCX context of this process: its devices, and memory that others may read and write through
// them.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/fork_guard.h"
#include "base/status.h"
#include "ucx/ucx_library.h"

namespace kvstore {

struct UcxOptions {
    std::vector<std::string> libraries;  // tried in order
    // Of UCX, without the prefix UCX_: {"NET_DEVICES", "mlx5_0:1"}. They become variables of this
    // process.
    std::vector<std::pair<std::string, std::string>> settings;
};

class UcxMemory;

// Thread-safe.
class UcxContext : public std::enable_shared_from_this<UcxContext> {
  public:
    static Result<std::shared_ptr<UcxContext>> open(const UcxOptions& options);
    ~UcxContext();

    // Whoever gets the memory's key may read *and write* it. The memory stays the caller's, and
    // mapped until the registration is destroyed. kUnsupported: this UCX moves no such memory.
    Result<std::unique_ptr<UcxMemory>> register_memory(
        void* data, size_t bytes, ucp::MemoryType type = ucp::MemoryType::kHost);
    bool moves(ucp::MemoryType type) const;

    const UcxLibrary& library() const { return library_; }
    ucp::Context* get() const { return context_; }
    // In a forked child nothing of UCX may be called, not even to free it.
    bool in_forked_child() const { return fork_guard_.in_child(); }
    // "no device: Destination is unreachable"
    Status failure(Code code, const char* what, ucp::UcsStatus status) const;

  private:
    UcxContext(const UcxLibrary& library, ucp::Context* context, uint64_t memory_types)
        : library_(library), context_(context), memory_types_(memory_types) {}

    const UcxLibrary& library_;
    ucp::Context* const context_;
    const uint64_t memory_types_;
    const ForkGuard fork_guard_;
};

// Registered memory, until it is destroyed. UCX may keep the registration in a cache, and with it
// the key, until the memory is unmapped: what must end at once ends with the process.
class UcxMemory {
  public:
    UcxMemory(std::shared_ptr<UcxContext> context, ucp::Memory* memory, void* data, size_t bytes,
              ucp::MemoryType type, std::string key)
        : context_(std::move(context)),
          memory_(memory),
          data_(static_cast<uint8_t*>(data)),
          bytes_(bytes),
          type_(type),
          key_(std::move(key)) {}
    UcxMemory(const UcxMemory&) = delete;
    UcxMemory& operator=(const UcxMemory&) = delete;
    ~UcxMemory();

    uint8_t* data() const { return data_; }
    size_t size() const { return bytes_; }
    ucp::MemoryType type() const { return type_; }
    bool holds(const void* data, size_t bytes) const;
    // What a peer unpacks to reach it.
    const std::string& key() const { return key_; }
    ucp::Memory* get() const { return memory_; }

  private:
    const std::shared_ptr<UcxContext> context_;
    ucp::Memory* const memory_;
    uint8_t* const data_;
    const size_t bytes_;
    const ucp::MemoryType type_;
    const std::string key_;
};

}  // namespace kvstore
