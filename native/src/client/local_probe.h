// Where the mapped memory of this host's nodes has the objects of a list.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "client/client_context.h"

namespace kvstore {

class LocalProbe {
  public:
    static constexpr int8_t kNowhere = -1;
    struct Row {
        HashedKey key;
        IndexReader::Found found;
        int8_t local = kNowhere;  // position in locals()
    };

    // Probes every node of this host that is attached; one row for each of `count` keys.
    // `key_of(row)` names them.
    template <class KeyOf>
    void run(ClientContext& context, size_t count, Deadline deadline, KeyOf&& key_of) {
        begin(context, count, deadline);
        for (size_t row = 0; row < count; ++row) {
            rows_[row].key.key = key_of(row);
        }
        probe_rows(context);
    }

    std::span<Row> rows() { return rows_; }
    const std::vector<LocalPeer>& locals() const { return locals_; }
    // Where one client's calls are counted; null where it has no slot.
    ClientSlot* slot() const { return locals_.empty() ? nullptr : &locals_.front().node->slot(); }

  private:
    void begin(ClientContext& context, size_t count, Deadline deadline);
    void probe_rows(ClientContext& context);

    std::vector<LocalPeer> locals_;
    std::vector<NamespaceId> namespaces_;  // of each of locals_
    std::vector<Row> rows_;
};

}  // namespace kvstore
