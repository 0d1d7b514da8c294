// One object's bytes, readable for as long as this lives: a held block of a node of this host, or a
// private copy when the object is not there.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "client/client_context.h"

namespace kvstore {

class ObjectView {
  public:
    // Null on a miss. The bytes are verified once, before they are handed out; a hold keeps them as
    // they are, also when the object is removed or evicted meanwhile.
    static std::unique_ptr<ObjectView> open(ClientContext& context, std::string_view key,
                                            Deadline deadline);
    ~ObjectView();
    ObjectView(const ObjectView&) = delete;
    ObjectView& operator=(const ObjectView&) = delete;

    const uint8_t* data() const { return data_; }
    uint64_t size() const { return size_; }
    bool zero_copy() const { return node_ != nullptr; }

  private:
    ObjectView() = default;
    static std::unique_ptr<ObjectView> hold(const std::shared_ptr<LocalNode>& node,
                                            const Identity& identity, std::string_view key,
                                            bool* wrong, Deadline deadline);
    bool keep(const IndexReader::Found& found, bool* stale, Deadline deadline);
    static std::unique_ptr<ObjectView> copy(ClientContext& context, std::string_view key,
                                            Deadline deadline);

    const uint8_t* data_ = nullptr;
    uint64_t size_ = 0;
    ForkGuard fork_guard_;
    std::shared_ptr<LocalNode> node_;
    std::optional<ClientSlot::Handle> hazard_;
    Generation held_by_socket_ = 0;
    std::vector<uint8_t> copy_;
};

}  // namespace kvstore
