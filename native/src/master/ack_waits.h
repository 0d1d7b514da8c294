// Removes, flushes and pins that wait until every holder has applied them. Not thread-safe: the
// master's mutex guards it; what is ready is returned, to be answered outside of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <list>
#include <string>
#include <vector>

#include "base/status.h"
#include "wire/link_types.h"

namespace kvstore {

struct AckRow {
    Code code = Code::kOk;  // the answer once every holder has acknowledged
    uint64_t seq = 0;       // of the row's operation; 0: none, the code stands
    std::vector<NodeNumber> holders;
    // Once each; kNoNode is nobody.
    void add_holder(NodeNumber slot) {
        if (slot != kNoNode && std::find(holders.begin(), holders.end(), slot) == holders.end()) {
            holders.push_back(slot);
        }
    }
};

// What the master knows of a node when a wait looks at it.
struct AckNode {
    bool connected = false;
    uint64_t applied_seq = 0;
};

class AckWaits {
  public:
    using Done = std::function<void(std::vector<Code> codes, std::vector<NodeNumber> unreached)>;
    using Look = std::function<AckNode(NodeNumber)>;
    struct Ready {
        Done done;
        std::vector<Code> codes;
        std::vector<NodeNumber> unreached;
        void run() { done(std::move(codes), std::move(unreached)); }
    };

    void add(std::vector<AckRow> rows, uint64_t deadline_ms, Done done);
    // Those whose operations are durable and whose holders have all acknowledged or are not
    // connected; and those past their deadline.
    std::vector<Ready> collect(uint64_t durable_seq, uint64_t now_ms, const Look& look);
    std::vector<Ready> collect_all(uint64_t durable_seq, const Look& look);  // at the end
    size_t size() const { return waits_.size(); }

  private:
    struct Wait {
        std::vector<AckRow> rows;
        uint64_t last_seq;
        uint64_t deadline_ms;
        Done done;
    };
    static Ready finish(Wait& wait, uint64_t durable_seq, const Look& look);

    std::list<Wait> waits_;
};

}  // namespace kvstore
