// One-sided transfers: where a client's reads find the bytes, and puts that the UCX process
// fetches.
#include <algorithm>
#include <atomic>

#include "base/clock.h"
#include "node/node_block_port.h"
#include "node/put_rows.h"

namespace kvstore {

Status NodeBlockPort::adopt_ucx(size_t domain, Fd socket) {
    if (domain >= domains_.all().size()) {
        return {Code::kInvalidArgument, "no such domain"};
    }
    Peer peer;
    peer.role = Role::kNode;
    peer.client_name = "ucx";
    peer.node_id = options_.node_id;
    peer.is_unix = true;
    auto session = std::make_shared<UcxConnection>(*domains_.all()[domain]);
    return server_->adopt(std::move(socket), std::move(peer), std::move(session)).status();
}

void NodeBlockPort::ucx_ended(size_t domain) {
    if (domain < domains_.all().size()) {
        domains_.all()[domain]->ucx.ended();
    }
}

void NodeBlockPort::on_process_frame(Connection& connection, const FrameHeader& header, Body body) {
    UcxPort& port = connection.session_as<UcxConnection>()->domain.ucx;
    UcxReady ready;
    UcxSlice slice;
    UcxPulled pulled;
    switch (header.message()) {
        case MessageType::kUcxReady:
            return connection.decode(body, &ready) ? port.ready(ready) : void();
        case MessageType::kUcxSlice:
            return connection.decode(body, &slice) ? port.slice(slice) : void();
        case MessageType::kUcxPulled:
            return connection.decode(body, &pulled) ? port.pulled(header.request_id, pulled)
                                                    : void();
        default:
            connection.fail(Code::kProtocolError, "not a message of a UCX process");
    }
}

// ---- reads -----------------------------------------------------------------------------------

// Why this session gets no key; Ok: it does.
Status NodeBlockPort::check_ucx(const Connection& connection) const {
    const auto& session = *connection.session_as<ClientConnection>();
    if (map_access(connection.peer()) != MapAccess::kWrite) {
        return {Code::kPermissionDenied,
                "UCX needs the tenant in shm_write, and read and write on every key: a memory key "
                "lets its holder write"};
    }
    if (session.domain->ucx.region() == nullptr) {
        return {Code::kUnavailable, "the node's UCX process cannot be reached now"};
    }
    return {};
}

void NodeBlockPort::ucx_open(Connection& connection, const FrameHeader& header) {
    UcxOpenReply reply;
    const auto region = connection.session_as<ClientConnection>()->domain->ucx.region();
    const Status allowed = check_ucx(connection);
    reply.code = static_cast<int32_t>(allowed.code());
    reply.text = allowed.message();
    std::vector<uint64_t> offsets;
    std::vector<uint64_t> sizes;
    std::vector<uint64_t> addresses;
    std::vector<std::string_view> keys;
    if (allowed.ok() && region != nullptr) {
        reply.life = region->life;
        reply.worker = region->worker;
        for (const UcxRegion::Slice& slice : region->slices) {
            if (offsets.size() == limits::kMaxBatchKeys) {
                break;
            }
            offsets.push_back(slice.offset);
            sizes.push_back(slice.size);
            addresses.push_back(slice.address);
            keys.push_back(slice.key);
        }
    }
    reply.offsets = offsets;
    reply.sizes = sizes;
    reply.addresses = addresses;
    reply.keys = keys;
    connection.ref()->send_message(reply, header.request_id);
}

namespace {

struct UcxGetRows {
    explicit UcxGetRows(size_t rows)
        : status(rows, 0),
          sizes(rows, 0),
          versions(rows, 0),
          crcs(rows, 0),
          reasons(rows, 0),
          offsets(rows, kNotInSegment) {}
    std::vector<int32_t> status;
    std::vector<uint64_t> sizes;
    std::vector<uint64_t> versions;
    std::vector<uint32_t> crcs;
    std::vector<uint8_t> reasons;
    std::vector<uint64_t> offsets;

