// kvstore._native.NodeCore: the native node under the agent of kvstore/node; and the hello by which
// the agent finds its master's control plane.
//
// Every call releases the GIL around its work. Roles and codes are the numbers of types.h and
// status.h; a bad argument raises through kvstore.errors.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <mutex>
#include <shared_mutex>
#include <tuple>

#include "base/client_counters.h"
#include "base/little_endian.h"
#include "gil.h"
#include "net/channel.h"
#include "node/node_core.h"
#include "node_options.h"
#include "segment_files.h"
#include "server_values.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore {
namespace {

// The native node until close(); then nothing, and every call says so.
class PyNode {
  public:
    PyNode(std::unique_ptr<NodeCore> core, std::vector<std::unique_ptr<NvmeCatalog>> catalogs)
        : catalogs_(std::move(catalogs)), core_(std::move(core)) {}
    ~PyNode() { close(false); }

    template <class F>
    auto run(F f) {
        GilReleased release;
        std::shared_lock lock(mutex_);
        if (core_ == nullptr) {
            lock.unlock();
            GilHeld acquire;
            raise_status(Status(Code::kClosed, "the node was closed"));
        }
        return f(*core_);
    }
    void stop() {
        GilReleased release;
        const std::shared_lock lock(mutex_);
        if (core_ != nullptr) {
            core_->stop();
        }
    }
    void close(bool remove_files) {
        GilReleased release;
        std::unique_lock lock(mutex_);
        if (core_ != nullptr && remove_files) {
            for (const auto& domain : core_->domains().all()) {
                domain->store->remove_files();
            }
        }
        core_ = nullptr;
    }

