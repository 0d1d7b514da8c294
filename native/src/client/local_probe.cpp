// Probing in a pipeline: what one stage prefetches has arrived when the next reads it.
#include "client/local_probe.h"

#include "client/pipeline.h"

namespace kvstore {
namespace {

constexpr size_t kMaxLocals = 8;  // nodes of one host that are probed

}  // namespace

void LocalProbe::begin(ClientContext& context, size_t count, Deadline deadline) {
    context.nodes().locals(deadline, &locals_);
    namespaces_.clear();
    std::erase_if(locals_, [&](const LocalPeer& local) {
        const Result<NamespaceId> ns = local.node->current_namespace(deadline);
        if (!ns.ok() || namespaces_.size() >= kMaxLocals) {
            return true;
        }
        namespaces_.push_back(*ns);
        return false;
    });
    rows_.resize(count);
}

void LocalProbe::probe_rows(ClientContext& context) {
    const NamespaceId ns = namespaces_.empty() ? context.namespace_now() : namespaces_.front();
    const uint64_t now_ms = boottime_ms();
    in_pipeline<IndexReader::kPrefetchStages + 1>(rows_.size(), [&](size_t stage, size_t i) {
        Row& row = rows_[i];
        if (stage == 0) {
            context.rehash(&row.key, ns);
        }
        for (size_t n = 0; n < locals_.size() && row.local == kNowhere; ++n) {
            const IndexReader& index = locals_[n].node->index();
            if (stage < IndexReader::kPrefetchStages) {
                index.prefetch(stage, row.key.hash);
                continue;
            }
            context.rehash(&row.key, namespaces_[n]);
            if (const auto found = index.probe(namespaces_[n], row.key.hash, row.key.key, now_ms)) {
                row.found = *found;
                row.local = static_cast<int8_t>(n);
            }
        }
    });
}

}  // namespace kvstore
