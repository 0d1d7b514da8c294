// Opening the folder of a block store, and judging what lies in it.
#include "store/store_files.h"

#include <unistd.h>

namespace kvstore {

Result<std::unique_ptr<StoreFiles>> StoreFiles::open(const Options& options) {
    std::unique_ptr<StoreFiles> files(new StoreFiles(options));
    auto slots =
        ClientSlots::open(options.directory, options.clients_name, options.discard_foreign);
    if (!slots.ok()) {
        if (slots.code() != Code::kVersionMismatch) {
            return slots.status();
        }
        return files->refuse_or_discard(slots.code(), slots.status().message());
    }
    files->slots_ = std::move(*slots);
    if (options.directory.empty()) {
        return files;
    }
    auto kept = KeptIndex::open(options.directory, options.index_name);
    if (kept.ok() && files->slots_->kept()) {
        files->kept_ = std::move(*kept);
    } else if (kept.ok()) {
        // Who may still write into the segment is not known without the clients file.
        files->start_cold("there is no " + options.clients_name + " file to the index");
    } else if (kept.code() == Code::kVersionMismatch) {
        const Status status = files->refuse_or_discard(kept.code(), kept.status().message());
        if (!status.ok()) {
            return status;
        }
    } else if (kept.code() == Code::kNotFound) {
        files->start_cold("");
    } else {
        files->start_cold(kept.status().message());
    }
    return files;
}

Status StoreFiles::check_owner(const Owner& owner) {
    if (kept_ == nullptr) {
        return {};
    }
    if (kept_->node_id() != owner.node_id) {
        return refuse_or_discard(Code::kInvalidArgument,
                                 "it belongs to node " + std::string(kept_->node_id()));
    }
    if (kept_->cluster_check() != owner.cluster_check) {
        return refuse_or_discard(Code::kInvalidArgument, "it belongs to another cluster");
    }
    if (kept_->segment_bytes() > owner.segment_bytes) {
        return refuse_or_discard(Code::kInvalidArgument,
                                 "it has " + std::to_string(kept_->segment_bytes()) +
                                     " bytes, more than segment_size " +
                                     std::to_string(owner.segment_bytes));
    }
    // Generations would be drawn twice.
    if (kept_->node_epoch() >= owner.node_epoch) {
        return refuse_or_discard(Code::kInvalidArgument, "it was written by epoch " +
                                                             std::to_string(kept_->node_epoch()) +
                                                             ", and this start has epoch " +
                                                             std::to_string(owner.node_epoch));
    }
    return {};
}

Status StoreFiles::refuse_or_discard(Code code, const std::string& why) {
    if (options_.discard_foreign) {
        start_cold(why);
        return {};
    }
    return {code, "segment_dir " + options_.directory + " cannot be taken over: " + why +
                      ". Set discard_foreign_segment to start with an empty segment instead"};
}

void StoreFiles::start_cold(const std::string& why) {
    why_cold_ = why;
    kept_.reset();
    // The index first: without it, nothing believes in the segment.
    for (const std::string& name : {options_.index_name, options_.segment_name}) {
        (void)unlink((options_.directory + "/" + name).c_str());
    }
}

}  // namespace kvstore
