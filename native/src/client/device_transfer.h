// A get into GPU memory whose copies are queued on a stream: what came of it, once they are done.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "client/get_item.h"
#include "client/held_blocks.h"

namespace kvstore {

// Holds every block that a queued copy reads, until the event behind the copies has fired.
// Thread-safe.
class DeviceTransfer {
  public:
    struct Row {
        int64_t result = static_cast<int64_t>(Code::kNotFound);  // as GetItem has it
        MissReason reason = MissReason::kAbsent;
    };

    // What becomes of a row whose block did not change until its copy was done.
    using Judge = std::function<Row(const HeldBlocks::Block&)>;

    explicit DeviceTransfer(size_t rows) : rows_(rows), is_direct_(rows, false) {}

    // What is known so far; final once done() is true.
    std::vector<Row> rows() const KV_EXCLUDES(mutex_);
    bool done() const KV_EXCLUDES(mutex_);
    // False when the deadline expires before.
    bool wait(Deadline deadline) KV_EXCLUDES(mutex_);
    // Why the copies failed; Ok while they go on, and when they have not.
    Status status() const KV_EXCLUDES(mutex_);

    // For whoever queues. Nothing is done before the last of the events it counts on.
    void set(size_t row, const Row& value) KV_EXCLUDES(mutex_);
    // The same for a row whose bytes come straight from a held block.
    void set_direct(size_t row, const Row& value) KV_EXCLUDES(mutex_);
    void expect(size_t events) KV_EXCLUDES(mutex_);
    // One of the events has fired (Ok), or never will. The blocks that were copied are looked at
    // once more, judged, and given back. Without a judge rows keep what set_direct() said.
    void end_event(const Status& status, std::vector<std::unique_ptr<HeldBlocks>> held,
                   const Judge& judge = nullptr) KV_EXCLUDES(mutex_);
    // Rows that count as misses: their object was replaced or withdrawn while it was copied, or
    // what arrived is not what was put.
    std::vector<size_t> unproven() const KV_EXCLUDES(mutex_);

  private:
    mutable Mutex mutex_;
    CondVar ended_;
    std::vector<Row> rows_ KV_GUARDED_BY(mutex_);
    std::vector<bool> is_direct_ KV_GUARDED_BY(mutex_);
    std::vector<size_t> unproven_ KV_GUARDED_BY(mutex_);
    size_t events_ KV_GUARDED_BY(mutex_) = 0;  // that have not ended
    Status status_ KV_GUARDED_BY(mutex_);
};

}  // namespace kvstore
