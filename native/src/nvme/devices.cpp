// Which of several logs has an object, and what is asked of all of them.
#include "nvme/devices.h"

#include <algorithm>

namespace kvstore {
namespace {

// The first that is not Ok.
template <class Logs, class Ask>
Status first_error(const Logs& logs, const Ask& ask) {
    Status error;
    for (const auto& log : logs) {
        Status status = ask(*log);
        if (error.ok()) {
            error = std::move(status);
        }
    }
    return error;
}

constexpr uint64_t NvmeCounters::* const kSummed[] = {
    &NvmeCounters::objects,
    &NvmeCounters::bytes_live,
    &NvmeCounters::bytes_capacity,
    &NvmeCounters::index_bytes,
    &NvmeCounters::free_log_files,
    &NvmeCounters::bytes_written,
    &NvmeCounters::appended_objects,
    &NvmeCounters::reads,
    &NvmeCounters::bytes_read,
    &NvmeCounters::readmitted_objects,
    &NvmeCounters::readmitted_bytes,
    &NvmeCounters::dropped_objects,
    &NvmeCounters::log_files_reclaimed,
    &NvmeCounters::checksum_errors,
    &NvmeCounters::io_errors,
    &NvmeCounters::catalog_errors,
    &NvmeCounters::overloaded,
    &NvmeCounters::recovered_objects,
    &NvmeCounters::scanned_log_files,
    &NvmeCounters::damaged_log_files,
    &NvmeCounters::damaged_records,
    &NvmeCounters::torn_tails,
    &NvmeCounters::damaged_removals,
};
static_assert(sizeof(NvmeCounters) == std::size(kSummed) * sizeof(uint64_t), "one is missing");

}  // namespace

Result<std::unique_ptr<NvmeDevices>> NvmeDevices::open(std::span<const NvmeOptions> devices) {
    auto opened = std::make_unique<NvmeDevices>();
    for (const NvmeOptions& options : devices) {
        Result<std::unique_ptr<NvmeLog>> log = NvmeLog::open(options);
        if (!log.ok()) {
            return log.status();
        }
        opened->logs_.push_back(std::move(*log));
    }
    return opened;
}

NvmeLog& NvmeDevices::home(const Hash128& hash) const {
    const size_t first = hash.hi % logs_.size();
    for (size_t i = 0; i < logs_.size(); ++i) {
        NvmeLog& log = *logs_[(first + i) % logs_.size()];
        if (log.state() == NvmeState::kActive) {
            return log;
        }
    }
    return *logs_[first];
}

// Any of them, if none has it.
NvmeLog& NvmeDevices::holder(const NvmeRead& read) const {
    for (size_t i = 0; i + 1 < logs_.size(); ++i) {
        const std::optional<NvmeFound> found = logs_[i]->find(read.ns, read.hash);
        if (found && (read.version == 0 || read.version == found->version)) {
            return *logs_[i];
        }
    }
    return *logs_.back();
}

Status NvmeDevices::register_namespace(const NamespaceEpoch& ns) {
    return first_error(logs_, [&](NvmeLog& log) {
        return log.state() == NvmeState::kActive ? log.register_namespace(ns) : Status();
    });
}

Status NvmeDevices::append(const NvmeObject& object, std::span<const uint8_t> data,
                           const std::shared_ptr<const void>& lender) {
    const auto& [tenant, ns, hash, version, length] = object.identity;
    NvmeLog& chosen = home(hash);
    bool elsewhere = false;
    for (size_t i = 0; logs_.size() > 1 && i < logs_.size(); ++i) {
        const std::optional<NvmeFound> found = logs_[i]->find(ns, hash);
        if (found && found->version >= version) {
            return {Code::kAlreadyExists, "this version or a higher one is on another device"};
        }
        elsewhere |= found && logs_[i].get() != &chosen;
    }
    Status status = chosen.append(object, data, lender);
    for (size_t i = 0; status.ok() && elsewhere && i < logs_.size(); ++i) {
        if (logs_[i].get() != &chosen) {
            logs_[i]->remove(ns, hash, version - 1);
        }
    }
    return status;
}

bool NvmeDevices::await_space(const Hash128& hash, uint64_t data_bytes, uint32_t timeout_ms) {
    return home(hash).await_space(data_bytes, timeout_ms);
}

std::optional<NvmeFound> NvmeDevices::find(NamespaceId ns, const Hash128& hash) {
    std::optional<NvmeFound> best;
    for (const auto& log : logs_) {
        const std::optional<NvmeFound> found = log->find(ns, hash);
        if (found && (!best || found->version > best->version)) {
            best = found;
        }
    }
    return best;
}

void NvmeDevices::read(std::span<const NvmeRead> reads, const NvmeReadDone& done) {
    if (logs_.size() == 1) {
        return logs_.front()->read(reads, done);
    }
    std::vector<NvmeLog*> holders;
    holders.reserve(reads.size());
    for (const NvmeRead& read : reads) {
        holders.push_back(&holder(read));
    }
    std::vector<NvmeRead> here;
    for (const auto& log : logs_) {
        here.clear();
        for (size_t i = 0; i < reads.size(); ++i) {
            if (holders[i] == log.get()) {
                here.push_back(reads[i]);
            }
        }
        log->read(here, done);
    }
}

void NvmeDevices::hurry(std::span<const Hash128> hashes) {
    for (const auto& log : logs_) {
        log->hurry(hashes);
    }
}

bool NvmeDevices::remove(NamespaceId ns, const Hash128& hash, Version version) {
    bool removed = false;
    for (const auto& log : logs_) {
        removed |= log->remove(ns, hash, version);
    }
    return removed;
}

void NvmeDevices::flush_namespace(NamespaceId ns) {
    for (const auto& log : logs_) {
        log->flush_namespace(ns);
    }
}

Status NvmeDevices::sync_removals() {
    return first_error(logs_, [](NvmeLog& log) { return log.sync_removals(); });
}

void NvmeDevices::note_applied(uint64_t applied_seq) {
    for (const auto& log : logs_) {
        log->note_applied(applied_seq);
    }
}

uint64_t NvmeDevices::recovered_applied() const {
    uint64_t applied = UINT64_MAX;
    for (const auto& log : logs_) {
        applied = std::min(applied, log->recovered_applied());
    }
    return applied;
}

Status NvmeDevices::sync() {
    return first_error(logs_, [](NvmeLog& log) { return log.sync(); });
}

void NvmeDevices::set_pin(NamespaceId ns, const Hash128& hash, Pin pin) {
    for (const auto& log : logs_) {
        static_cast<void>(log->set_pin(ns, hash, pin));
    }
}

void NvmeDevices::set_policy(const NvmePolicy& policy) {
    for (const auto& log : logs_) {
        log->set_policy(policy);
    }
}

Status NvmeDevices::list(Cursor* cursor, size_t max, std::vector<NvmeListed>* out) {
    if (cursor->device < logs_.size()) {
        const size_t before = out->size();
        Status status = logs_[cursor->device]->list(&cursor->at, max, out);
        if (logs_.size() > 1) {
            drop_older(before, out);
        }
        if (cursor->at.done || !status.ok()) {
            ++cursor->device;
            cursor->at = {};
        }
    }
    cursor->done = cursor->device >= logs_.size();
    return {};
}

void NvmeDevices::drop_older(size_t first, std::vector<NvmeListed>* listed) {
    const auto is_older = [this](const NvmeListed& one) {
        const std::optional<NvmeFound> best = find(one.ns.id, one.identity.hash);
        return best && best->version > one.identity.version;
    };
    const auto begin = listed->begin() + static_cast<ptrdiff_t>(first);
    listed->erase(std::remove_if(begin, listed->end(), is_older), listed->end());
}

std::vector<NamespaceEpoch> NvmeDevices::namespaces() const {
    std::vector<NamespaceEpoch> all;
    for (const auto& log : logs_) {
        for (NamespaceEpoch& ns : log->namespaces()) {
            const auto same = [&](const NamespaceEpoch& other) { return other.id == ns.id; };
            if (std::ranges::none_of(all, same)) {
                all.push_back(std::move(ns));
            }
        }
    }
    return all;
}

bool NvmeDevices::is_active() const {
    return std::ranges::any_of(logs_,
                               [](const auto& log) { return log->state() == NvmeState::kActive; });
}

NvmeState NvmeDevices::state() const {
    NvmeState worst = NvmeState::kActive;
    for (const auto& log : logs_) {
        worst = std::max(worst, log->state());
    }
    return worst;
}

Status NvmeDevices::error() const {
    return first_error(logs_, [](const NvmeLog& log) { return log.error(); });
}

NvmeCounters NvmeDevices::counters() const {
    NvmeCounters sum;
    for (const auto& log : logs_) {
        const NvmeCounters one = log->counters();
        for (const auto counter : kSummed) {
            sum.*counter += one.*counter;
        }
    }
    return sum;
}

}  // namespace kvstore
