// Appending: the head of the log, and the three steps of an append.
#include <algorithm>
#include <array>

#include "base/checksum.h"
#include "base/clock.h"
#include "base/limits.h"
#include "nvme/log.h"

namespace kvstore {

// Before the bytes are copied, and again after: what does not hold any more becomes a pad.
Status NvmeLog::check_append(const NvmeObject& object, std::optional<uint64_t> moved_from) const {
    const Identity& identity = object.identity;
    const std::optional<uint16_t> slot = namespaces_.find(identity.ns);
    if (!slot || namespaces_.slot(*slot).names.tenant_id != identity.tenant) {
        return {Code::kInvalidArgument, "the namespace was not registered on NVMe"};
    }
    if (namespaces_.slot(*slot).flushed || removed_lately(identity.hash, identity.version)) {
        return {Code::kRemoved, "removed before it was on NVMe"};
    }
    const std::optional<NvmeEntry> present = index_->find(identity.hash);
    if (moved_from) {
        if (present && present->unit == *moved_from) {
            return {};
        }
        return {Code::kRemoved, "no longer there to be moved"};
    }
    if (present && present->version >= identity.version) {
        return Code::kAlreadyExists;
    }
    if (object.pin != Pin::kHard) {
        return {};
    }
    return check_pinned(record_bytes(object.key.size(), identity.length));
}

// What is pinned moves from reclaim to reclaim: it must leave room to do that, and for others.
Status NvmeLog::check_pinned(uint64_t more) const {
    const uint64_t most = (files_.count() - kMinReserve - 1) * log_file_bytes_ / 100 * 45;
    if (pinned_bytes_ + more <= most) {
        return {};
    }
    return {Code::kNoSpace, std::to_string(most) +
                                " bytes, as many as nvme_size allows, are pinned on NVMe: unpin, "
                                "or raise nvme_size"};
}

// Log files that only a reclaim may begin, for what it moves.
uint64_t NvmeLog::reserve() const {
    return files_.count() < 2 * NvmeFolder::kMinLogFiles ? kMinReserve : kMinReserve + 1;
}

// Whether an append of others leaves what the reclaim in progress still has to move.
bool NvmeLog::leaves_reserve(uint64_t size) const {
    if (reclaim_needs_ == 0) {
        return true;
    }
    const uint64_t free = files_.free_or_ready() * (log_file_bytes_ - kLogFileHeaderBytes);
    const uint64_t room = buffers_->fits(size) ? buffers_->file_room() : 0;
    return room + free >= reclaim_needs_ + size;
}

// Makes the log's head a log file with room for one more record. False: not now.
bool NvmeLog::ensure_head(uint64_t record_size, bool reserve_too) {
    if (!reserve_too && !leaves_reserve(record_size)) {
        return false;
    }
    if (buffers_->has_file() && buffers_->fits(record_size)) {
        return true;
    }
    must_maintain_ = true;
    maintain_wake_.notify_one();
    const std::optional<uint32_t> next = files_.next_ready();
    if (!next || (!reserve_too && files_.free_or_ready() <= reserve())) {
        return false;
    }
    if (buffers_->has_file()) {
        files_.end_head(buffers_->file());
        buffers_->end_file();
        write_wake_.notify_all();
    }
    if (!buffers_->begin_file(*next, files_[*next].seq(), kLogFileHeaderBytes, log_file_bytes_,
                              folder_->session(), {}, boottime_ms())) {
        return false;
    }
    files_.begin_head(*next);
    return true;
}

// Writes the namespace's names into the head when this log file does not have them yet.
bool NvmeLog::declare_namespace(const NamespaceEpoch& ns) {
    Manifest& manifest = *files_[buffers_->file()].manifest();
    if (manifest.has_namespace(ns.id)) {
        return true;
    }
    const std::string names = ns.tenant + ns.name;
    std::unique_ptr<Reservation> room =
        buffers_->reserve(record_head_bytes(names.size()), boottime_ms());
    if (room == nullptr) {
        return false;
    }
    RecordHead head;
    head.kind = RecordKind::kNamespace;
    head.seq = buffers_->seq();
    head.session = folder_->session();
    head.identity = {.tenant = ns.tenant_id,
                     .ns = ns.id,
                     .hash = {},
                     .version = ns.epoch,
                     .length = ns.tenant.size()};
    head.key = names;
    std::array<uint8_t, kMaxRecordHeadBytes> bytes;
    encode_record_head(head, bytes.data());
    room->write(bytes.data(), room->size());
    buffers_->finish(std::move(room));
    manifest.add_namespace(ns);
    return true;
}

Status NvmeLog::append(const NvmeObject& object, std::span<const uint8_t> data,
                       const std::shared_ptr<const void>& lender) {
    if (object.key.empty() || object.key.size() > limits::kMaxKeyBytes ||
        object.identity.version == 0 || object.identity.length != data.size() ||
        object.pin > Pin::kHard) {
        return {Code::kInvalidArgument, "no object that can be on NVMe"};
    }
    if (data.size() > max_object_bytes()) {
        return {Code::kTooLarge, "objects on NVMe have at most " +
                                     std::to_string(max_object_bytes()) +
                                     " bytes: raise nvme_size, or the size of its log files"};
    }
    return append_record({.object = object,
                          .data = data,
                          .lender = WriteBuffers::may_lend(data) ? lender : nullptr});
}

// The record is copied without mutex_.
Status NvmeLog::append_record(Appending appending) {
    MutexLock lock(mutex_);
    if (Status status = prepare_append(&appending); !status.ok()) {
        return status;
    }
    lock.unlock();
    const bool is_genuine = write_record(appending);
    lock.lock();
    return publish_append(appending, is_genuine);
}

// Takes room for the record at the head of the log.
Status NvmeLog::prepare_append(Appending* appending) {
    const NvmeObject& object = appending->object;
    if (state_ != NvmeState::kActive) {
        return error_;
    }
    if (Status status = check_append(object, appending->moved_from); !status.ok()) {
        return status;
    }
    appending->ns_slot = *namespaces_.find(object.identity.ns);
    NvmeNamespaces::Slot& slot = namespaces_.slot(appending->ns_slot);
    reserve_room(appending);
    if (appending->room == nullptr) {
        ++counters_.overloaded;
        return {Code::kOverloaded, "the NVMe tier has no free write buffer or log file now"};
    }
    appending->file = buffers_->file();
    RecordHead& head = appending->head;
    head.kind = RecordKind::kObject;
    head.pin = object.pin;
    head.sealed_crc = object.sealed_crc;
    head.seq = buffers_->seq();
    head.session = folder_->session();
    head.expires_at_ms = object.expires_at_ms;
    head.put_wall_ms = object.put_wall_ms;
    head.identity = object.identity;
    head.parent = object.parent;
    head.key = object.key;
    ++slot.appending;
    return {};
}

void NvmeLog::reserve_room(Appending* appending) {
    const size_t key_bytes = appending->object.key.size();
    const uint64_t size = record_bytes(key_bytes, appending->data.size());
    const uint64_t more = kMaxRecordHeadBytes + (appending->lender != nullptr ? kIoAlign : 0);
    const NamespaceEpoch& ns = namespaces_.slot(appending->ns_slot).names;
    if (!ensure_head(size + more, appending->moved_from.has_value()) || !declare_namespace(ns)) {
        return;
    }
    if (appending->lender == nullptr) {
        appending->room = buffers_->reserve(size, boottime_ms());
    } else {
        appending->room = buffers_->reserve_lent(record_head_bytes(key_bytes), appending->data,
                                                 appending->lender, boottime_ms());
    }
}

// Copies what is not lent of the record into its room, without mutex_. Whether the data is what was
// sealed, as far as it was looked at.
bool NvmeLog::write_record(Appending& appending) {
    std::span<const uint8_t> data = appending.data;
    Reservation& room = *appending.room;
    std::array<uint8_t, kMaxRecordHeadBytes> bytes;
    encode_record_head(appending.head, bytes.data());
    room.write(bytes.data(), record_head_bytes(appending.object.key.size()));
    const uint64_t padding = align_up(data.size(), kRecordAlign) - data.size();
    if (appending.lender != nullptr) {
        room.skip_lent();
        data = data.subspan(align_down(data.size(), kIoAlign));
    }
    uint32_t crc = 0;
    room.write(data.data(), data.size(), &crc);
    room.zero(padding);
    return appending.lender != nullptr ||
           seal_checksum(crc, appending.object.identity) == appending.object.sealed_crc;
}

// Lets readers find the record, unless it has become void since it was prepared: then it is
// padding.
Status NvmeLog::publish_append(Appending& appending, bool is_genuine) {
    const NvmeObject& object = appending.object;
    --namespaces_.slot(appending.ns_slot).appending;
    Status status = is_genuine ? check_append(object, appending.moved_from)
                               : Status(Code::kChecksumMismatch, "the data is not what was sealed");
    if (status.ok()) {
        // An older version that got its room later lies in a log file that goes later.
        const std::optional<NvmeEntry> old = index_->find(object.identity.hash);
        if (old && files_[file_of(old->unit)].seq() > files_[appending.file].seq()) {
            journal_->remove(object.identity.hash, old->version, files_.newest_seq());
        }
        insert(object, appending.ns_slot, appending.file, appending.room->offset());
        if (!appending.moved_from) {
            ++counters_.appended_objects;
        }
    } else {
        appending.room->make_pad(folder_->session());
    }
    buffers_->finish(std::move(appending.room));
    write_wake_.notify_one();
    return status;
}

}  // namespace kvstore
