// What the master says to a node over its link, apart from the wire: operations, copy orders,
// claims.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/types.h"
#include "wire/messages_link.h"

namespace kvstore {

// One entry of the operations log. A remove covers every version at or below `version`; a flush
// ends `epoch` (the next one is `arg`); a pin sets the level `arg`.
struct Op {
    uint64_t seq = 0;
    OpKind kind = OpKind::kRemove;
    uint32_t epoch = 0;
    Version version = 0;
    uint64_t arg = 0;
    std::string tenant{};
    std::string ns{};
    std::string key{};
};

struct ClaimAnswer {
    LinkId link = 0;
    uint64_t claim_id = 0;
    Code code = Code::kOk;  // kOk: granted with `version`
    Version version = 0;
};

// "Send your replica of this version to that node." Answered with CopyDone.
struct CopyOrder {
    uint64_t copy_id = 0;
    std::string tenant{};
    std::string ns{};
    uint32_t epoch = 0;
    std::string key{};
    Version version = 0;
    std::string target_node{};
    std::string target_endpoint{};
};

class NodeLink {
  public:
    virtual ~NodeLink() = default;
    // None of these blocks or calls back into the master; what cannot be sent closes the link.
    virtual void send_claims(std::span<const ClaimAnswer> answers) = 0;
    virtual void send_ops(std::span<const Op> ops) = 0;
    virtual void send_copy(const CopyOrder& order) = 0;
    virtual void close(const std::string& reason) = 0;
};

}  // namespace kvstore
