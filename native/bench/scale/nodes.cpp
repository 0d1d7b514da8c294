// What a generated node tells the master.
#include "scale/nodes.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <iomanip>
#include <sstream>

#include "base/clock.h"
#include "base/hmac.h"
#include "scale/objects.h"

namespace kvstore::scale {
namespace {

constexpr uint32_t kClaimMs = 5'000;
constexpr uint64_t kChurnBatch = 8;  // objects of one claim

std::string name_of(uint32_t index) {
    std::string digits = std::to_string(index);
    return "node-" + std::string(4 - std::min<size_t>(4, digits.size()), '0') + digits;
}

std::string from_hex(const std::string& hex) {
    std::string bytes;
    for (size_t i = 0; i + 1 < hex.size(); i += 2) {
        bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    }
    return bytes;
}

uint64_t claim_id(uint32_t index, uint64_t number) { return uint64_t{index} << 40 | number; }
uint64_t number_of(uint64_t id) { return id & ((uint64_t{1} << 40) - 1); }

}  // namespace

Node::Node(uint32_t index, uint64_t objects, const std::string& master, EventServer& server,
           NodeCounts& counts)
    : index_(index),
      first_objects_(objects),
      id_(name_of(index)),
      master_(master),
      ns_(std::make_shared<NamespaceEpoch>(NamespaceEpoch{.tenant = kTenant, .name = kNamespace})),
      server_(server),
      counts_(counts) {}

void Node::enter(uint64_t session_id, uint32_t epoch) {
    if (link_ != nullptr) {
        return link_->set_session(session_id, {master_});
    }
    MasterLink::Options options;
    options.node_id = id_;
    options.node_epoch = epoch;
    options.session_id = session_id;
    options.endpoints = {master_};
    link_ = std::make_unique<MasterLink>(std::move(options), server_, *this);
    linked_.store(link_.get(), std::memory_order_release);
    link_->start();
}

void Node::stop() {
    if (link_ != nullptr) {
        link_->stop();
    }
}

// Those of the beginning look as if an earlier life of the master had granted them.
Version Node::version_of(uint64_t number) const {
    return pack_epoch(0, 1 + index_ * first_objects_ + number);
}

Version Node::recorded(uint64_t number) const {
    return number < first_objects_ ? version_of(number) : written_[number - first_objects_];
}

std::optional<uint64_t> Node::pick(uint64_t random) const {
    const uint64_t begin = begin_;
    if (begin >= first_objects_) {
        return std::nullopt;
    }
    return begin + random % (first_objects_ - begin);
}

void Node::churn(uint64_t objects) {
    MasterLink* const to = link();
    const uint64_t link = to == nullptr ? 0 : to->up();
    if (link == 0 || muted_) {
        return;
    }
    std::vector<WithdrawItem> gone;
    std::vector<Key> keys;
    std::vector<ClaimItem> claims;
    keys.reserve(objects);
    {
        const MutexLock lock(mutex_);
        const uint64_t begin = begin_;
        const uint64_t end = first_objects_ + written_.size();
        for (uint64_t number = begin; number < std::min(begin + objects, end); ++number) {
            if (const Version version = recorded(number)) {
                gone.push_back(
                    {std::string(Key(index_, number).view()), version, MissReason::kEvicted});
            }
            begin_ = number + 1;
        }
        for (uint64_t number = end; number < end + objects; ++number) {
            keys.emplace_back(index_, number);
            claims.push_back({.claim_id = claim_id(index_, number),
                              .key = keys.back().view(),
                              .size_bytes = kObjectBytes});
            written_.push_back(0);
        }
    }
    counts_.withdrawn += gone.size();
    to->withdraw(ns_, std::move(gone));
    to->claim(link, *ns_, claims, kClaimMs);
}

void Node::heartbeat(const std::string& hex) {
    const auto promise = std::make_shared<std::promise<Result<std::string>>>();
    heard_ = promise->get_future().share();
    const auto heard = [promise](Result<std::string> answer) {
        promise->set_value(std::move(answer));
    };
    if (MasterLink* const to = link()) {
        to->heartbeat(from_hex(hex), heard);
    } else {
        heard(Status(Code::kUnavailable, "no link"));
    }
}

std::string Node::heard() const {
    if (!heard_.valid() || heard_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
        return "{}";
    }
    const Result<std::string>& answer = heard_.get();
    std::vector<uint8_t> reply;
    if (answer.ok()) {
        reply.assign(answer->begin(), answer->end());
    }
    return R"({"code":)" + std::to_string(static_cast<int>(answer.code())) + R"(,"reply":")" +
           hex(reply) + R"("})";
}

void Node::on_link_down(uint64_t) {}

void Node::on_claims(uint64_t link, std::span<const ClaimAnswer> results) {
    std::vector<AnnounceItem> items;
    for (const ClaimAnswer& answer : results) {
        if (answer.code != Code::kOk) {
            ++counts_.refused;
            continue;
        }
        const uint64_t number = number_of(answer.claim_id);
        items.push_back({.ticket = answer.claim_id,
                         .key = std::string(Key(index_, number).view()),
                         .version = answer.version,
                         .size_bytes = kObjectBytes,
                         .replicas = 1});
    }
    counts_.claimed += items.size();
    if (link_->announce(link, ns_, std::move(items)) != MasterLink::Announced::kLost) {
        link_->flush(link);
    }
}

