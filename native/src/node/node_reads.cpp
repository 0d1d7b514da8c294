// Get by socket, leases, and holds for clients whose slot is full.
#include <algorithm>

#include "base/clock.h"
#include "node/node_block_port.h"

namespace kvstore {
namespace {

bool send_status(Connection& connection, const FrameHeader& header,
                 const std::vector<int32_t>& status) {
    StatusReply reply;
    reply.status = status;
    return connection.ref()->send_message(reply, header.request_id);
}

// The rows of one GetReply, and the bytes that follow it.
struct GetRows {
    explicit GetRows(size_t rows)
        : status(rows, 0), sizes(rows, 0), versions(rows, 0), crcs(rows, 0), reasons(rows, 0) {}
    std::vector<int32_t> status;
    std::vector<uint64_t> sizes;
    std::vector<uint64_t> versions;
    std::vector<uint32_t> crcs;
    std::vector<uint8_t> reasons;
    std::vector<iovec> payload;
    uint64_t payload_bytes = 0;

    void miss(size_t row, Code code, MissReason reason);
    void fill(size_t row, const uint8_t* data, uint64_t length, Version version,
              uint32_t sealed_crc, uint64_t max_size);
};

void GetRows::miss(size_t row, Code code, MissReason reason) {
    status[row] = static_cast<int32_t>(code);
    reasons[row] = static_cast<uint8_t>(reason);
}

void GetRows::fill(size_t row, const uint8_t* data, uint64_t length, Version version,
                   uint32_t sealed_crc, uint64_t max_size) {
    sizes[row] = length;
    versions[row] = version;
    crcs[row] = sealed_crc;
    if (length > max_size) {
        status[row] = static_cast<int32_t>(Code::kBufferTooSmall);
        return;
    }
    if (length > limits::kMaxPayloadBytes - payload_bytes) {
        status[row] = static_cast<int32_t>(Code::kTooLarge);  // ask for fewer at once
        return;
    }
    payload_bytes += length;
    if (length != 0) {
        // Only read from: iovec has no constant form.
        payload.push_back({const_cast<uint8_t*>(data), length});
    }
}

}  // namespace

std::vector<BlockStore::Key> NodeBlockPort::store_keys(const NamespaceEpoch& ns,
                                                       const KeyList& keys,
                                                       const U64Column& versions) const {
    std::vector<BlockStore::Key> out;
    out.reserve(keys.size());
    for (size_t row = 0; row < keys.size(); ++row) {
        const std::string_view key = keys[row];
        out.push_back({key, key_hash(options_.hash_secret, ns.id, key), versions[row]});
    }
    return out;
}

// Keeps in place what the reply's payload is sent from.
struct NodeBlockPort::Getting {
    std::shared_ptr<ConnectionRef> to;
    uint64_t request_id = 0;
    uint64_t started_us = 0;
    std::vector<uint64_t> max_sizes;
    std::vector<BlockStore::Found> found;       // a row each
    std::vector<uint8_t> hot;                   // a row each, where any is
    std::vector<NvmeTier::Object> below;        // a row each, where anything is on NVMe
    std::vector<std::shared_ptr<void>> shares;  // of the send budget
    std::unique_ptr<OpenSpan> span;             // these two: null where it is not traced
    std::unique_ptr<OpenSpan> nvme_span;
};

// The bytes go from the segment to the socket; what NVMe alone has is read first.
void NodeBlockPort::get(Connection& connection, const FrameHeader& header, Body body) {
    const uint64_t started_us = boottime_us();
    Get message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const auto& session = *connection.session_as<ClientConnection>();
    const NamespaceRef ns = session.ns->current();
    const std::vector<BlockStore::Key> keys = store_keys(*ns, message.keys, message.versions);
    auto get = std::make_shared<Getting>();
    get->to = connection.ref();
    get->request_id = header.request_id;
    get->started_us = started_us;
    get->span = OpenSpan::begin(spans_, SpanKind::kGet, message.trace, keys.size());
    get->max_sizes.assign(message.max_sizes.begin(), message.max_sizes.end());
    get->max_sizes.resize(keys.size(), 0);
    get->found = session.domain->store->find(ns, keys);
    if (!connection.peer().is_unix) {
        get->hot = note_remote(ns, keys, get->found);
    }
    if (tier_ == nullptr || !get_from_nvme(get, ns, keys)) {
        finish_get(get);
    }
    if (tier_ != nullptr && !keys.empty()) {
        tier_->read_ahead(ns, keys.back().hash);
    }
}

// False: there is nothing to be waited for.
bool NodeBlockPort::get_from_nvme(const std::shared_ptr<Getting>& get, const NamespaceRef& ns,
                                  std::span<const BlockStore::Key> keys) {
    std::vector<BlockStore::Key> wanted;
    std::vector<size_t> rows;
    uint64_t bytes = 0;
    for (size_t row = 0; row < keys.size(); ++row) {
        if (get->found[row].hold != nullptr || get->found[row].reason == MissReason::kVersion) {
            continue;
        }
        const std::optional<NvmeFound> found = tier_->find(ns, keys[row]);
        if (!found || (keys[row].version != 0 && found->version != keys[row].version)) {
            continue;
        }
        get->below.resize(keys.size());
        NvmeTier::Object& object = get->below[row];
        object.length = found->length;
        object.version = found->version;
        if (found->length > get->max_sizes[row]) {
            object.code = Code::kBufferTooSmall;
            continue;
        }
        if (found->length > limits::kMaxPayloadBytes - bytes) {
            object.code = Code::kTooLarge;  // ask for fewer at once
            continue;
        }
        bytes += found->length;
        rows.push_back(row);
        wanted.push_back(keys[row]);
    }
    if (wanted.empty()) {
        return false;
    }
    if (bytes != 0) {
        get->shares.push_back(nvme_budget_->take(bytes));
        if (get->shares.back() == nullptr) {
            for (const size_t row : rows) {
                get->below[row].code = Code::kOverloaded;
                get->below[row].reason = MissReason::kUnavailable;
            }
            return false;
        }
    }
    if (get->span != nullptr) {
        get->nvme_span = get->span->child(SpanKind::kNvmeRead, wanted.size());
    }
    tier_->read(ns, wanted, [this, get, rows](std::vector<NvmeTier::Object> objects) {
        uint64_t read = 0;
        uint64_t read_bytes = 0;
        for (size_t i = 0; i < rows.size(); ++i) {
            if (objects[i].code == Code::kOk) {
                ++read;
                read_bytes += objects[i].length;
            }
            get->below[rows[i]] = std::move(objects[i]);
        }
        if (get->nvme_span != nullptr) {
            get->nvme_span->end(read, read_bytes);
        }
        finish_get(get);
    });
    return true;
}

// What a client of another host reads. A row each that says whether it is hot; none where none is.
// For those that want one, asks the master for another replica. The objects are held meanwhile, so
// that no withdraw can be queued before.
std::vector<uint8_t> NodeBlockPort::note_remote(const NamespaceRef& ns,
                                                std::span<const BlockStore::Key> keys,
                                                std::span<const BlockStore::Found> found) {
    std::vector<uint8_t> hot;
    std::vector<AnnounceItem> items;
    const uint64_t now_ms = boottime_ms();
    for (size_t row = 0; row < keys.size(); ++row) {
        const BlockStore::Found& object = found[row];
        if (object.hold == nullptr) {
            continue;
        }
        const HotReads::Verdict verdict = hot_reads_.note(keys[row].hash, object.version, now_ms);
        if (verdict.is_hot) {
            hot.resize(keys.size());
            hot[row] = 1;
        }
        if (verdict.replicas != 0) {
            items.push_back({.key = std::string(keys[row].key),
                             .version = object.version,
                             .size_bytes = object.length,
                             .pin = object.pin,
                             .ttl_ms = object.ttl_ms,
                             .copies = verdict.replicas});
        }
    }
    if (!items.empty()) {
        metrics_.hot_asks.add(items.size());
        const uint64_t link = link_->up();
        (void)link_->announce(link, ns, std::move(items));
        link_->flush(link);
    }
    return hot;
}

void NodeBlockPort::finish_get(const std::shared_ptr<Getting>& get) {
    const size_t count = get->found.size();
    GetRows rows(count);
    uint64_t segment_bytes = 0;
    for (size_t row = 0; row < count; ++row) {
        const BlockStore::Found& found = get->found[row];
        const NvmeTier::Object* below = get->below.empty() ? nullptr : &get->below[row];
        const uint64_t before = rows.payload_bytes;
        if (found.hold != nullptr) {
            rows.fill(row, found.data, found.length, found.version, found.sealed_crc,
                      get->max_sizes[row]);
            segment_bytes += rows.payload_bytes - before;
        } else if (below != nullptr && below->code == Code::kOk) {
            rows.fill(row, below->bytes.get(), below->length, below->version, below->sealed_crc,
                      get->max_sizes[row]);
        } else if (below != nullptr && below->code != Code::kNotFound) {
            rows.miss(row, below->code, below->reason);
            rows.sizes[row] = below->length;
            rows.versions[row] = below->version;
        } else {
            rows.miss(row, Code::kNotFound, found.reason);
        }
    }
    if (segment_bytes != 0) {
        get->shares.push_back(send_budget_->take(segment_bytes));
        if (get->shares.back() == nullptr) {
            rows = GetRows(count);
            for (size_t row = 0; row < count; ++row) {
                rows.miss(row, Code::kOverloaded, MissReason::kUnavailable);
            }
            get->found.clear();
            get->below.clear();
        }
    }
    for (size_t row = 0; row < count; ++row) {
        if (rows.status[row] == static_cast<int32_t>(Code::kOk)) {
            const bool from_dram = get->found[row].hold != nullptr;
            (from_dram ? metrics_.hits_dram : metrics_.hits_nvme).add();
        } else if (rows.reasons[row] != 0) {
            metrics_.misses[rows.reasons[row]].add();
        }
    }
    metrics_.get_bytes_socket.add(rows.payload_bytes);
    GetReply reply;
    reply.status = rows.status;
    reply.sizes = rows.sizes;
    reply.versions = rows.versions;
    reply.crcs = rows.crcs;
    reply.reasons = rows.reasons;
    reply.hot = get->hot;
    get->to->send_message(reply, get->request_id, 0, rows.payload, get);
    metrics_.get_us.record(boottime_us() - get->started_us);
    if (get->span != nullptr) {
        const auto ok = static_cast<uint64_t>(std::ranges::count(rows.status, 0));
        get->span->end(ok, rows.payload_bytes);
    }
}

void NodeBlockPort::prefetch(Connection& connection, const FrameHeader& header, Body body) {
    Prefetch message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const auto& session = *connection.session_as<ClientConnection>();
    const NamespaceRef ns = session.ns->current();
    std::vector<int32_t> status;
    std::vector<BlockStore::Key> below;
    for (const BlockStore::Key& key : store_keys(*ns, message.keys, {})) {
        const bool in_dram = session.domain->store->contains(ns, key);
        const bool on_nvme = !in_dram && tier_ != nullptr && tier_->find(ns, key).has_value();
        status.push_back(static_cast<int32_t>(in_dram || on_nvme ? Code::kOk : Code::kNotFound));
        if (on_nvme) {
            below.push_back(key);
        }
    }
    if (!below.empty()) {
        tier_->prefetch(ns, below);
    }
    send_status(connection, header, status);
}

void NodeBlockPort::explain(Connection& connection, const FrameHeader& header, Body body) {
    Explain message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const auto& session = *connection.session_as<ClientConnection>();
    const NamespaceRef ns = session.ns->current();
    const size_t count = message.keys.size();
    std::vector<uint8_t> places(count, 0);
    std::vector<uint64_t> versions(count, 0);
    std::vector<uint64_t> sizes(count, 0);
    std::vector<uint64_t> put_ms(count, 0);
    std::vector<uint64_t> used_ms(count, 0);
    std::vector<uint8_t> reasons(count, 0);
    std::vector<uint64_t> gone_ms(count, 0);
    const std::vector<BlockStore::Key> keys = store_keys(*ns, message.keys, {});
    for (size_t row = 0; row < count; ++row) {
        const BlockStore::Explained known = session.domain->store->explain(ns, keys[row]);
        places[row] = known.here ? kInDram : 0;
        versions[row] = known.version;
        sizes[row] = known.length;
        put_ms[row] = known.put_wall_ms;
        used_ms[row] = known.used_wall_ms;
        gone_ms[row] = known.gone_wall_ms;
        const std::optional<NvmeFound> found =
            tier_ == nullptr ? std::nullopt : tier_->find(ns, keys[row]);
        if (found && (!known.here || found->version == known.version)) {
            places[row] |= kOnNvme;
            versions[row] = found->version;
            sizes[row] = found->length;
        }
        reasons[row] = static_cast<uint8_t>(places[row] == 0 ? known.reason : MissReason::kNone);
    }
    ExplainReply reply;
    reply.places = places;
    reply.versions = versions;
    reply.sizes = sizes;
    reply.put_ms = put_ms;
    reply.used_ms = used_ms;
    reply.reasons = reasons;
    reply.gone_ms = gone_ms;
    connection.ref()->send_message(reply, header.request_id);
}

void NodeBlockPort::lease(Connection& connection, const FrameHeader& header, Body body) {
    Lease message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const auto& session = *connection.session_as<ClientConnection>();
    LeaseReply reply;
    reply.node_epoch = options_.node_epoch;
    if (message.lease_ms == 0) {
        reply.code = static_cast<int32_t>(Code::kInvalidArgument);
        connection.ref()->send_message(reply, header.request_id);
        return;
    }
    const NamespaceRef ns = session.ns->current();
    const Owner owner = session.by_socket();
    BlockStore& store = *session.domain->store;
    const std::vector<BlockStore::Key> keys = store_keys(*ns, message.keys, {});
    const BlockStore::LeaseGrant grant =
        store.lease_acquire(owner, ns, keys, message.stride, message.lease_ms);
    const bool more_below = tier_ != nullptr && grant.length < keys.size() &&
                            tier_->find(ns, keys[grant.length]).has_value();
    if (!more_below) {
        reply.lease_id = grant.lease_id;
        reply.length = grant.length;
        connection.ref()->send_message(reply, header.request_id);
        return;
    }
    // What a lease promises is there to be read at once: it is brought to DRAM first.
    if (grant.length != 0) {
        static_cast<void>(store.lease_release(owner, grant.lease_id));
    }
    std::vector<std::string> names(message.keys.begin(), message.keys.end());
    tier_->promote(ns, keys,
                   [this, ns, owner, names = std::move(names), stride = message.stride,
                    lease_ms = message.lease_ms, to = connection.ref(), id = header.request_id] {
                       LeaseReply late;
                       late.node_epoch = options_.node_epoch;
                       const std::vector<std::string_view> views(names.begin(), names.end());
                       const BlockStore::LeaseGrant granted = domains_.store_of(ns).lease_acquire(
                           owner, ns, store_keys(*ns, views, {}), stride, lease_ms);
                       late.lease_id = granted.lease_id;
                       late.length = granted.length;
                       to->send_message(late, id);
                   });
}

void NodeBlockPort::lease_renew(Connection& connection, const FrameHeader& header, Body body) {
    LeaseRenew message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const auto& session = *connection.session_as<ClientConnection>();
    const Owner owner = session.by_socket();
    BlockStore& store = *session.domain->store;
    std::vector<int32_t> status;
    for (const uint64_t id : message.lease_ids) {
        status.push_back(static_cast<int32_t>(store.lease_renew(owner, id, message.lease_ms)));
    }
    send_status(connection, header, status);
}

void NodeBlockPort::lease_release(Connection& connection, const FrameHeader& header, Body body) {
    LeaseRelease message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const auto& session = *connection.session_as<ClientConnection>();
    const Owner owner = session.by_socket();
    BlockStore& store = *session.domain->store;
    std::vector<int32_t> status;
    for (const uint64_t id : message.lease_ids) {
        status.push_back(static_cast<int32_t>(store.lease_release(owner, id)));
    }
    send_status(connection, header, status);
}

// Only who maps the segment has anything to hold.
void NodeBlockPort::hold(Connection& connection, const FrameHeader& header, Body body) {
    Hold message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const auto& session = *connection.session_as<ClientConnection>();
    BlockStore& store = *session.domain->store;
    std::vector<int32_t> status;
    for (const Generation generation : message.generations) {
        status.push_back(static_cast<int32_t>(session.slot < 0
                                                  ? Code::kPermissionDenied
                                                  : store.hold(session.process(), generation)));
    }
    send_status(connection, header, status);
}

void NodeBlockPort::unhold(Connection& connection, const FrameHeader& header, Body body) {
    Unhold message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const auto& session = *connection.session_as<ClientConnection>();
    BlockStore& store = *session.domain->store;
    std::vector<int32_t> status;
    for (const Generation generation : message.generations) {
        status.push_back(static_cast<int32_t>(store.unhold(session.process(), generation)));
    }
    send_status(connection, header, status);
}

}  // namespace kvstore
