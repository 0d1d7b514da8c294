// The records that master and node exchange over a link, apart from their encoding
// (messages_link.h): one type for each, on both sides.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/namespace_epoch.h"
#include "base/status.h"
#include "base/types.h"
#include "wire/messages_link.h"

namespace kvstore {

// The namespace part of a received message.
struct LinkNamespace {
    std::string tenant;
    std::string ns;
    uint32_t epoch = 0;
    friend bool operator==(const LinkNamespace&, const LinkNamespace&) = default;
};

// ---- node → master ---------------------------------------------------------------------------

// Views: valid during the call that takes it.
struct ClaimItem {
    uint64_t claim_id = 0;  // drawn by the node; unique in this incarnation
    std::string_view key;
    uint64_t size_bytes = 0;
    Pin pin = Pin::kNone;
    uint8_t replicas = 1;
    bool upsert = false;
};

// One published object.
struct AnnounceItem {
    uint64_t ticket = 0;  // returned with the answer; 0: nobody waits for it
    std::string key;
    Version version = 0;
    uint64_t size_bytes = 0;
    Pin pin = Pin::kNone;
    uint8_t replicas = 0;  // wanted; 0: not known here
    uint64_t ttl_ms = 0;   // 0: never expires
    uint8_t copies = 0;    // replicas wanted while many read it
};
struct AnnounceGroup {
    NamespaceRef ns;
    std::vector<AnnounceItem> items;
};
struct AnnounceResult {
    const AnnounceItem* item = nullptr;
    Code code = Code::kInternal;
};

struct WithdrawItem {
    std::string key;
    Version version = 0;
    MissReason reason = MissReason::kNone;
};

// ---- master → node ---------------------------------------------------------------------------

struct ClaimAnswer {
    LinkId link = 0;  // of the claim: each side has a number of its own for a link
    uint64_t claim_id = 0;
    Code code = Code::kInternal;  // kOk: granted with `version`
    Version version = 0;
    bool first = false;  // of its key (kClaimFirst)
};

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
// The same as it lies in a received frame, which numbers its operations from its own first one.
struct OpView {
    OpKind kind = OpKind::kNone;
    uint32_t epoch = 0;
    Version version = 0;
    uint64_t arg = 0;
    std::string_view tenant;
    std::string_view ns;
    std::string_view key;
};

// "Send your replica of this version to that node." Answered with CopyDone.
struct CopyOrder {
    LinkId link = 0;  // it came by, on the node
    uint64_t copy_id = 0;
    LinkNamespace ns;
    std::string key{};
    Version version = 0;
    std::string target_node{};
    std::string target_endpoint{};
};

}  // namespace kvstore
