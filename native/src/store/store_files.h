// The folder of a block store: who owns it, and what an earlier life of the node has left there.
//
// It is opened before the node registers: the lock proves that no other process runs on this
// memory, and the epoch of the earlier life is the least that the new one may have.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "index/client_slots.h"
#include "index/kept_index.h"

namespace kvstore {

class StoreFiles {
  public:
    struct Options {
        std::string directory;  // empty: anonymous memory, nothing is kept
        std::string domain;     // one of several stores in the folder; empty: the first
        // What cannot be kept (another format, node or cluster) is thrown away instead of refused.
        bool discard_foreign = false;
    };
    // kUnavailable: another process owns the folder. kVersionMismatch: another format wrote it.
    static Result<std::unique_ptr<StoreFiles>> open(const Options& options);

    // Removes what lies in the folder of domains that are not among these.
    static void remove_other_domains(const std::string& directory,
                                     const std::vector<std::string>& domains);

    // Whether what is kept belongs to this node: kInvalidArgument with a sentence when it does not.
    struct Owner {
        std::string_view node_id;
        uint32_t node_epoch = 0;
        uint64_t cluster_check = 0;
    };
    Status check_owner(const Owner& owner);

    const Options& options() const { return options_; }
    std::string segment_name() const { return name_of("segment"); }
    std::string index_name() const { return name_of("index"); }
    std::string clients_name() const { return name_of("clients"); }
    uint32_t kept_epoch() const { return kept_ == nullptr ? 0 : kept_->node_epoch(); }
    KeptIndex* kept() const { return kept_.get(); }  // null: the node starts with nothing
    const std::string& why_cold() const { return why_cold_; }

    bool has_clients() const { return slots_ != nullptr && slots_->has_clients(); }

    // Nothing is kept after all: the names are free for new files.
    void start_cold(const std::string& why);

    std::unique_ptr<ClientSlots> take_slots() { return std::move(slots_); }
    void give_back(std::unique_ptr<ClientSlots> slots) { slots_ = std::move(slots); }
    // The earlier life has ended: its mapping is not needed any more.
    void drop_kept() { kept_.reset(); }

  private:
    explicit StoreFiles(Options options) : options_(std::move(options)) {}
    std::string name_of(const char* kind) const {
        return options_.domain.empty() ? kind : kind + ("-" + options_.domain);
    }
    Status refuse_or_discard(Code code, const std::string& why);

    Options options_;
    std::unique_ptr<ClientSlots> slots_;
    std::unique_ptr<KeptIndex> kept_;
    std::string why_cold_;
};

}  // namespace kvstore
