// Queueing, joining and sending of announces and withdraws.
#include "node/announce_stream.h"

#include <algorithm>
#include <functional>
#include <iterator>

namespace kvstore {
namespace {

// Appends rows to the last queued batch when it is of the same namespace and kind, else opens one.
template <class Item, class Queue>
void push_rows(Queue& queue, std::vector<Item> Queue::value_type::* rows, const NamespaceRef& ns,
               std::vector<Item> items) {
    auto first = items.begin();
    while (first != items.end()) {
        const bool joins = !queue.empty() && !(queue.back().*rows).empty() &&
                           (queue.back().*rows).size() < limits::kMaxBatchKeys &&
                           queue.back().ns == ns;
        if (!joins) {
            queue.emplace_back();
            queue.back().ns = ns;
        }
        std::vector<Item>& to = queue.back().*rows;
        const auto left = static_cast<size_t>(items.end() - first);
        const auto count =
            static_cast<std::ptrdiff_t>(std::min(left, limits::kMaxBatchKeys - to.size()));
        std::move(first, first + count, std::back_inserter(to));
        first += count;
    }
}

}  // namespace

void AnnounceStream::reset() {
    next_seq_ = 1;
    queue_.clear();
    sent_.clear();
}

void AnnounceStream::push(const NamespaceRef& ns, std::vector<AnnounceItem> items) {
    push_rows(queue_, &Queued::announces, ns, std::move(items));
}

void AnnounceStream::push(const NamespaceRef& ns, std::vector<WithdrawItem> items) {
    push_rows(queue_, &Queued::withdraws, ns, std::move(items));
}

bool AnnounceStream::send_next(ConnectionRef& to) {
    if (queue_.empty() || (!queue_.front().announces.empty() && window_full())) {
        return false;
    }
    send_front(to);
    return true;
}

void AnnounceStream::send_all(ConnectionRef& to) {
    while (!queue_.empty()) {
        send_front(to);
    }
}

void AnnounceStream::send_front(ConnectionRef& to) {
    Queued queued = std::move(queue_.front());
    queue_.pop_front();
    if (!queued.withdraws.empty()) {
        send_withdraw(to, queued);
    } else {
        send_phase(to, AnnouncePhase::kIncremental, std::move(queued.ns),
                   std::move(queued.announces));
    }
}

void AnnounceStream::send_phase(ConnectionRef& to, AnnouncePhase phase, NamespaceRef ns,
                                std::vector<AnnounceItem> items) {
    std::vector<std::string_view> keys;
    std::vector<uint64_t> versions;
    std::vector<uint64_t> sizes;
    std::vector<uint8_t> pins;
    std::vector<uint8_t> replicas;
    std::vector<uint8_t> copies;
    std::vector<uint64_t> ttl_ms;
    for (const AnnounceItem& item : items) {
        keys.push_back(item.key);
        versions.push_back(item.version);
        sizes.push_back(item.size_bytes);
        pins.push_back(static_cast<uint8_t>(item.pin));
        replicas.push_back(item.replicas);
        copies.push_back(item.copies);
        ttl_ms.push_back(item.ttl_ms);
    }
    Announce message;
    message.seq = next_seq_++;
    message.phase = phase;
    if (ns != nullptr) {
        message.tenant = ns->tenant;
        message.ns = ns->name;
        message.epoch = ns->epoch;
    }
    message.keys = keys;
    message.versions = versions;
    message.sizes = sizes;
    message.pins = pins;
    message.replicas = replicas;
    if (std::ranges::any_of(copies, std::identity())) {
        message.copies = copies;
    }
    message.ttl_ms = ttl_ms;
    to.send_message(message, 0);
    sent_.push_back({message.seq, phase, std::move(ns), std::move(items)});
}

void AnnounceStream::send_withdraw(ConnectionRef& to, const Queued& queued) {
    std::vector<std::string_view> keys;
    std::vector<uint64_t> versions;
    std::vector<uint8_t> reasons;
    for (const WithdrawItem& item : queued.withdraws) {
        keys.push_back(item.key);
        versions.push_back(item.version);
        reasons.push_back(static_cast<uint8_t>(item.reason));
    }
    Withdraw message;
    message.seq = next_seq_++;
    message.tenant = queued.ns->tenant;
    message.ns = queued.ns->name;
    message.epoch = queued.ns->epoch;
    message.keys = keys;
    message.versions = versions;
    message.reasons = reasons;
    to.send_message(message, 0);
}

bool AnnounceStream::take_acked(uint64_t seq, size_t rows, Sent* out) {
    // Mostly the first; one that overtook versions of other nodes is answered when these know.
    const auto at = std::find_if(sent_.begin(), sent_.end(),
                                 [seq](const Sent& sent) { return sent.seq == seq; });
    if (at == sent_.end() || at->items.size() != rows) {
        return false;
    }
    *out = std::move(*at);
    sent_.erase(at);
    return true;
}

}  // namespace kvstore