  private:
    std::shared_mutex mutex_;
    std::vector<std::unique_ptr<NvmeCatalog>> catalogs_;
    std::unique_ptr<NodeCore> core_;
};

nb::dict histogram_dict(const Histogram::Snapshot& snapshot) {
    nb::list buckets;
    for (size_t bucket = 0; bucket < Histogram::kBuckets; ++bucket) {
        if (snapshot.counts[bucket] != 0) {
            buckets.append(nb::make_tuple(Histogram::upper_bound(bucket), snapshot.counts[bucket]));
        }
    }
    nb::dict out;
    out["buckets"] = buckets;
    out["total"] = snapshot.total;
    out["sum"] = snapshot.sum;
    return out;
}

void add_store(nb::dict& out, const BlockStore::Stats& store) {
    out["capacity_bytes"] = store.segment_bytes;
    out["ready_bytes"] = store.capacity_bytes;
    out["used_bytes"] = store.used_bytes;
    out["requested_bytes"] = store.requested_bytes;
    out["objects"] = store.objects;
    out["object_bytes"] = store.object_bytes;
    out["index_used"] = store.index_used;
    // What it can grow to: not beyond what it has, where there is no room.
    const uint64_t limit = store.growth_error.empty() ? store.index_max : store.index_capacity;
    out["index_limit"] = limit;
    nb::dict entries;
    entries["used"] = store.index_used;
    entries["free"] = store.index_capacity - store.index_used;
    entries["growth"] = limit - store.index_capacity;
    out["index_by_state"] = entries;
    out["index_evictions"] = store.index_evictions;
    out["reservations"] = store.reservations;
    out["spares"] = store.spares;
    out["reserved_bytes"] = store.reserved_bytes;
    out["quarantined"] = store.quarantined;
    out["quarantined_bytes"] = store.quarantined_bytes;
    out["deferred_bytes"] = store.deferred_bytes;
    out["leases"] = store.leases;
    out["leased_bytes"] = store.leased_bytes;
    out["soft_pinned_bytes"] = store.soft_pinned_bytes;
    out["hard_pinned_bytes"] = store.hard_pinned_bytes;
    out["evictions"] = store.evictions;
    out["evicted_bytes"] = store.evicted_bytes;
    out["evicted_unwritten"] = store.evicted_unwritten;
    out["unwritten"] = store.unwritten;
    out["unwritten_bytes"] = store.unwritten_bytes;
    out["expirations"] = store.expirations;
    out["removals"] = store.removals;
    out["no_space"] = store.no_space;
    out["reclaims"] = store.reclaims;
}

const char* nvme_state_name(NvmeState state) {
    switch (state) {
        case NvmeState::kActive:
            return "active";
        case NvmeState::kReadOnly:
            return "read_only";
        case NvmeState::kOff:
            return "off";
    }
    return "unknown";
}

nb::dict nvme_dict(const NvmeTierStats& nvme, const BlockStore::Stats& store) {
    nb::dict out;
    out["state"] = nvme_state_name(nvme.state);
    out["error"] = nvme.error;
    out["failed"] = nvme.state == NvmeState::kActive ? 0 : 1;
    out["read_way"] = nvme.read_way;
    out["objects"] = nvme.log.objects;
    out["object_bytes"] = nvme.log.bytes_live;
    out["capacity_bytes"] = nvme.log.bytes_capacity;
    out["index_bytes"] = nvme.log.index_bytes;
    out["free_segments"] = nvme.log.free_log_files;
    out["written_bytes"] = nvme.log.bytes_written;
    out["readmitted_objects"] = nvme.log.readmitted_objects;
    out["dropped_objects"] = nvme.log.dropped_objects;
    out["segments_reclaimed"] = nvme.log.log_files_reclaimed;
    out["checksum_errors"] = nvme.log.checksum_errors;
    out["io_errors"] = nvme.log.io_errors;
    out["catalog_errors"] = nvme.log.catalog_errors;
    out["overloaded"] = nvme.log.overloaded;
    out["recovered_objects"] = nvme.log.recovered_objects;
    out["scanned_segments"] = nvme.log.scanned_log_files;
    out["damaged_segments"] = nvme.log.damaged_log_files;
    out["damaged_records"] = nvme.log.damaged_records;
    out["torn_tails"] = nvme.log.torn_tails;
    out["damaged_removals"] = nvme.log.damaged_removals;
    out["demoted_objects"] = nvme.demoted_objects;
    out["demoted_bytes"] = nvme.demoted_bytes;
    out["demote_failures"] = nvme.demote_failures;
    out["hits"] = nvme.hits;
    out["hit_bytes"] = nvme.hit_bytes;
    out["promoted_objects"] = nvme.promoted_objects;
    out["promoted_bytes"] = nvme.promoted_bytes;
    out["promotions_skipped"] = nvme.promotions_skipped;
    out["prefetched_objects"] = nvme.prefetched_objects;
    out["prefetched_bytes"] = nvme.prefetched_bytes;
    out["prefetch_used"] = store.prefetch_used;
    out["prefetch_wasted"] = store.prefetch_wasted;
    out["snapshots"] = nvme.snapshots;
    out["snapshot_objects"] = nvme.snapshot_objects;
    out["snapshot_left"] = nvme.snapshot_left;
    out["snapshot_at_s"] = static_cast<double>(nvme.snapshot_at_ms) / 1000;
    out["read_us"] = histogram_dict(nvme.read_us);
    return out;
}

nb::dict stats_dict(PyNode& self) {
    const NodeStats stats = self.run([](NodeCore& core) { return core.stats(); });
    nb::dict out;
    out["link"] = link_state_name(stats.link);
    out["link_error"] = stats.link_error;
    out["link_losses"] = stats.link_losses;
    out["applied_seq"] = stats.applied_seq;
    out["prefault_error"] = stats.prefault_error;
    out["index_error"] = stats.store.growth_error;
    out["index_growth_failed"] = stats.store.growth_error.empty() ? 0 : 1;
    out["prefault_failed"] = stats.prefault_error.empty() ? 0 : 1;
    out["puts_under_way"] = stats.puts_under_way;
    out["hits"] = stats.hits_dram + stats.hits_nvme;
    out["spans_dropped"] = stats.spans_dropped;
    out["hits_dram"] = stats.hits_dram;
    out["hits_nvme"] = stats.hits_nvme;
    nb::dict misses;
    for (size_t reason = 1; reason < stats.misses.size(); ++reason) {
        const std::string name(miss_reason_name(static_cast<MissReason>(reason)));
        misses[name.c_str()] = stats.misses[reason];
    }
    out["misses"] = misses;
    out["puts_ok"] = stats.puts_ok;
    out["puts_exist"] = stats.puts_exist;
    out["puts_failed"] = stats.puts_failed;
    out["put_bytes_shm"] = stats.put_bytes_shm;
    out["put_bytes_tcp"] = stats.put_bytes_tcp;
    out["get_bytes_tcp"] = stats.get_bytes_tcp;
    out["put_bytes_ucx"] = stats.put_bytes_ucx;
    out["get_bytes_ucx"] = stats.get_bytes_ucx;
    out["hot_asks"] = stats.hot_asks;
    out["copies_in"] = stats.copies_in;
    out["copies_out"] = stats.copies_out;
    out["copies_failed"] = stats.copies_failed;
    out["copy_bytes_in"] = stats.copy_bytes_in;
    out["copy_bytes_out"] = stats.copy_bytes_out;
    out["live_slots"] = stats.live_slots;
    nb::dict refused;
    for (size_t cause = 1; cause < stats.attaches_refused.size(); ++cause) {
        const std::string name(attach_cause_name(static_cast<AttachCause>(cause)));
        refused[name.c_str()] = stats.attaches_refused[cause];
    }
    out["attaches_refused"] = refused;
    out["put_us"] = histogram_dict(stats.put_us);
    out["get_us"] = histogram_dict(stats.get_us);
    out["claim_us"] = histogram_dict(stats.claim_us);
    out["announce_us"] = histogram_dict(stats.announce_us);
    add_store(out, stats.store);
    nb::dict capacity;
    nb::dict used;
    nb::dict registered;
    nb::dict ucx_errors;
    for (const NodeStats::InDomain& one : stats.domains) {
        const std::string name = one.name.empty() ? "shared" : one.name;
        capacity[name.c_str()] = one.capacity_bytes;
        used[name.c_str()] = one.used_bytes;
        registered[name.c_str()] = one.ucx.registered_bytes;
        if (!one.ucx.error.empty()) {
            ucx_errors[name.c_str()] = one.ucx.error;
        }
    }
    out["ucx_registered_bytes"] = registered;
    out["ucx_errors"] = ucx_errors;
    out["domain_capacity_bytes"] = capacity;
    out["domain_used_bytes"] = used;
    out["nvme"] = stats.nvme.on ? nb::object(nvme_dict(stats.nvme, stats.store)) : nb::none();
    add_server(out, stats.server);
    return out;
}

nb::dict take_uses(PyNode& self, uint32_t level) {
    const UseSampler::Taken taken =
        self.run([level](NodeCore& core) { return core.take_uses(level); });
    std::vector<uint8_t> records;
    records.reserve(taken.uses.size() * 16);
    for (const UseSampler::Use& use : taken.uses) {
        append_word(records, use.hash);
        append_word(records, use.size_bytes << 1 | (use.hit ? 1 : 0));
    }
    nb::dict out;
    out["level"] = taken.level;
    out["records"] = nb::bytes(reinterpret_cast<const char*>(records.data()), records.size());
    out["hits"] = taken.hits;
    out["puts"] = taken.puts;
    out["lost"] = taken.lost;
    return out;
}

nb::bytes heartbeat(PyNode& self, const nb::bytes& request, uint32_t timeout_ms) {
    const std::string reply = value_or_raise(self.run([&](NodeCore& core) {
        return core.heartbeat({request.c_str(), request.size()}, timeout_ms);
    }));
    return nb::bytes(reply.data(), reply.size());
}

nb::list take_prefixes(PyNode& self) {
    nb::list out;
    for (const BlockStore::PrefixUse& one :
         self.run([](NodeCore& core) { return core.take_prefixes(); })) {
        out.append(nb::make_tuple(one.ns->tenant, one.ns->name, one.key, one.uses, one.bytes));
    }
    return out;
}

nb::list client_counters(PyNode& self) {
    nb::list out;
    for (const TenantCounters& tenant :
         self.run([](NodeCore& core) { return core.client_counters(); })) {
        nb::dict counters;
        for (int i = 0; i < kSharedCounterCount; ++i) {
            counters[std::string(client_counter_name(i)).c_str()] =
                tenant.values[static_cast<size_t>(i)];
        }
        nb::dict one;
        one["tenant"] = tenant.tenant;
        one["live_slots"] = tenant.live_slots;
        one["counters"] = counters;
        out.append(one);
    }
    return out;
}

nb::bytes bytes_of(std::span<const uint8_t> raw) { return nb::bytes(raw.data(), raw.size()); }

nb::list take_spans(PyNode& self) {
    nb::list out;
    for (const FinishedSpan& span : self.run([](NodeCore& core) { return core.take_spans(); })) {
        const std::span context(span.parent);
        out.append(nb::make_tuple(bytes_of(context.first(kTraceIdBytes)),
                                  bytes_of(context.subspan(kTraceIdBytes)), bytes_of(span.id),
                                  static_cast<int>(span.kind), span.began_us, span.lasted_us,
                                  span.keys, span.found, span.bytes));
    }
    return out;
}

nb::dict snapshot(PyNode& self, uint32_t timeout_ms) {
    const NvmeTier::Snapshot done = self.run([&](NodeCore& core) {
        if (core.nvme() == nullptr) {
            NvmeTier::Snapshot none;
            none.status = {Code::kUnsupported,
                           "this node has no NVMe tier: set nvme_dir and nvme_size"};
            return none;
        }
        return core.nvme()->snapshot(Deadline::after_ms(timeout_ms));
    });
    raise_unless_ok(done.status);
    nb::dict out;
    out["objects"] = done.objects;
    out["bytes"] = done.bytes;
    out["left"] = done.left;
    return out;
}

void create(PyNode* self, const PyNodeOptions& given, PySegmentFiles* files) {
    NodeOptions options = given;
    std::vector<std::unique_ptr<NvmeCatalog>> catalogs = catalogs_of(given);
    for (const auto& catalog : catalogs) {
        options.nvme_catalogs.push_back(catalog.get());
    }
    options.on_nvme_progress = progress_of(given);
    if (files != nullptr && files->files.empty()) {
        raise_status({Code::kInvalidArgument, "these files have a node already"});
    }
    const auto make = [&] {
        const GilReleased release;
        std::vector<std::unique_ptr<StoreFiles>> taken;
        if (files != nullptr) {
            taken.swap(files->files);
        }
        return NodeCore::create(options, std::move(taken));
    };
    new (self) PyNode(value_or_raise(make()), std::move(catalogs));
}

nb::dict beginning(PyNode& self) {
    const BlockStore::Beginning begun =
        self.run([](NodeCore& core) { return core.domains().beginning(); });
    nb::dict out;
    out["warm"] = begun.warm;
    out["why_cold"] = begun.why_cold;
    out["restart_loses"] = begun.restart_loses;
    out["objects"] = begun.objects;
    out["object_bytes"] = begun.object_bytes;
    out["dropped"] = begun.dropped;
    out["quarantined"] = begun.quarantined;
    out["deferred"] = begun.deferred;
    out["took_ms"] = begun.took_us / 1000;
    return out;
}

std::pair<std::string, std::string> start(PyNode& self) {
    NodeEndpoints bound = value_or_raise(self.run([](NodeCore& core) { return core.start(); }));
    return {std::move(bound.tcp), std::move(bound.unix_socket)};
}

void bind_settings(nb::class_<PyNode>& node) {
    using Strings = std::vector<std::string>;
    node.def(
            "set_session",
            [](PyNode& self, uint64_t session_id, const Strings& master_endpoints) {
                self.run([&](NodeCore& core) { core.set_session(session_id, master_endpoints); });
            },
            "session_id"_a, "master_endpoints"_a, "Reconnect under a new registration.")
        .def(
            "set_principals",
            [](PyNode& self, const std::vector<PrincipalTuple>& tuples) {
                std::vector<Principal> principals = principals_from(tuples);
                self.run([&](NodeCore& core) { core.set_principals(std::move(principals)); });
            },
            "principals"_a, "Replace who may connect; sessions of changed or missing ones end.")
        .def(
            "set_credentials",
            [](PyNode& self, const std::string& principal, const std::string& token) {
                self.run([&](NodeCore& core) { core.set_credentials(principal, token); });
            },
            "principal"_a, "token"_a, "How the node presents itself from the next connection on.")
        .def(
            "set_tunables",
            [](PyNode& self, const NodeTunables& tunables) {
                self.run([&](NodeCore& core) { core.set_tunables(tunables); });
            },
            "tunables"_a, "For reservations and sessions from now on.")
        .def(
            "set_draining",
            [](PyNode& self, bool draining) {
                self.run([&](NodeCore& core) { core.set_draining(draining); });
            },
            "draining"_a, "Take no new objects, or take them again.");
}

void bind_processes(nb::class_<PyNode>& node) {
    node.def(
            "segment_descriptor",
            [](PyNode& self, size_t domain) {
                return self.run([&](NodeCore& core) {
                    const auto all = core.domains().all();
                    return domain < all.size() ? dup(all[domain]->store->segment_fd(true)) : -1;
                });
            },
            "domain"_a, "Of a domain's segment, writable; the caller closes it. -1: none.")
        .def(
            "adopt_ucx",
            [](PyNode& self, size_t domain, int socket) {
                raise_unless_ok(
                    self.run([&](NodeCore& core) { return core.adopt_ucx(domain, Fd(socket)); }));
            },
            "domain"_a, "socket"_a, "Serve a UCX process; owns the descriptor.")
        .def(
            "ucx_ended",
            [](PyNode& self, size_t domain) {
                self.run([&](NodeCore& core) { core.ucx_ended(domain); });
            },
            "domain"_a, "That process has ended: to be called once it was waited for.");
}

void bind_sessions(nb::class_<PyNode>& node) {
    node.def(
            "sessions",
            [](PyNode& self) {
                return sessions_from(self.run([](NodeCore& core) { return core.sessions(); }));
            },
            "Sessions of the block port, the link to the master among them.")
        .def(
            "end_sessions",
            [](PyNode& self, const std::vector<uint64_t>& ids, const std::string& reason) {
                return self.run([&](NodeCore& core) { return core.end_sessions(ids, reason); });
            },
            "ids"_a, "reason"_a, "End sessions; how many there were.");
}

void bind_state(nb::class_<PyNode>& node) {
    node.def(
            "link_state",
            [](PyNode& self) {
                return link_state_name(self.run([](NodeCore& core) { return core.link_state(); }));
            },
            "\"down\", \"syncing\" or \"up\".")
        .def(
            "wait_link",
            [](PyNode& self, uint32_t timeout_ms) {
                return self.run(
                    [&](NodeCore& core) { return core.wait_link(LinkState::kUp, timeout_ms); });
            },
            "timeout_ms"_a, "Whether the link was up within the time.")
        .def("heartbeat", &heartbeat, "request"_a, "timeout_ms"_a,
             "Send a HeartbeatRequest over the link; the HeartbeatReply. UnavailableError: it did "
             "not go over the link, or nothing came back in time; else what the master raised.")
        .def("stats", &stats_dict, "Counters, sizes and histograms {buckets, total, sum}.")
        .def("take_uses", &take_uses, "level"_a,
             "Uses of sampled keys since the last call, as ReuseCurve.note takes them.")
        .def("take_prefixes", &take_prefixes,
             "[(tenant, namespace, first key, uses, bytes)] of the chains read most since then.")
        .def("client_counters", &client_counters,
             "[{tenant, live_slots, counters: {name: value}}] of this host's clients.")
        .def(
            "audit",
            [](PyNode& self) {
                raise_unless_ok(self.run([](NodeCore& core) {
                    Status status;
                    for (const auto& domain : core.domains().all()) {
                        status = status.ok() ? domain->store->audit() : status;
                    }
                    return status;
                }));
            },
            "Check the store's books; for tests.")
        .def("take_spans", &take_spans,
             "Spans of traced requests since the last call: (trace id, parent's id, id, kind, "
             "beginning and length in µs, keys, found, bytes).")
        .def(
            "take_refusals",
            [](PyNode& self) {
                return refusals_from(self.run([](NodeCore& core) { return core.take_refusals(); }));
            },
            "Refused peers and ended connections since the last call.")
        .def(
            "damage",
            [](PyNode& self) { return self.run([](NodeCore& core) { return core.damage(); }); },
            "What somebody has done to the shared memory from outside; \"\" while it is whole.")
        .def(
            "take_lost_clients",
            [](PyNode& self) {
                return self.run([](NodeCore& core) { return core.take_lost_clients(); });
            },
            "Clients that have spoiled their slots since the last call, a phrase each.")
        .def("snapshot", &snapshot, "timeout_ms"_a,
             "Write to NVMe what DRAM alone has, the last used first: {objects, bytes, left}. "
             "UnsupportedError: no NVMe tier; OverloadedError: another one is in progress; the "
             "tier's "
             "own error when it is not active.")
        .def("beginning", &beginning,
             "{warm, why_cold, restart_loses, objects, object_bytes, dropped, quarantined, "
             "deferred, took_ms}: what was taken over from an earlier life.");
}

}  // namespace

void bind_node(nb::module_& module) {
    bind_node_options(module);
    bind_segment_files(module);
    nb::class_<PyNode> node(
        module, "NodeCore",
        "The native node: block store, server for clients and peers, master link.");
    node.def("__init__", &create, "options"_a, nb::kw_only(), "files"_a = nb::none(),
             "Takes over or creates the segment and the store; nothing listens yet. files: taken "
             "from their object; None: anonymous memory.")
        .def("start", &start,
             "Listen and begin to connect to the master: (TCP endpoint, Unix endpoint), \"\" for "
             "none.")
        .def("stop", &PyNode::stop, "Close every connection, end the threads; idempotent.")
        .def("close", &PyNode::close, nb::kw_only(), "remove_files"_a = false,
             "Give the memory back; its files stay for the next life, or go. After stop(), once "
             "nobody else calls.");
    bind_settings(node);
    bind_processes(node);
    bind_sessions(node);
    bind_state(node);
}

}  // namespace kvstore
