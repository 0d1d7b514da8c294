// Get by socket, leases, and holds for clients whose slot is full.
#include "kvstore/clock.h"
#include "kvstore/node_service.h"

namespace kvstore {
namespace {

bool send_status(Connection& connection, const FrameHeader& header,
                 const std::vector<int32_t>& status) {
    StatusReply reply;
    reply.status = status;
    return connection.ref()->send_message(reply, header.request_id);
}

// The rows of one GetReply, and the held blocks whose bytes follow it.
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

    void fill(size_t row, const BlockStore::Found& found, uint64_t max_size);
    // No bytes are sent after all.
    void refuse_all();
};

// What lives until a reply's last byte is sent.
struct Sending {
    std::vector<BlockStore::Found> found;
    std::shared_ptr<void> share{};  // of the send budget
};

void GetRows::fill(size_t row, const BlockStore::Found& found, uint64_t max_size) {
    if (found.hold == nullptr) {
        status[row] = static_cast<int32_t>(Code::kNotFound);
        reasons[row] = static_cast<uint8_t>(found.reason);
        return;
    }
    sizes[row] = found.length;
    versions[row] = found.version;
    crcs[row] = found.sealed_crc;
    if (found.length > max_size) {
        status[row] = static_cast<int32_t>(Code::kBufferTooSmall);
        return;
    }
    if (found.length > limits::kMaxPayloadBytes - payload_bytes) {
        status[row] = static_cast<int32_t>(Code::kTooLarge);  // ask for fewer at once
        return;
    }
    payload_bytes += found.length;
    if (found.length != 0) {
        // Only read from: iovec has no constant form.
        payload.push_back({const_cast<uint8_t*>(found.data), found.length});
    }
}

void GetRows::refuse_all() {
    for (size_t row = 0; row < status.size(); ++row) {
        if (status[row] == static_cast<int32_t>(Code::kOk)) {
            status[row] = static_cast<int32_t>(Code::kOverloaded);
            reasons[row] = static_cast<uint8_t>(MissReason::kUnavailable);
        }
    }
    payload.clear();
    payload_bytes = 0;
}

}  // namespace

std::vector<BlockStore::Key> NodeService::store_keys(const StoreNamespace& ns, const KeyList& keys,
                                                     const U64Column& versions) const {
    std::vector<BlockStore::Key> out;
    out.reserve(keys.size());
    for (size_t row = 0; row < keys.size(); ++row) {
        const std::string_view key = keys[row];
        out.push_back({key, key_hash(options_.hash_secret, ns.id, key), versions[row]});
    }
    return out;
}

// The bytes go from the segment to the socket; the holds keep them in place until they are sent.
void NodeService::get(Connection& connection, const FrameHeader& header, Body body) {
    const uint64_t started_us = boottime_us();
    Get message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const NamespaceRef ns = connection.session_as<ClientSession>()->ns->current();
    const std::vector<BlockStore::Key> keys = store_keys(*ns, message.keys, message.versions);
    auto sending = std::make_shared<Sending>(Sending{store_.find(ns, keys)});
    GetRows rows(keys.size());
    for (size_t row = 0; row < keys.size(); ++row) {
        rows.fill(row, sending->found[row], message.max_sizes[row]);
    }
    if (rows.payload_bytes != 0) {
        sending->share = send_budget_->take(rows.payload_bytes);
        if (sending->share == nullptr) {
            rows.refuse_all();
            sending->found.clear();
        }
    }
    for (size_t row = 0; row < keys.size(); ++row) {
        if (rows.status[row] == static_cast<int32_t>(Code::kOk)) {
            metrics_.hits.add();
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
    connection.ref()->send_message(reply, header.request_id, 0, rows.payload, std::move(sending));
    metrics_.get_us.record(boottime_us() - started_us);
}

void NodeService::lease(Connection& connection, const FrameHeader& header, Body body) {
    Lease message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const auto& session = *connection.session_as<ClientSession>();
    LeaseReply reply;
    reply.node_epoch = options_.node_epoch;
    if (message.lease_ms == 0) {
        reply.code = static_cast<int32_t>(Code::kInvalidArgument);
    } else {
        const NamespaceRef ns = session.ns->current();
        const BlockStore::LeaseGrant grant =
            store_.lease_acquire(session.by_socket(), ns, store_keys(*ns, message.keys, {}),
                                 message.stride, message.lease_ms);
        reply.lease_id = grant.lease_id;
        reply.length = grant.length;
    }
    connection.ref()->send_message(reply, header.request_id);
}

void NodeService::lease_renew(Connection& connection, const FrameHeader& header, Body body) {
    LeaseRenew message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const Owner owner = connection.session_as<ClientSession>()->by_socket();
    std::vector<int32_t> status;
    for (const uint64_t id : message.lease_ids) {
        status.push_back(static_cast<int32_t>(store_.lease_renew(owner, id, message.lease_ms)));
    }
    send_status(connection, header, status);
}

void NodeService::lease_release(Connection& connection, const FrameHeader& header, Body body) {
    LeaseRelease message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const Owner owner = connection.session_as<ClientSession>()->by_socket();
    std::vector<int32_t> status;
    for (const uint64_t id : message.lease_ids) {
        status.push_back(static_cast<int32_t>(store_.lease_release(owner, id)));
    }
    send_status(connection, header, status);
}

// Only who maps the segment has anything to hold.
void NodeService::hold(Connection& connection, const FrameHeader& header, Body body) {
    Hold message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const auto& session = *connection.session_as<ClientSession>();
    std::vector<int32_t> status;
    for (const Generation generation : message.generations) {
        status.push_back(static_cast<int32_t>(session.slot < 0
                                                  ? Code::kPermissionDenied
                                                  : store_.hold(session.process(), generation)));
    }
    send_status(connection, header, status);
}

void NodeService::unhold(Connection& connection, const FrameHeader& header, Body body) {
    Unhold message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const auto& session = *connection.session_as<ClientSession>();
    std::vector<int32_t> status;
    for (const Generation generation : message.generations) {
        status.push_back(static_cast<int32_t>(store_.unhold(session.process(), generation)));
    }
    send_status(connection, header, status);
}

}  // namespace kvstore