void Node::on_announced(uint64_t, const NamespaceRef&, std::span<const AnnounceResult> results) {
    uint64_t refused = 0;
    const MutexLock lock(mutex_);
    for (const AnnounceResult& result : results) {
        if (result.code != Code::kOk) {
            ++refused;
        } else if (result.item->ticket != 0) {
            written_[number_of(result.item->ticket) - first_objects_] = result.item->version;
        }
    }
    counts_.announced += results.size() - refused;
    counts_.refused += refused;
}

uint32_t Node::list_objects(uint32_t cursor, size_t limit, std::vector<AnnounceGroup>& out) {
    const MutexLock lock(mutex_);
    if (cursor == 0) {
        listed_from_ = begin_;
    }
    const uint64_t end = first_objects_ + written_.size();
    const uint64_t first = listed_from_ + cursor;
    const uint64_t last = std::min(first + limit, end);
    AnnounceGroup group{.ns = ns_, .items = {}};
    for (uint64_t number = std::max<uint64_t>(first, begin_); number < last; ++number) {
        if (const Version version = recorded(number)) {
            group.items.push_back({.key = std::string(Key(index_, number).view()),
                                   .version = version,
                                   .size_bytes = kObjectBytes,
                                   .replicas = 1});
        }
    }
    if (!group.items.empty()) {
        out.push_back(std::move(group));
    }
    return last == end ? 0 : static_cast<uint32_t>(last - listed_from_);
}

Nodes::Nodes(uint32_t count, uint64_t objects, const std::string& master, EventServer& server) {
    for (uint32_t index = 0; index < count; ++index) {
        nodes_.push_back(std::make_unique<Node>(index, objects, master, server, counts_));
    }
}

void Nodes::stop() {
    for (const auto& node : nodes_) {
        node->stop();
    }
}

void Nodes::prepared(size_t index, uint32_t epoch) {
    const WriterLock lock(mutex_);
    epochs_[nodes_[index]->id()] = epoch;
}

void Nodes::enter(size_t index, uint64_t session_id) {
    uint32_t epoch = 0;
    {
        const WriterLock lock(mutex_);
        sessions_[session_id] = nodes_[index].get();
        epoch = epochs_[nodes_[index]->id()];
    }
    nodes_[index]->enter(session_id, epoch);
}

uint32_t Nodes::epoch_of(std::string_view node_id) const {
    const ReaderLock lock(mutex_);
    const auto at = epochs_.find(std::string(node_id));
    return at == epochs_.end() ? 0 : at->second;
}

Node* Nodes::of_session(uint64_t session_id) const {
    const ReaderLock lock(mutex_);
    const auto at = sessions_.find(session_id);
    return at == sessions_.end() ? nullptr : at->second;
}

void Nodes::silence(size_t first, size_t count, bool close) {
    for (size_t index = first; index < std::min(first + count, nodes_.size()); ++index) {
        nodes_[index]->mute();
        if (close) {
            nodes_[index]->stop();
        }
    }
}

std::string Nodes::states() const {
    std::array<uint64_t, 3> by_state{};
    uint64_t losses = 0;
    std::string error;
    for (const auto& node : nodes_) {
        const MasterLink* link = node->link();
        const bool gone = link == nullptr || node->muted();
        const LinkState state = gone ? LinkState::kDown : link->state();
        ++by_state[static_cast<size_t>(state)];
        if (link != nullptr) {
            losses += link->losses();
            error = state == LinkState::kUp || node->muted() ? error : link->last_error();
        }
    }
    std::ostringstream out;
    out << R"({"down":)" << by_state[0] << R"(,"syncing":)" << by_state[1] << R"(,"up":)"
        << by_state[2] << R"(,"losses":)" << losses << R"(,"announced":)" << counts_.announced
        << R"(,"claimed":)" << counts_.claimed << R"(,"withdrawn":)" << counts_.withdrawn
        << R"(,"refused":)" << counts_.refused << R"(,"last_error":)" << std::quoted(error) << "}";
    return out.str();
}

void Nodes::tick() {
    for (const auto& node : nodes_) {
        MasterLink* const link = node->link();
        if (link != nullptr && !node->muted()) {
            link->tick();
        }
    }
    churn(boottime_ms());
}

void Nodes::churn(uint64_t now_ms) {
    const double rate = churn_per_s_;
    if (rate == 0 || churned_ms_ == 0) {
        churned_ms_ = rate == 0 ? 0 : now_ms;
        churn_due_ = 0;
        return;
    }
    churn_due_ += rate * static_cast<double>(now_ms - churned_ms_) / 1000;
    churned_ms_ = now_ms;
    for (; churn_due_ >= kChurnBatch; churn_due_ -= kChurnBatch) {
        nodes_[churn_next_]->churn(kChurnBatch);
        churn_next_ = (churn_next_ + 1) % nodes_.size();
    }
}

}  // namespace kvstore::scale
