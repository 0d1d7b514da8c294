// Each wait is looked at whole: there are few at a time, and a row costs a comparison per holder.
#include "master/ack_waits.h"

#include <algorithm>

#include "base/mutation.h"

namespace kvstore {

void AckWaits::add(std::vector<AckRow> rows, uint64_t deadline_ms, Done done) {
    uint64_t last_seq = 0;
    for (const AckRow& row : rows) {
        last_seq = std::max(last_seq, row.seq);
    }
    waits_.push_back({std::move(rows), last_seq, deadline_ms, std::move(done)});
}

AckWaits::Ready AckWaits::finish(Wait& wait, uint64_t durable_seq, const Look& look) {
    Ready ready{std::move(wait.done), {}, {}};
    for (const AckRow& row : wait.rows) {
        Code code = row.code;
        for (const NodeNumber holder : row.holders) {
            if (KV_GUARD("holders", look(holder).applied_seq < row.seq)) {
                code = Code::kPartial;
                if (std::find(ready.unreached.begin(), ready.unreached.end(), holder) ==
                    ready.unreached.end()) {
                    ready.unreached.push_back(holder);
                }
            }
        }
        if (KV_GUARD("journal", row.seq > durable_seq)) {
            code = Code::kDeadlineExceeded;  // the journal has not written it: it may be forgotten
        }
        ready.codes.push_back(code);
    }
    return ready;
}

std::vector<AckWaits::Ready> AckWaits::collect(uint64_t durable_seq, uint64_t now_ms,
                                               const Look& look) {
    std::vector<Ready> ready;
    for (auto wait = waits_.begin(); wait != waits_.end();) {
        const bool over =
            wait->deadline_ms <= now_ms ||
            (!KV_GUARD("journal", wait->last_seq > durable_seq) &&
             std::all_of(wait->rows.begin(), wait->rows.end(), [&](const AckRow& row) {
                 return std::all_of(row.holders.begin(), row.holders.end(), [&](NodeNumber holder) {
                     const AckNode node = look(holder);
                     return !node.connected || !KV_GUARD("holders", node.applied_seq < row.seq);
                 });
             }));
        if (over) {
            ready.push_back(finish(*wait, durable_seq, look));
            wait = waits_.erase(wait);
        } else {
            ++wait;
        }
    }
    return ready;
}

std::vector<AckWaits::Ready> AckWaits::collect_all(uint64_t durable_seq, const Look& look) {
    return collect(durable_seq, UINT64_MAX, look);
}

}  // namespace kvstore
