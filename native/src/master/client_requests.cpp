// What clients ask of the block port beside lookups: removes, pins, flushes, lists, inspections.
#include <algorithm>
#include <charconv>

#include "master/master_block_port.h"
#include "master/master_wire.h"

namespace kvstore {
namespace {

constexpr int kListCalls = 8;  // of bounded scans for one page, so that few pages come empty

void end_deed(const std::function<void(Code)>& end, Code code) {
    if (end) {
        end(code);
    }
}

// What became of several rows: that of the first which went wrong.
Code outcome_of(const std::vector<Code>& codes) {
    const auto wrong = std::ranges::find_if(
        codes, [](Code code) { return code != Code::kOk && code != Code::kNotFound; });
    return wrong == codes.end() ? Code::kOk : *wrong;
}

}  // namespace

MasterBlockPort::DeedEnd MasterBlockPort::begin_deed(const Connection& connection,
                                                     std::string_view call, size_t keys,
                                                     std::string_view prefix) const {
    if (!deeds_->wanted()) {
        return {};
    }
    const Peer& peer = connection.peer();
    Deed deed{.call = call,
              .principal = peer.principal,
              .address = peer.address,
              .client_name = peer.client_name,
              .tenant = peer.tenant,
              .ns = peer.ns,
              .keys = keys,
              .prefix = std::string(prefix)};
    return [deeds = deeds_, deed = std::move(deed)](Code code) mutable {
        deed.code = code;
        deeds->add(std::move(deed));
    };
}

Shares::Held MasterBlockPort::admit_change(Connection& connection, const FrameHeader& header) {
    Result<Shares::Held> held = core_.waiting_changes().take(connection.peer().principal);
    if (!held.ok()) {
        connection.ref()->send_error(header.request_id, held.code(), held.status().message());
        return nullptr;
    }
    return std::move(*held);
}

void MasterBlockPort::remove(Connection& connection, const FrameHeader& header,
                             std::span<const uint8_t> body) {
    Remove request;
    if (!connection.decode(body, &request)) {
        return;
    }
    const DeedEnd deed = begin_deed(connection, "Remove", request.keys.size());
    const Shares::Held held = admit_change(connection, header);
    if (held == nullptr) {
        return end_deed(deed, Code::kOverloaded);
    }
    Result<NamespacePtr> ns = space_of(connection);
    if (*ns == nullptr) {
        ns = core_.space_to_change(connection.peer().tenant, connection.peer().ns);
    }
    if (!ns.ok()) {
        connection.ref()->send_error(header.request_id, ns.code(), ns.status().message());
        return end_deed(deed, ns.code());
    }
    KeyFilter filter(request.keys);
    MasterCore::RemoveDone done = [ref = connection.ref(), id = header.request_id, filter, held,
                                   deed](const std::vector<Code>& codes,
                                         const std::vector<std::string>& unreached) {
        end_deed(deed, outcome_of(codes));
        const std::vector<int32_t> status = filter.merge(codes);
        const std::vector<std::string_view> names(unreached.begin(), unreached.end());
        ref->send_message(RemoveReply{.status = status, .unreached = names}, id);
    };
    if (*ns == nullptr) {
        return done(std::vector<Code>(filter.valid().size(), Code::kNotFound), {});
    }
    core_.remove(**ns, filter.valid(), request.timeout_ms, std::move(done));
}

void MasterBlockPort::set_pin(Connection& connection, const FrameHeader& header,
                              std::span<const uint8_t> body) {
    SetPin request;
    if (!connection.decode(body, &request)) {
        return;
    }
    const DeedEnd deed = begin_deed(connection, "SetPin", request.keys.size());
    const Shares::Held held = admit_change(connection, header);
    if (held == nullptr) {
        return end_deed(deed, Code::kOverloaded);
    }
    KeyFilter filter(request.keys);
    std::vector<Pin> levels;
    for (const size_t row : filter.rows()) {
        levels.push_back(static_cast<Pin>(request.levels[row]));
    }
    MasterCore::RemoveDone done = [ref = connection.ref(), id = header.request_id, filter, held,
                                   deed](const std::vector<Code>& codes,
                                         const std::vector<std::string>&) {
        end_deed(deed, outcome_of(codes));
        const std::vector<int32_t> status = filter.merge(codes);
        ref->send_message(StatusReply{.status = status}, id);
    };
    const NamespacePtr& ns = space_of(connection);
    if (ns == nullptr) {
        const Code code = core_.rebuilding() ? Code::kRebuilding : Code::kNotFound;
        return done(std::vector<Code>(filter.valid().size(), code), {});
    }
    core_.set_pins(*ns, filter.valid(), levels, request.timeout_ms, std::move(done));
}

void MasterBlockPort::flush(Connection& connection, const FrameHeader& header,
                            std::span<const uint8_t> body) {
    Flush request;
    if (!connection.decode(body, &request)) {
        return;
    }
    const Peer& peer = connection.peer();
    const DeedEnd deed = begin_deed(connection, "Flush");
    const Shares::Held held = admit_change(connection, header);
    if (held == nullptr) {
        return end_deed(deed, Code::kOverloaded);
    }
    const Result<NamespacePtr> ns = core_.directory().namespaces().open_for(peer.tenant, peer.ns);
    if (!ns.ok()) {
        connection.ref()->send_error(header.request_id, ns.code(), ns.status().message());
        return end_deed(deed, ns.code());
    }
    core_.flush(**ns, request.timeout_ms,
                [ref = connection.ref(), id = header.request_id, held, deed](
                    Code code, const std::vector<std::string>& unreached, uint32_t ns_epoch) {
                    end_deed(deed, code);
                    const std::vector<std::string_view> names(unreached.begin(), unreached.end());
                    ref->send_message(FlushReply{.code = static_cast<int32_t>(code),
                                                 .unreached = names,
                                                 .ns_epoch = ns_epoch},
                                      id);
                });
}

void MasterBlockPort::list(Connection& connection, const FrameHeader& header,
                           std::span<const uint8_t> body) {
    List request;
    if (!connection.decode(body, &request)) {
        return;
    }
    uint64_t cursor = 0;
    const char* const end = request.cursor.data() + request.cursor.size();
    if (!request.cursor.empty()) {
        const auto parsed = std::from_chars(request.cursor.data(), end, cursor, 16);
        if (parsed.ec != std::errc() || parsed.ptr != end || cursor == 0) {
            connection.ref()->send_error(header.request_id, Code::kInvalidArgument, "bad cursor");
            return;
        }
    }
    const size_t limit = request.limit == 0
                             ? limits::kMaxBatchKeys
                             : std::min<size_t>(request.limit, limits::kMaxBatchKeys);
    end_deed(begin_deed(connection, "List", 0, request.prefix), Code::kOk);
    const NamespacePtr& ns = space_of(connection);
    if (ns == nullptr) {
        reply(connection, header, ListReply{});
        return;
    }
    std::vector<std::string> keys;
    for (int call = 0; call == 0 || (call < kListCalls && keys.empty() && cursor != 0); ++call) {
        cursor = core_.directory().list(*ns->current.load(), request.prefix, cursor, limit, keys);
    }
    const std::vector<std::string_view> views(keys.begin(), keys.end());
    char text[16];
    const auto written = std::to_chars(text, text + sizeof(text), cursor, 16);
    reply(connection, header,
          ListReply{
              .keys = views,
              .cursor = cursor == 0 ? std::string_view() : std::string_view(text, written.ptr)});
}

void MasterBlockPort::inspect(Connection& connection, const FrameHeader& header,
                              std::span<const uint8_t> body) {
    Inspect request;
    if (!connection.decode(body, &request)) {
        return;
    }
    const NamespacePtr& space = space_of(connection);
    if (space == nullptr) {
        const MissReason none = core_.rebuilding() ? MissReason::kRebuilding : MissReason::kAbsent;
        reply(connection, header, InspectReply{.reason = static_cast<uint8_t>(none)});
        return;
    }
    const DirectoryEpoch& ns = *space->current.load();
    const ObjectPlace found = core_.directory().lookup_one(ns, request.key);
    ObjectInfo info;
    if (found.code != Code::kOk || !core_.directory().inspect(ns, request.key, info)) {
        const MissReason reason = found.code == Code::kOk ? MissReason::kAbsent : found.reason;
        reply(connection, header, InspectReply{.reason = static_cast<uint8_t>(reason)});
        return;
    }
    std::vector<std::string> ids;
    std::vector<uint8_t> tiers;
    for (const MasterCore::NodeView& node : core_.nodes()) {
        for (const Replica replica : info.replicas) {
            if (replica.node() == node.slot && core_.directory().readable(node.slot)) {
                ids.push_back(node.info.node_id);
                tiers.push_back(replica.tier());
            }
        }
    }
    const std::vector<std::string_view> names(ids.begin(), ids.end());
    reply(connection, header,
          InspectReply{.found = true,
                       .size = info.size,
                       .version = info.version,
                       .pin = info.pin,
                       .create_ms = info.created_ms,
                       .replica_node_ids = names,
                       .replica_tiers = tiers,
                       .replicas_wanted = info.replicas_wanted});
}

}  // namespace kvstore
