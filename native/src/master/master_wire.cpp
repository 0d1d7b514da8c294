// Encoding of what the master sends.
#include "master/master_wire.h"

namespace kvstore {

void send_claim_reply(ConnectionRef& to, uint64_t request_id, uint16_t flags,
                      std::span<const ClaimAnswer> answers) {
    if (answers.empty()) {
        return;
    }
    std::vector<uint64_t> ids;
    std::vector<int32_t> status;
    std::vector<uint64_t> versions;
    std::vector<uint8_t> row_flags;
    for (const ClaimAnswer& answer : answers) {
        ids.push_back(answer.claim_id);
        status.push_back(static_cast<int32_t>(answer.code));
        versions.push_back(answer.version);
        row_flags.push_back(answer.first ? kClaimFirst : uint8_t{0});
    }
    to.send_message(
        ClaimReply{.claim_ids = ids, .status = status, .versions = versions, .flags = row_flags},
        request_id, flags);
}

void WireNodeLink::send_claims(std::span<const ClaimAnswer> answers) {
    send_claim_reply(*to_, 0, 0, answers);
}

void WireNodeLink::send_ops(std::span<const Op> ops) {
    std::vector<uint8_t> kinds;
    std::vector<uint32_t> epochs;
    std::vector<uint64_t> versions, args;
    std::vector<std::string_view> tenants, namespaces, keys;
    for (const Op& op : ops) {
        kinds.push_back(static_cast<uint8_t>(op.kind));
        epochs.push_back(op.epoch);
        versions.push_back(op.version);
        args.push_back(op.arg);
        tenants.push_back(op.tenant);
        namespaces.push_back(op.ns);
        keys.push_back(op.key);
    }
    to_->send_message(Ops{.first_seq = ops.front().seq,
                          .kinds = kinds,
                          .tenants = tenants,
                          .namespaces = namespaces,
                          .epochs = epochs,
                          .keys = keys,
                          .versions = versions,
                          .args = args},
                      0);
}

void WireNodeLink::send_ping(uint64_t token) { to_->send_message(Ping{token}, token); }

void WireNodeLink::send_heartbeat_answer(uint64_t request_id, Code code, std::string_view text) {
    if (code == Code::kOk && text.size() > limits::kMaxHeartbeatReplyBytes) {
        code = Code::kTooLarge;
        text = "the reply";
    }
    if (code == Code::kOk) {
        to_->send_message(HeartbeatReply{text}, request_id);
    } else {
        to_->send_error(request_id, code, text);
    }
}

void WireNodeLink::send_copy(const CopyOrder& order) {
    to_->send_message(Copy{.copy_id = order.copy_id,
                           .tenant = order.ns.tenant,
                           .ns = order.ns.ns,
                           .epoch = order.ns.epoch,
                           .key = order.key,
                           .version = order.version,
                           .target_endpoint = order.target_endpoint,
                           .target_node = order.target_node},
                      0);
}

void WireNodeLink::close(const std::string& reason) { to_->close(Code::kClosed, reason); }

void LookupColumns::fill(std::span<const ObjectPlace> rows, bool with_nodes) {
    status_.resize(rows.size());
    versions_.resize(rows.size());
    sizes_.resize(rows.size());
    reasons_.resize(rows.size());
    counts_.resize(rows.size());
    nodes_.clear();
    for (size_t i = 0; i < rows.size(); ++i) {
        const ObjectPlace& row = rows[i];
        status_[i] = static_cast<int32_t>(row.code);
        versions_[i] = row.version;
        sizes_[i] = row.size;
        reasons_[i] = static_cast<uint8_t>(row.reason);
        counts_[i] = with_nodes ? row.replica_count : uint8_t{0};
        for (size_t r = 0; r < counts_[i]; ++r) {
            nodes_.push_back(row.nodes[r]);
        }
    }
}

LookupReply LookupColumns::reply(uint64_t nodes_id) const {
    return {.status = status_,
            .versions = versions_,
            .sizes = sizes_,
            .reasons = reasons_,
            .replica_counts = counts_,
            .nodes = nodes_,
            .nodes_id = nodes_id};
}

void NodeColumns::fill(const std::vector<MasterCore::NodeView>& views) {
    localities_.reserve(views.size());  // the columns view them
    for (const MasterCore::NodeView& view : views) {
        indexes_.push_back(view.slot);
        weights_.push_back(view.info.weight);
        epochs_.push_back(view.info.node_epoch);
        free_.push_back(view.info.free_bytes);
        capacity_.push_back(view.info.capacity_bytes);
        const bool restarts = view.info.state == NodeState::kRestarting;
        states_.push_back(static_cast<uint8_t>(restarts ? NodeState::kDead : view.info.state));
        restarting_.push_back(restarts ? 1 : 0);
        ids_.push_back(view.info.node_id);
        tcp_.push_back(view.info.tcp_endpoint);
        unix_.push_back(view.info.unix_endpoint);
        hosts_.push_back(view.info.host);
        const Locality& locality = localities_.emplace_back(view.info.locality.bounded());
        numas_.push_back(locality.numa);
        racks_.push_back(locality.rack);
        rdma_domains_.push_back(locality.rdma_domain);
    }
}

NodesReply NodeColumns::reply(uint64_t nodes_id) const {
    return {.indexes = indexes_,
            .ids = ids_,
            .states = states_,
            .tcp_endpoints = tcp_,
            .unix_endpoints = unix_,
            .hosts = hosts_,
            .weights = weights_,
            .free_bytes = free_,
            .capacity_bytes = capacity_,
            .epochs = epochs_,
            .nodes_id = nodes_id,
            .restarting = restarting_,
            .numas = numas_,
            .racks = racks_,
            .rdma_domains = rdma_domains_};
}

KeyFilter::KeyFilter(const KeyList& keys) : count_(keys.size()) {
    for (size_t row = 0; row < keys.size(); ++row) {
        if (is_valid_key(keys[row])) {
            valid_.push_back(keys[row]);
            rows_.push_back(row);
        }
    }
}

std::vector<int32_t> KeyFilter::merge(const std::vector<Code>& codes) const {
    std::vector<int32_t> status(count_, static_cast<int32_t>(Code::kInvalidArgument));
    for (size_t i = 0; i < rows_.size(); ++i) {
        status[rows_[i]] = static_cast<int32_t>(codes[i]);
    }
    return status;
}

}  // namespace kvstore
