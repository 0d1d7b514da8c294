// Rows of what the master sends over a node's link.
#pragma once

#include <cstdint>
#include <vector>

#include "wire/link_types.h"
#include "wire/messages_link.h"

namespace kvstore {

inline std::vector<ClaimAnswer> answers_of(const ClaimReply& reply, uint64_t link) {
    std::vector<ClaimAnswer> answers;
    answers.reserve(reply.claim_ids.size());
    for (size_t row = 0; row < reply.claim_ids.size(); ++row) {
        answers.push_back({link, reply.claim_ids[row], static_cast<Code>(reply.status[row]),
                           reply.versions[row], (reply.flags[row] & kClaimFirst) != 0});
    }
    return answers;
}

// Without those up to `known_seq`: what was applied on an earlier connection may come again. They
// view the message's body.
inline std::vector<OpView> new_ops_of(const Ops& message, uint64_t known_seq) {
    std::vector<OpView> ops;
    for (size_t row = 0; row < message.kinds.size(); ++row) {
        if (message.first_seq != 0 && message.first_seq + row <= known_seq) {
            continue;
        }
        ops.push_back({.kind = static_cast<OpKind>(message.kinds[row]),
                       .epoch = message.epochs[row],
                       .version = message.versions[row],
                       .arg = message.args[row],
                       .tenant = message.tenants[row],
                       .ns = message.namespaces[row],
                       .key = message.keys[row]});
    }
    return ops;
}

}  // namespace kvstore