    void set(size_t row, Code code, MissReason reason = MissReason::kNone) {
        status[row] = static_cast<int32_t>(code);
        reasons[row] = static_cast<uint8_t>(reason);
    }
    UcxGetReply reply(uint64_t life) const {
        UcxGetReply out;
        out.status = status;
        out.sizes = sizes;
        out.versions = versions;
        out.crcs = crcs;
        out.reasons = reasons;
        out.offsets = offsets;
        out.life = life;
        return out;
    }
};

struct UcxHold {
    std::vector<BlockStore::Found> found;
    std::shared_ptr<void> share;  // of the send budget
};

}  // namespace

void NodeBlockPort::ucx_get(Connection& connection, const FrameHeader& header, Body body) {
    const uint64_t started_us = boottime_us();
    UcxGet message;
    if (!connection.decode(body, &message)) {
        return;
    }
    if (const Status allowed = check_ucx(connection); !allowed.ok()) {
        connection.ref()->send_error(header.request_id, allowed.code(), allowed.message());
        return;
    }
    const auto& session = *connection.session_as<ClientConnection>();
    Domain& domain = *session.domain;
    const NamespaceRef ns = session.ns->current();
    const std::vector<BlockStore::Key> keys = store_keys(*ns, message.keys, message.versions);
    const std::shared_ptr<const UcxRegion> region = domain.ucx.region();
    auto hold = std::make_shared<UcxHold>();
    hold->found = domain.store->find(ns, keys);
    UcxGetRows rows(keys.size());
    uint64_t bytes = 0;
    for (size_t row = 0; row < keys.size(); ++row) {
        const BlockStore::Found& found = hold->found[row];
        if (found.hold == nullptr) {
            const bool below = tier_ != nullptr && tier_->find(ns, keys[row]).has_value();
            rows.set(row, below ? Code::kOk : Code::kNotFound,
                     below ? MissReason::kNone : found.reason);
            continue;
        }
        rows.sizes[row] = found.length;
        rows.versions[row] = found.version;
        rows.crcs[row] = found.sealed_crc;
        const auto offset = static_cast<uint64_t>(found.data - domain.store->segment_data());
        if (found.length > message.max_sizes[row]) {
            rows.set(row, Code::kBufferTooSmall);
        } else if (region != nullptr && region->covers(offset, found.length)) {
            rows.offsets[row] = offset;
            bytes += found.length;
        }
    }
    hold->share = bytes == 0 ? nullptr : send_budget_->take(bytes);
    const bool held =
        bytes == 0 || (hold->share != nullptr && domain.ucx.hold(connection.id(), header.request_id,
                                                                 hold, message.timeout_ms));
    if (!held) {
        rows = UcxGetRows(keys.size());
        for (size_t row = 0; row < keys.size(); ++row) {
            rows.set(row, Code::kOverloaded, MissReason::kUnavailable);
        }
        bytes = 0;
    }
    for (size_t row = 0; row < keys.size(); ++row) {
        if (rows.offsets[row] != kNotInSegment) {
            metrics_.hits_dram.add();
        } else if (rows.reasons[row] != 0) {
            metrics_.misses[rows.reasons[row]].add();
        }
    }
    metrics_.get_bytes_ucx.add(bytes);
    const std::vector<uint8_t> hot = held && !connection.peer().is_unix
                                         ? note_remote(ns, keys, hold->found)
                                         : std::vector<uint8_t>();
    UcxGetReply reply = rows.reply(region == nullptr ? 0 : region->life);
    reply.hot = hot;
    connection.ref()->send_message(reply, header.request_id);
    metrics_.get_us.record(boottime_us() - started_us);
}

void NodeBlockPort::ucx_done(Connection& connection, Body body) {
    UcxDone message;
    if (connection.decode(body, &message)) {
        connection.session_as<ClientConnection>()->domain->ucx.release(connection.id(),
                                                                       message.requests);
    }
}

// ---- puts ------------------------------------------------------------------------------------

// A put whose bytes the UCX process fetches.
class NodeBlockPort::Pulling final : public UcxPort::Puller {
  public:
    struct Row {
        size_t row = 0;  // of the reply
        Generation generation = 0;
        uint32_t crc = 0;  // as the client says
    };
    Pulling(Domain& domain, NodeMetrics& metrics, const Owner& owner,
            std::shared_ptr<ConnectionRef> to, uint32_t timeout_ms, std::shared_ptr<PutReply> reply)
        : domain_(domain),
          metrics_(metrics),
          owner_(owner),
          to_(std::move(to)),
          timeout_ms_(timeout_ms),
          reply_(std::move(reply)) {}
    void add(const Row& row) { rows_.push_back(row); }
    size_t size() const { return rows_.size(); }
    void pulled(std::span<const UcxPort::Pulled> rows) override;
    void late() override;

