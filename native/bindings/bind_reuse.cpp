// kvstore._native.ReuseCurve and HotPrefixes: what the master makes of the uses that nodes report.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "gil.h"
#include "master/hot_prefixes.h"
#include "master/reuse_curve.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore {
namespace {

uint32_t note(ReuseCurve& self, uint32_t level, const nb::bytes& records, uint64_t hits,
              uint64_t puts, uint64_t lost, uint64_t capacity_bytes, uint64_t now_ms) {
    const std::span<const uint8_t> view(reinterpret_cast<const uint8_t*>(records.c_str()),
                                        records.size());
    const ReuseCurve::Report report{level, view, hits, puts, lost};
    const auto noted = [&] {
        const GilReleased released;
        return self.note(report, capacity_bytes, now_ms);
    };
    return value_or_raise(noted());
}

nb::dict summary_dict(const ReuseCurve& self, uint64_t now_ms) {
    const ReuseCurve::Summary summary = [&] {
        const GilReleased released;
        return self.summary(now_ms);
    }();
    std::vector<std::pair<uint64_t, double>> buckets;
    for (const ReuseCurve::Bucket& bucket : summary.buckets) {
        buckets.emplace_back(bucket.upto_bytes, bucket.uses);
    }
    nb::dict out;
    out["buckets"] = buckets;
    out["cold"] = summary.cold;
    out["hits"] = summary.hits;
    out["puts"] = summary.puts;
    out["lost"] = summary.lost;
    out["level"] = summary.level;
    out["keys"] = summary.keys;
    out["uses"] = summary.uses;
    out["since_ms"] = summary.since_ms;
    out["memory_bytes"] = summary.memory_bytes;
    out["busy_us"] = summary.busy_us;
    return out;
}

using PrefixRow = std::tuple<std::string, std::string, std::string, uint64_t, uint64_t>;

void note_prefixes(HotPrefixes& self, std::vector<PrefixRow> report, uint64_t now_ms) {
    std::vector<HotPrefixes::Use> uses;
    uses.reserve(report.size());
    for (auto& [tenant, ns, key, count, bytes] : report) {
        uses.push_back({{std::move(tenant), std::move(ns), std::move(key)}, count, bytes});
    }
    raise_unless_ok(self.note(uses, now_ms));
}

nb::dict prefixes_dict(const HotPrefixes& self, uint64_t now_ms) {
    const HotPrefixes::Summary summary = self.summary(now_ms);
    nb::list rows;
    for (const HotPrefixes::Row& row : summary.rows) {
        rows.append(nb::make_tuple(row.name.tenant, row.name.ns, row.name.key, row.uses_per_s,
                                   row.bytes_per_s));
    }
    nb::dict out;
    out["rows"] = rows;
    out["memory_bytes"] = summary.memory_bytes;
    out["busy_us"] = summary.busy_us;
    return out;
}

}  // namespace

void bind_reuse(nb::module_& module) {
    nb::class_<ReuseCurve>(module, "ReuseCurve",
                           "How often a use would find its object, at every size of the cluster.")
        .def(nb::init<uint64_t>(), nb::kw_only(), "half_life_ms"_a = 0)
        .def("note", &note, nb::kw_only(), "level"_a, "records"_a, "hits"_a = 0, "puts"_a = 0,
             "lost"_a = 0, "capacity_bytes"_a = 0, "now_ms"_a = 0,
             "Takes a node's report; the level that it is to sample at from now on.")
        .def("set_reach", &ReuseCurve::set_reach, "bytes"_a)
        .def("summary", &summary_dict, "now_ms"_a = 0);
    nb::class_<HotPrefixes>(module, "HotPrefixes", "The chains of keys that are read most.")
        .def(nb::init<uint64_t>(), nb::kw_only(), "half_life_ms"_a)
        .def("note", &note_prefixes, "report"_a, "now_ms"_a,
             "Takes what a node has seen since: [(tenant, namespace, first key, uses, bytes)].")
        .def("summary", &prefixes_dict, "now_ms"_a);
    module.attr("USE_RECORD_BYTES") = ReuseCurve::kRecordBytes;
    module.attr("MAX_REPORT_USES") = ReuseCurve::kMaxUsesPerS;
}

}  // namespace kvstore
