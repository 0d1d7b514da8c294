// Reserve, commit and abort of clients that map the segment; puts and copies by socket.
#include <algorithm>
#include <functional>

#include "node/node_block_port.h"
#include "node/put_rows.h"

namespace kvstore {
namespace {

// Bytes of refused rows are received here, over and over.
constexpr size_t kDiscardBytes = 256 * 1024;
uint8_t* discard_area() {
    static thread_local std::unique_ptr<uint8_t[]> area(new uint8_t[kDiscardBytes]);
    return area.get();
}

// Whether the sizes add up to what follows the body.
bool sizes_match(const U64Column& sizes, uint64_t payload_bytes) {
    uint64_t left = payload_bytes;
    for (const uint64_t size : sizes) {
        if (size > left) {
            return false;
        }
        left -= size;
    }
    return left == 0;
}

}  // namespace

// A put whose bytes are on their way into reserved blocks.
struct NodeBlockPort::Incoming {
    struct Block {
        size_t row = 0;
        Generation generation = 0;
        size_t part = 0;  // of the payload
    };
    Domain* domain = nullptr;
    Owner owner;
    uint32_t timeout_ms = 0;
    std::vector<Block> blocks;
    std::vector<uint32_t> crcs;      // of each row, as the sender says; empty: it says nothing
    std::vector<uint32_t> received;  // of each part of the payload, as it lies in memory
    std::shared_ptr<PutReply> reply;
};

void NodeBlockPort::reserve(Connection& connection, const FrameHeader& header, Body body) {
    Reserve message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const auto& session = *connection.session_as<ClientConnection>();
    if (session.slot < 0 || !session.may_write) {
        connection.ref()->send_error(header.request_id, Code::kPermissionDenied,
                                     "reserve needs a client slot, and the tenant in shm_write; "
                                     "use put");
        return;
    }
    Domain& domain = *session.domain;
    std::vector<PutFlow::Begun> begun(message.keys.size());
    if (!draining_.load()) {
        begun = domain.flow->begin(session.process(), session.ns->current(), put_rows(message),
                                   message.timeout_ms);
    }
    std::vector<int32_t> status;
    std::vector<uint64_t> generations;
    std::vector<uint64_t> offsets;
    for (const PutFlow::Begun& one : begun) {
        status.push_back(static_cast<int32_t>(one.code));
        generations.push_back(one.generation);
        offsets.push_back(one.offset);
    }
    ReserveReply reply;
    reply.status = status;
    reply.generations = generations;
    reply.offsets = offsets;
    const GrantedSpare spare = grant_spare(session, message.spare_size);
    reply.spare_generation = spare.generation;
    reply.spare_offset = spare.offset;
    reply.spare_ms = spare.valid_ms;
    if (connection.ref()->send_message(reply, header.request_id)) {
        return;
    }
    // The client has gone, perhaps while this process stood still. It never heard of these blocks,
    // so it writes into none of them.
    generations.push_back(spare.generation);
    for (const Generation generation : generations) {
        if (generation != 0) {
            static_cast<void>(domain.flow->abort(session.process(), generation));
        }
    }
}

GrantedSpare NodeBlockPort::grant_spare(const ClientConnection& session, uint64_t size_bytes) {
    if (size_bytes == 0 || session.slot < 0 || !session.may_write || draining_.load()) {
        return {};
    }
    const uint32_t before_ms = reservation_ms_.load();
    const BlockStore::Reserved spare =
        session.domain->store->reserve_spare(session.process(), size_bytes);
    if (spare.code != Code::kOk) {
        return {};
    }
    // The store may have used either when it changes now: never promise the longer one.
    const uint32_t valid_ms = std::min(before_ms, reservation_ms_.load());
    return {session.domain->flow.get(), session.process(), spare.generation, spare.offset,
            valid_ms};
}

void NodeBlockPort::commit(Connection& connection, const FrameHeader& header, Body body) {
    Commit message;
    if (!connection.decode(body, &message)) {
        return;
    }
    std::vector<PutFlow::Committed> rows;
    for (size_t i = 0; i < message.generations.size(); ++i) {
        rows.push_back({i, message.generations[i], message.crcs[i]});
    }
    const auto reply = std::make_shared<PutReply>(connection.ref(), header.request_id, rows.size());
    reply->trace(OpenSpan::begin(spans_, SpanKind::kCommit, message.trace, rows.size()));
    reply->send_if_empty();
    const auto& session = *connection.session_as<ClientConnection>();
    session.domain->flow->commit(session.process(), rows, message.timeout_ms, reply);
}

void NodeBlockPort::abort(Connection& connection, const FrameHeader& header, Body body) {
    Abort message;
    if (!connection.decode(body, &message)) {
        return;
    }
    const auto& session = *connection.session_as<ClientConnection>();
    const Owner owner = session.process();
    std::vector<int32_t> status;
    for (const Generation generation : message.generations) {
        status.push_back(static_cast<int32_t>(session.domain->flow->abort(owner, generation)));
    }
    StatusReply reply;
    reply.status = status;
    connection.ref()->send_message(reply, header.request_id);
}

// ---- by socket -------------------------------------------------------------------------------

void NodeBlockPort::begin_put(Connection& connection, const FrameHeader& header, Body body,
                              PayloadPlan* plan) {
    Put message;
    if (!connection.decode(body, &message)) {
        return;
    }
    if (std::ranges::any_of(message.spares, std::identity())) {
        return put_spares(connection, header, message);
    }
    const uint64_t behind = message.crcs_behind ? sizeof(uint32_t) * message.keys.size() : 0;
    if (header.payload_bytes < behind ||
        !sizes_match(message.sizes, header.payload_bytes - behind)) {
        return connection.fail(Code::kProtocolError, "the sizes do not add up to the payload");
    }
    const auto& session = *connection.session_as<ClientConnection>();
    auto incoming = std::make_shared<Incoming>();
    incoming->domain = session.domain;
    incoming->owner = session.by_socket();
    incoming->timeout_ms = message.timeout_ms;
    incoming->crcs.assign(message.crcs.begin(), message.crcs.end());
    if (message.crcs_behind) {
        incoming->crcs.assign(message.keys.size(), 0);
    }
    incoming->reply =
        std::make_shared<PutReply>(connection.ref(), header.request_id, message.keys.size());
    incoming->reply->trace(
        OpenSpan::begin(spans_, SpanKind::kPut, message.trace, message.keys.size()));
    std::vector<PutFlow::Begun> begun(message.keys.size());
    if (!draining_.load()) {
        begun = session.domain->flow->begin(incoming->owner, session.ns->current(),
                                            put_rows(message), message.timeout_ms);
    }
    incoming->reply->grant(grant_spare(session, message.spare_size));
    plan_payload(header, std::move(incoming), begun, message.sizes, behind, plan);
}

// The bytes of every row lie in a spare of this process: reserve and commit in one.
void NodeBlockPort::put_spares(Connection& connection, const FrameHeader& header,
                               const Put& message) {
    if (header.payload_bytes != 0 || message.crcs.size() != message.keys.size() ||
        !std::ranges::all_of(message.spares, std::identity())) {
        return connection.fail(Code::kProtocolError, "the columns of a put of spares disagree");
    }
    const auto& session = *connection.session_as<ClientConnection>();
    if (session.slot < 0 || !session.may_write) {
        connection.ref()->send_error(header.request_id, Code::kPermissionDenied,
                                     "spares need a client slot, and the tenant in shm_write");
        return;
    }
    const auto reply =
        std::make_shared<PutReply>(connection.ref(), header.request_id, message.keys.size());
    reply->trace(OpenSpan::begin(spans_, SpanKind::kPut, message.trace, message.keys.size()));
    const Owner owner = session.process();
    PutFlow& flow = *session.domain->flow;
    std::vector<PutFlow::Begun> begun(message.keys.size());
    if (!draining_.load()) {
        begun = flow.begin(owner, session.ns->current(), put_rows(message), message.timeout_ms);
    }
    // While the master is asked.
    reply->grant(grant_spare(session, message.spare_size));
    std::vector<PutFlow::Committed> rows;
    for (size_t row = 0; row < begun.size(); ++row) {
        if (begun[row].code == Code::kOk) {
            rows.push_back({row, begun[row].generation, message.crcs[row]});
        } else {
            // Filled in vain. Its client has stopped copying, or it would not have named it.
            static_cast<void>(flow.abort(owner, message.spares[row]));
            reply->finish(row, begun[row].code);
        }
    }
    flow.commit(owner, rows, message.timeout_ms, reply);
}

void NodeBlockPort::begin_copy(Connection& connection, const FrameHeader& header, Body body,
                               PayloadPlan* plan) {
    CopyPut message;
    if (!connection.decode(body, &message)) {
        return;
    }
    if (!sizes_match(message.sizes, header.payload_bytes) ||
        message.crcs.size() != message.keys.size()) {
        return connection.fail(Code::kProtocolError, "the columns of a copy disagree");
    }
    const Result<std::shared_ptr<NamespaceCell>> cell =
        namespaces_.open(message.tenant, message.ns);
    const Result<NamespaceRef> ns = namespaces_.at(message.tenant, message.ns, message.epoch);
    if (!ns.ok() || !cell.ok()) {
        return connection.fail(ns.code(), ns.status().message());
    }
    auto incoming = std::make_shared<Incoming>();
    incoming->domain = &domains_.of(message.tenant);
    incoming->owner = connection.session_as<ClientConnection>()->by_socket();
    incoming->timeout_ms = message.timeout_ms;
    incoming->crcs.assign(message.crcs.begin(), message.crcs.end());
    incoming->reply =
        std::make_shared<PutReply>(connection.ref(), header.request_id, message.keys.size());
    std::vector<PutFlow::Begun> begun(message.keys.size());
    const bool flushed = (*cell)->current()->epoch > message.epoch;
    const std::vector<PutFlow::Row> rows = put_rows(message);
    for (size_t i = 0; i < rows.size() && !draining_.load(); ++i) {
        if (flushed) {
            begun[i].code = Code::kRemoved;
        } else if (!domains_.has_memory_for(message.tenant)) {
            begun[i].code = Code::kNoSpace;
        } else {
            begun[i] = incoming->domain->flow->begin_copy(incoming->owner, *ns, rows[i],
                                                          message.versions[i]);
        }
    }
    plan_payload(header, std::move(incoming), begun, message.sizes, 0, plan);
}

// Straight into the blocks; the bytes of refused rows are read and dropped.
void NodeBlockPort::plan_payload(const FrameHeader& header, std::shared_ptr<Incoming> incoming,
                                 std::span<const PutFlow::Begun> begun, const U64Column& sizes,
                                 uint64_t crcs_behind, PayloadPlan* plan) {
    incoming->reply->send_if_empty();
    for (size_t row = 0; row < begun.size(); ++row) {
        uint64_t left = sizes[row];
        if (begun[row].code == Code::kOk) {
            incoming->blocks.push_back({row, begun[row].generation, plan->into.size()});
            plan->into.push_back({begun[row].data, left});
            continue;
        }
        while (left != 0) {
            const size_t part = std::min<uint64_t>(left, kDiscardBytes);
            plan->into.push_back({discard_area(), part});
            left -= part;
        }
    }
    if (crcs_behind != 0) {
        plan->into.push_back({incoming->crcs.data(), crcs_behind});
    }
    incoming->received.resize(plan->into.size());
    const std::shared_ptr<PutReply> reply = incoming->reply;
    if (header.payload_bytes == 0) {
        plan->into.clear();
        finish_put(*incoming);
    } else {
        plan->crcs = incoming->received;
        plan->context = std::move(incoming);
    }
    for (size_t row = 0; row < begun.size(); ++row) {
        if (begun[row].code != Code::kOk) {
            reply->finish(row, begun[row].code);
        }
    }
}

void NodeBlockPort::on_payload(Connection&, const FrameHeader&, Body,
                               const std::shared_ptr<void>& context) {
    if (context != nullptr) {
        finish_put(*static_cast<Incoming*>(context.get()));
    }
}

// The checksum is that of the bytes as they lie in the block, not as they were on the way.
void NodeBlockPort::finish_put(Incoming& incoming) {
    std::vector<PutFlow::Committed> rows;
    for (const Incoming::Block& block : incoming.blocks) {
        const uint32_t crc = incoming.received[block.part];
        if (!incoming.crcs.empty() && incoming.crcs[block.row] != crc) {
            static_cast<void>(incoming.domain->flow->abort(incoming.owner, block.generation));
            metrics_.puts_failed.add();
            incoming.reply->finish(block.row, Code::kChecksumMismatch);
            continue;
        }
        rows.push_back({block.row, block.generation, crc});
    }
    incoming.domain->flow->commit(incoming.owner, rows, incoming.timeout_ms, incoming.reply);
}

}  // namespace kvstore
