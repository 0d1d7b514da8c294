// A link as the master sees it: what it can say to one node.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "wire/link_types.h"

namespace kvstore {

class NodeLink {
  public:
    virtual ~NodeLink() = default;
    // None of these blocks or calls back into the master; what cannot be sent closes the link.
    virtual void send_claims(std::span<const ClaimAnswer> answers) = 0;
    virtual void send_ops(std::span<const Op> ops) = 0;
    virtual void send_copy(const CopyOrder& order) = 0;
    virtual void send_ping(uint64_t token) = 0;
    // `text`: the reply's bytes, or what is wrong.
    virtual void send_heartbeat_answer(uint64_t request_id, Code code, std::string_view text) = 0;
    virtual void close(const std::string& reason) = 0;
    // When anything last came from the node, as boottime_ms() counts.
    virtual uint64_t heard_ms() const = 0;
};

}  // namespace kvstore