  private:
    void fail(const Row& row, Code code);

    Domain& domain_;
    NodeMetrics& metrics_;
    const Owner owner_;
    const std::shared_ptr<ConnectionRef> to_;
    const uint32_t timeout_ms_;
    const std::shared_ptr<PutReply> reply_;
    std::vector<Row> rows_;
    std::atomic<bool> answered_{false};  // or about to be
};

void NodeBlockPort::ucx_put(Connection& connection, const FrameHeader& header, Body body) {
    UcxPut message;
    if (!connection.decode(body, &message)) {
        return;
    }
    Status allowed = check_ucx(connection);
    const size_t count = message.keys.size();
    if (allowed.ok() && (message.crcs.size() != count || message.sizes.size() != count)) {
        allowed = {Code::kInvalidArgument, "a row of the put has no checksum or no size"};
    }
    const Result<UcxPlaces> places = allowed.ok() ? UcxPlaces::of(message) : allowed;
    if (!places.ok()) {
        const Status& refused = places.status();
        connection.ref()->send_error(header.request_id, refused.code(), refused.message());
        return;
    }
    const auto& session = *connection.session_as<ClientConnection>();
    const auto reply = std::make_shared<PutReply>(connection.ref(), header.request_id, count);
    reply->send_if_empty();
    const auto pulling = std::make_shared<Pulling>(*session.domain, metrics_, session.by_ucx(),
                                                   connection.ref(), message.timeout_ms, reply);
    std::vector<PutFlow::Begun> begun(count);
    if (!draining_.load()) {
        begun = session.domain->flow->begin(session.by_ucx(), session.ns->current(),
                                            put_rows(message), message.timeout_ms);
    }
    std::vector<UcxPort::Block> blocks;
    for (size_t row = 0; row < count; ++row) {
        if (begun[row].code != Code::kOk) {
            reply->finish(row, begun[row].code);
            continue;
        }
        blocks.push_back({begun[row].offset, message.sizes[row], places->row(row)});
        pulling->add({row, begun[row].generation, message.crcs[row]});
    }
    if (blocks.empty()) {
        return;
    }
    if (!session.domain->ucx.pull(blocks, message.worker, message.memory_keys, message.fetch_ms,
                                  pulling)) {
        pulling->pulled(std::vector<UcxPort::Pulled>(pulling->size()));
    }
}

void NodeBlockPort::Pulling::pulled(std::span<const UcxPort::Pulled> rows) {
    const bool is_late = answered_.exchange(true);
    std::vector<PutFlow::Committed> right;
    for (size_t i = 0; i < rows_.size(); ++i) {
        Code code = rows[i].code;
        if (code == Code::kOk && rows[i].data_crc != rows_[i].crc) {
            code = Code::kChecksumMismatch;
        }
        if (is_late) {
            static_cast<void>(domain_.flow->abort(owner_, rows_[i].generation));
        } else if (code == Code::kOk && to_->open()) {
            right.push_back({rows_[i].row, rows_[i].generation, rows_[i].crc});
        } else {
            fail(rows_[i], code == Code::kOk ? Code::kClosed : code);
        }
    }
    domain_.flow->commit(owner_, right, timeout_ms_, reply_);
}

void NodeBlockPort::Pulling::fail(const Row& row, Code code) {
    static_cast<void>(domain_.flow->abort(owner_, row.generation));
    metrics_.puts_failed.add();
    reply_->finish(row.row, code);
}

void NodeBlockPort::Pulling::late() {
    if (answered_.exchange(true)) {
        return;
    }
    std::vector<Generation> generations;
    for (const Row& row : rows_) {
        generations.push_back(row.generation);
    }
    domain_.flow->disown(owner_, generations);
    for (const Row& row : rows_) {
        metrics_.puts_failed.add();
        reply_->finish(row.row, Code::kUnavailable);
    }
}

}  // namespace kvstore
