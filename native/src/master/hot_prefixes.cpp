// Adds up what nodes report of their most used chains, and ages it.
#include "master/hot_prefixes.h"

#include <time.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>

#include "base/limits.h"
#include "base/types.h"

namespace kvstore {
namespace {

constexpr uint64_t kReportMs = 5000;     // what the first report of a node covers, at most
constexpr double kForgotten = 1.0 / 64;  // uses: read once, six half-lives ago

uint64_t thread_ns() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace

HotPrefixes::HotPrefixes(uint64_t half_life_ms)
    : half_life_ms_(std::max<uint64_t>(half_life_ms, 1)) {}

size_t HotPrefixes::NameHash::operator()(const Name& name) const {
    const std::hash<std::string_view> hash;
    return (hash(name.tenant) * 31 + hash(name.ns)) * 31 + hash(name.key);
}

Status HotPrefixes::note(std::span<const Use> report, uint64_t now_ms) {
    const uint64_t started_ns = thread_ns();
    const auto is_valid = [](const Use& use) {
        return !use.name.tenant.empty() && is_valid_name(use.name.tenant) &&
               is_valid_name(use.name.ns) && is_valid_key(use.name.key);
    };
    if (report.size() > limits::kMaxPrefixes || !std::ranges::all_of(report, is_valid)) {
        return {Code::kInvalidArgument, "prefixes: expected at most " +
                                            std::to_string(limits::kMaxPrefixes) +
                                            ", with valid names and keys"};
    }
    const MutexLock lock(mutex_);
    if (began_ms_ == 0) {
        began_ms_ = aged_ms_ = std::max<uint64_t>(now_ms, 1);
    }
    age(now_ms);
    for (const Use& use : report) {
        add(use);
    }
    busy_ns_ += thread_ns() - started_ns;
    return {};
}

void HotPrefixes::add(const Use& use) {
    const size_t before = items_.items().size();
    if (items_.add(use.name, static_cast<double>(use.uses), static_cast<double>(use.bytes))) {
        name_bytes_ += use.name.bytes();
        limit_names(before);
    }
}

void HotPrefixes::age(uint64_t now_ms) {
    const uint64_t passed_ms = now_ms - std::min(now_ms, aged_ms_);
    if (passed_ms < half_life_ms_ / 64 + 1) {
        return;
    }
    const auto halves = static_cast<double>(passed_ms) / static_cast<double>(half_life_ms_);
    items_.scale(std::exp2(-halves), kForgotten);
    aged_ms_ = now_ms;
    count_names();
}

void HotPrefixes::limit_names(size_t before) {
    if (items_.items().size() <= before) {
        count_names();  // the new one has made others go
    }
    while (name_bytes_ > kMaxNameBytes) {
        items_.thin();
        count_names();
    }
}

void HotPrefixes::count_names() {
    name_bytes_ = 0;
    for (const auto& [name, count] : items_.items()) {
        name_bytes_ += name.bytes();
    }
}

HotPrefixes::Summary HotPrefixes::summary(uint64_t now_ms) const {
    const MutexLock lock(mutex_);
    Summary summary;
    summary.busy_us = busy_ns_ / 1000;
    using Items = FrequentItems<Name, NameHash>::Items;
    constexpr size_t kNode = sizeof(Items::value_type) + 2 * sizeof(void*);
    summary.memory_bytes = sizeof(*this) + name_bytes_ +
                           items_.items().bucket_count() * sizeof(void*) +
                           items_.items().size() * kNode;
    // Uses of a steady rate come to rate / decay in the long run, and to less soon after the start.
    const double decay = std::numbers::ln2 / static_cast<double>(half_life_ms_) * 1000;
    const auto since_s =
        static_cast<double>(now_ms - std::min(now_ms, began_ms_) + kReportMs) / 1000;
    const auto aged_s = static_cast<double>(now_ms - std::min(now_ms, aged_ms_)) / 1000;
    const double scale = decay * std::exp(-decay * aged_s) / (1 - std::exp(-decay * since_s));
    for (const auto& [name, count] : items_.items()) {
        summary.rows.push_back({name, count.uses * scale, count.bytes * scale});
    }
    std::ranges::sort(summary.rows, std::greater<>(), &Row::uses_per_s);
    return summary;
}

}  // namespace kvstore
