// Opening the folder of a block store, and judging what lies in it.
#include "store/store_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include "base/clock.h"
#include "base/file.h"

namespace kvstore {
namespace {

constexpr uint64_t kProcessMs = 5'000;

// A UCX process of the earlier life, which the kernel ends with its node, may have bytes on their
// way into the segment; it holds a lock until it is gone.
Status wait_for_ucx_process(const std::string& segment) {
    const Fd fd(::open(segment.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    const Deadline deadline = Deadline::after_ms(kProcessMs);
    while (fd.valid()) {
        struct flock whole{};
        whole.l_type = F_WRLCK;
        whole.l_whence = SEEK_SET;
        if (fcntl(fd.get(), F_GETLK, &whole) != 0 || whole.l_type == F_UNLCK) {
            break;
        }
        if (deadline.expired()) {
            return {Code::kUnavailable, segment + " is still served by UCX, by process " +
                                            std::to_string(whole.l_pid) + ": end it first"};
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return {};
}

}  // namespace

Result<std::unique_ptr<StoreFiles>> StoreFiles::open(const Options& options) {
    std::unique_ptr<StoreFiles> files(new StoreFiles(options));
    auto slots =
        ClientSlots::open(options.directory, files->clients_name(), options.discard_foreign);
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
    if (Status status = wait_for_ucx_process(options.directory + "/" + files->segment_name());
        !status.ok()) {
        return status;
    }
    auto kept = KeptIndex::open(options.directory, files->index_name());
    if (kept.ok() && files->slots_->kept()) {
        files->kept_ = std::move(*kept);
    } else if (kept.ok()) {
        // Who may still write into the segment is not known without the clients file.
        files->start_cold("there is no " + files->clients_name() + " file to the index");
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

void StoreFiles::remove_other_domains(const std::string& directory,
                                      const std::vector<std::string>& domains) {
    std::error_code error;
    std::vector<std::filesystem::path> others;
    for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
        const std::string name = entry.path().filename().string();
        for (const std::string kind : {"segment-", "index-", "clients-"}) {
            const std::string domain = name.starts_with(kind) ? name.substr(kind.size()) : "";
            // Its slots are `clients-DOMAIN.NUMBER`.
            const bool is_known =
                std::ranges::find(domains, domain.substr(0, domain.find('.'))) != domains.end();
            if (!domain.empty() && !is_known &&
                entry.symlink_status(error).type() == std::filesystem::file_type::regular) {
                others.push_back(entry.path());
            }
        }
    }
    for (const std::filesystem::path& path : others) {
        (void)unlink(path.c_str());
    }
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
    for (const std::string& name : {index_name(), segment_name()}) {
        (void)unlink((options_.directory + "/" + name).c_str());
    }
}

}  // namespace kvstore
