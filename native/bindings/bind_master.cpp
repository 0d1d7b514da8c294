// kvstore._native.MasterCore: the native master under the policy that kvstore/master decides.
//
// Every call releases the GIL around its work. Codes are numbers of status.h; a bad argument raises
// through kvstore.errors.
#include "bind_master.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "locality_tuple.h"
#include "server_values.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvstore {
namespace {

NodeState state_from(int state) {
    if (state < 0 || state > static_cast<int>(NodeState::kRestarting)) {
        raise_status(Status(Code::kInvalidArgument, "unknown node state"));
    }
    return static_cast<NodeState>(state);
}

nb::bytes to_bytes(const std::vector<uint8_t>& data) {
    return nb::bytes(reinterpret_cast<const char*>(data.data()), data.size());
}

nb::dict node_dict(const MasterCore::NodeView& view) {
    nb::dict out;
    out["node_id"] = view.info.node_id;
    out["session_id"] = view.info.session_id;
    out["node_epoch"] = view.info.node_epoch;
    out["tcp_endpoint"] = view.info.tcp_endpoint;
    out["unix_endpoint"] = view.info.unix_endpoint;
    out["host"] = view.info.host;
    out["weight"] = view.info.weight;
    out["free_bytes"] = view.info.free_bytes;
    out["capacity_bytes"] = view.info.capacity_bytes;
    out["state"] = static_cast<int>(view.info.state);
    out["connected"] = view.connected;
    out["synced"] = view.synced;
    out["applied_seq"] = view.applied_seq;
    out["replicas"] = view.replicas;
    return out;
}

nb::object inspect(PyMaster& self, const std::string& tenant, const std::string& ns,
                   const std::string& key) {
    ObjectInfo info;
    std::vector<MasterCore::NodeView> nodes;
    const bool found = unlocked([&] {
        const NamespacePtr space = self.find(tenant, ns);
        if (space == nullptr || !self.core().directory().inspect(*space->current, key, info)) {
            return false;
        }
        nodes = self.core().nodes();
        return true;
    });
    if (!found) {
        return nb::none();
    }
    nb::list replicas;
    for (const Replica replica : info.replicas) {
        for (const MasterCore::NodeView& node : nodes) {
            if (node.slot == replica.node()) {
                nb::dict one;
                one["node_id"] = node.info.node_id;
                one["tier"] = static_cast<int>(replica.tier());
                one["state"] = static_cast<int>(node.info.state);
                replicas.append(one);
            }
        }
    }
    nb::dict out;
    out["size"] = info.size;
    out["version"] = info.version;
    out["pin"] = static_cast<int>(info.pin);
    out["replicas_wanted"] = static_cast<int>(info.replicas_wanted);
    out["created_ms"] = info.created_ms;
    out["ttl_left_ms"] = info.ttl_ms;
    out["replicas"] = replicas;
    return out;
}

nb::list namespace_uses(PyMaster& self) {
    nb::list out;
    for (const Directory::NamespaceUse& use :
         unlocked([&] { return self.core().directory().uses(); })) {
        nb::dict row;
        row["tenant"] = use.ns->tenant;
        row["namespace"] = use.ns->name;
        row["epoch"] = use.epoch;
        row["objects"] = use.objects;
        row["bytes"] = use.bytes;
        row["keys_looked_up"] = use.ns->keys_looked_up.load();
        row["keys_found"] = use.ns->keys_found.load();
        out.append(row);
    }
    return out;
}

nb::dict stats_dict(PyMaster& self) {
    MasterCore::Stats stats;
    ServerStats server;
    unlocked([&] {
        stats = self.core().stats();
        server = self.service().stats();
        return 0;
    });
    nb::dict out;
    out["objects"] = stats.directory.objects - stats.directory.unreachable_objects;
    out["object_bytes"] = stats.directory.bytes - stats.directory.unreachable_bytes;
    out["unreachable_objects"] = stats.directory.unreachable_objects;
    out["replicas"] = stats.directory.replicas;
    out["tombstones"] = stats.directory.tombstones;
    out["namespaces"] = stats.namespaces;
    out["directory_memory_bytes"] = stats.directory.memory_bytes;
    nb::dict lookups;
    for (int reason = 0; reason < kMissReasonCount; ++reason) {
        const std::string name(reason == 0 ? "hit"
                                           : miss_reason_name(static_cast<MissReason>(reason)));
        lookups[name.c_str()] = stats.directory.lookups[static_cast<size_t>(reason)];
    }
    out["lookups"] = lookups;
    out["claims_granted_now"] = stats.claims.granted;
    out["claims_waiting_now"] = stats.claims.waiting;
    out["claims_limbo_now"] = stats.claims.limbo;
    out["claims_granted"] = stats.claims.total_granted;
    out["claims_exists"] = stats.claims.total_exists;
    out["claims_inherited"] = stats.claims.total_inherited;
    out["claims_expired"] = stats.claims.total_expired;
    out["copies_queued"] = stats.copies.queued;
    out["copies_in_flight"] = stats.copies.in_flight;
    out["copies_ordered"] = stats.copies.ordered;
    out["copies_done"] = stats.copies.done;
    out["copies_failed"] = stats.copies.failed;
    out["copies_given_up"] = stats.copies.given_up;
    out["ops_last_seq"] = stats.last_seq;
    out["ops_durable_seq"] = stats.durable_seq;
    out["ops_trimmed_seq"] = stats.trimmed_seq;
    out["ops_pending"] = stats.log_ops;
    out["waits_pending"] = stats.pending_waits;
    out["lookups_waiting_now"] = stats.waiting_lookups;
    out["nodes_known"] = stats.nodes;
    out["nodes_connected"] = stats.connected;
    out["announced"] = stats.announced;
    out["announces_refused"] = stats.refused_announces;
    out["withdrawn"] = stats.withdrawn;
    out["removes"] = stats.removes;
    out["flushes"] = stats.flushes;
    out["rebuilding"] = self.core().rebuilding();
    add_server(out, server);
    return out;
}

void register_node(PyMaster& self, const std::string& node_id, uint64_t session_id,
                   uint32_t node_epoch, const std::string& tcp, const std::string& unix_endpoint,
                   const std::string& host, uint32_t weight, uint64_t capacity, uint64_t free,
                   int state, bool known, bool fresh, const LocalityTuple& locality) {
    const NodeInfo info{.node_id = node_id,
                        .session_id = session_id,
                        .node_epoch = node_epoch,
                        .tcp_endpoint = tcp,
                        .unix_endpoint = unix_endpoint,
                        .host = host,
                        .locality = locality_of(locality),
                        .weight = weight,
                        .free_bytes = free,
                        .capacity_bytes = capacity,
                        .state = state_from(state),
                        .fresh = fresh};
    const bool old = known || !self.started();
    value_or_raise(unlocked([&] { return self.core().register_node(info, old); }));
}

void bind_nodes(nb::class_<PyMaster>& master) {
    master
        .def(
            "register_node", &register_node, "node_id"_a, "session_id"_a, "node_epoch"_a,
            "tcp_endpoint"_a, "unix_endpoint"_a, "host"_a, "weight"_a, "capacity_bytes"_a,
            "free_bytes"_a = 0, "state"_a = 0, "known"_a = false, "fresh"_a = false,
            "locality"_a = LocalityTuple(),
            "Adds a node or gives it a new session (which ends its older link). `known`: a node of "
            "a "
            "previous life of this master, before start(). `state`: NodeState of types.h (0 "
            "joining, "
            "1 alive, 2 draining, 3 dead). `fresh`: a new node that can hold nothing yet. "
            "`locality`: its labels numa, rack and rdma_domain.")
        .def(
            "set_node",
            [](PyMaster& self, const std::string& node_id, int state, uint32_t weight,
               uint64_t free, uint64_t capacity) {
                const NodeState to = state_from(state);
                raise_unless_ok(unlocked(
                    [&] { return self.core().set_node(node_id, to, weight, free, capacity); }));
            },
            "node_id"_a, "state"_a, "weight"_a, "free_bytes"_a, "capacity_bytes"_a,
            "State and weight (for copy targets) as policy decides. NotFound: unknown node.")
        .def(
            "node_heard",
            [](PyMaster& self, const std::string& node_id) {
                unlocked([&] { self.core().heard(node_id); });
            },
            "node_id"_a, "A heartbeat of a node whose link is down: what it holds counts again.")
        .def(
            "set_node_endpoints",
            [](PyMaster& self, const std::string& node_id, const std::string& tcp,
               const std::string& unix_endpoint, const std::string& host,
               const LocalityTuple& locality) {
                raise_unless_ok(unlocked([&] {
                    return self.core().set_endpoints(node_id, tcp, unix_endpoint, host,
                                                     locality_of(locality));
                }));
            },
            "node_id"_a, "tcp_endpoint"_a, "unix_endpoint"_a, "host"_a,
            "locality"_a = LocalityTuple())
        .def(
            "remove_node",
            [](PyMaster& self, const std::string& node_id) {
                raise_unless_ok(unlocked([&] { return self.core().remove_node(node_id); }));
            },
            "node_id"_a,
            "Forgets the node: its replicas are dropped, the log no longer waits for it.")
        .def("nodes", [](PyMaster& self) {
            nb::list out;
            for (const auto& view : unlocked([&] { return self.core().nodes(); })) {
                out.append(node_dict(view));
            }
            return out;
        });
}

void bind_links(nb::class_<PyMaster>& master) {
    master
        .def(
            "link_of",
            [](PyMaster& self, const std::string& node_id) {
                const auto [connected, synced] =
                    unlocked([&] { return self.core().link_of(node_id); });
                return nb::make_tuple(connected, synced);
            },
            "node_id"_a, "(connected, synced) of one node; of an unknown one, neither.")
        .def(
            "links_id", [](PyMaster& self) { return self.core().links_id(); },
            "Changes whenever a link opens, ends or has announced everything.")
        .def(
            "set_link_silence",
            [](PyMaster& self, uint32_t silence_ms) { self.core().set_link_silence(silence_ms); },
            "silence_ms"_a, "Links that bring nothing for that time are ended; 0: never.");
}

void bind_copies(nb::class_<PyMaster>& master) {
    master
        .def(
            "drain_left",
            [](PyMaster& self, const std::string& node_id) {
                const auto left = unlocked([&] { return self.core().drain_left(node_id); });
                return nb::make_tuple(left.objects, left.bytes);
            },
            "node_id"_a,
            "Readable objects that no other living, not draining node holds, and their bytes.")
        .def(
            "under_replicated",
            [](PyMaster& self) { return unlocked([&] { return self.core().under_replicated(); }); })
        .def(
            "set_copy_policy",
            [](PyMaster& self, std::optional<double> copies_per_s,
               std::optional<double> bytes_per_s, std::optional<uint32_t> max_in_flight,
               std::optional<uint32_t> order_timeout_ms, std::optional<uint32_t> max_attempts,
               std::optional<bool> repair, std::optional<uint32_t> repair_delay_ms) {
                GilReleased release;
                CopyPolicy policy = self.core().copy_policy();
                policy.copies_per_s = copies_per_s.value_or(policy.copies_per_s);
                policy.bytes_per_s = bytes_per_s.value_or(policy.bytes_per_s);
                policy.max_in_flight = max_in_flight.value_or(policy.max_in_flight);
                policy.order_timeout_ms = order_timeout_ms.value_or(policy.order_timeout_ms);
                policy.max_attempts = max_attempts.value_or(policy.max_attempts);
                policy.repair = repair.value_or(policy.repair);
                policy.repair_delay_ms = repair_delay_ms.value_or(policy.repair_delay_ms);
                self.core().set_copy_policy(policy);
            },
            nb::kw_only(), "copies_per_s"_a = nb::none(), "bytes_per_s"_a = nb::none(),
            "max_in_flight"_a = nb::none(), "order_timeout_ms"_a = nb::none(),
            "max_attempts"_a = nb::none(), "repair"_a = nb::none(),
            "repair_delay_ms"_a = nb::none(), "What is not given keeps its value.");
}

void bind_journal(nb::class_<PyMaster>& master) {
    master
        .def(
            "wait_journal",
            [](PyMaster& self, uint32_t timeout_ms) {
                auto records = unlocked([&] { return self.core().wait_journal(timeout_ms); });
                nb::list out;
                for (const auto& [seq, record] : records) {
                    out.append(nb::make_tuple(seq, to_bytes(record)));
                }
                return out;
            },
            "timeout_ms"_a,
            "Blocks for operations that are not durable yet; [(seq, record)], empty after the time "
            "or "
            "stop(). Write them, then journal_done(last seq).")
        .def(
            "journal_done",
            [](PyMaster& self, uint64_t seq) {
                GilReleased release;
                self.core().journal_done(seq);
            },
            "seq"_a, "Records up to `seq` are durable: push them to the nodes.")
        .def(
            "set_journal_room",
            [](PyMaster& self, uint64_t bytes, int32_t refusal) {
                self.core().set_journal_room(bytes, static_cast<Code>(refusal));
            },
            "bytes"_a, "refusal"_a,
            "Bytes of operations that may be waiting for the disk; what goes beyond is answered "
            "with "
            "the refusal, and has no effect.")
        .def(
            "journal_trimmed", [](PyMaster& self) { return self.core().journal_trimmed(); },
            "(trimmed_seq, version_floor). Persist both (the constructor takes them), then delete "
            "the "
            "records up to trimmed_seq.");
}

void bind_history(nb::class_<PyMaster>& master) {
    master
        .def(
            "load_ops",
            [](PyMaster& self, const std::vector<nb::bytes>& records) {
                std::vector<std::vector<uint8_t>> copies;
                for (const nb::bytes& record : records) {
                    const auto* data = reinterpret_cast<const uint8_t*>(record.c_str());
                    copies.emplace_back(data, data + record.size());
                }
                raise_unless_ok(unlocked([&] { return self.core().load_ops(copies); }));
            },
            "records"_a, "The journal's records in order, before start().")
        .def_static(
            "decode_op",
            [](const nb::bytes& record) {
                const Op op = value_or_raise(OpsLog::decode(
                    {reinterpret_cast<const uint8_t*>(record.c_str()), record.size()}));
                nb::dict out;
                out["seq"] = op.seq;
                out["kind"] = op.kind == OpKind::kRemove  ? "remove"
                              : op.kind == OpKind::kFlush ? "flush"
                                                          : "pin";
                out["tenant"] = op.tenant;
                out["namespace"] = op.ns;
                out["key"] = nb::bytes(op.key.data(), op.key.size());
                out["version"] = op.version;
                out["epoch"] = op.epoch;
                out["arg"] = op.arg;
                return out;
            },
            "record"_a,
            "{seq, kind, tenant, namespace, key, version, epoch, arg}. A flush ends `epoch`, `arg` "
            "is "
            "the namespace's new epoch (persist it); a pin sets the level `arg`.")
        .def(
            "set_namespace_epoch",
            [](PyMaster& self, const std::string& tenant, const std::string& ns, uint32_t epoch) {
                raise_unless_ok(self.core().set_namespace_epoch(tenant, ns, epoch));
            },
            "tenant"_a, "namespace"_a, "epoch"_a, "As persisted, before start().")
        .def(
            "namespaces",
            [](PyMaster& self) {
                std::vector<std::tuple<std::string, std::string, uint32_t>> out;
                for (const auto& [ns, epoch] : self.core().directory().namespaces().all()) {
                    out.emplace_back(ns->tenant, ns->name, epoch);
                }
                return out;
            },
            "[(tenant, namespace, epoch)]")
        .def("namespace_uses", &namespace_uses,
             "[{tenant, namespace, epoch, objects, bytes, keys_looked_up, keys_found}]: objects "
             "recorded now; keys of lookups since the start.");
}

void bind_reads(nb::class_<PyMaster>& master) {
    master.def("inspect", &inspect, "tenant"_a, "namespace"_a, "key"_a)
        .def(
            "list_keys",
            [](PyMaster& self, const std::string& tenant, const std::string& ns,
               const std::string& prefix, uint64_t cursor, size_t limit) {
                std::pair<std::vector<std::string>, uint64_t> page{{}, 0};
                GilReleased release;
                if (const NamespacePtr space = self.find(tenant, ns)) {
                    page.second = self.core().directory().list(*space->current, prefix, cursor,
                                                               limit, page.first);
                }
                return page;
            },
            "tenant"_a, "namespace"_a, "prefix"_a, "cursor"_a = 0, "limit"_a = 1000,
            "(keys, next cursor); cursor 0 starts and ends. A page before the end may be short.")
        .def(
            "locate",
            [](PyMaster& self, const std::string& tenant, const std::string& ns,
               const std::vector<std::string>& keys) {
                std::pair<std::vector<std::pair<std::string, uint32_t>>, uint32_t> found{{}, 0};
                GilReleased release;
                if (const NamespacePtr space = self.find(tenant, ns)) {
                    found = self.core().locate(*space, views(keys));
                }
                return found;
            },
            "tenant"_a, "namespace"_a, "keys"_a,
            "([(node id, prefix length)] longest first, prefix length anywhere)")
        .def(
            "wait_events",
            [](PyMaster& self, uint64_t cursor, uint32_t timeout_ms) {
                return unlocked(
                    [&] { return self.core().directory().watch().wait(cursor, timeout_ms); });
            },
            "cursor"_a, "timeout_ms"_a, "Blocks until there are events that `cursor` lacks.")
        .def(
            "poll_events",
            [](PyMaster& self, uint64_t cursor, size_t max_events) {
                std::vector<std::string> ids;
                const WatchRing::Batch batch = unlocked([&] {
                    WatchRing::Batch polled =
                        self.core().directory().watch().poll(cursor, max_events, boottime_ms());
                    for (const MasterCore::NodeView& view : self.core().nodes()) {
                        ids.resize(std::max(ids.size(), size_t{view.slot} + 1));
                        ids[view.slot] = view.info.node_id;
                    }
                    return polled;
                });
                static constexpr const char* kNames[] = {"",       "publish", "withdraw",
                                                         "remove", "flush",   "node"};
                nb::list events;
                for (const WatchEvent& event : batch.events) {
                    const std::string node = event.node < ids.size() ? ids[event.node] : "";
                    events.append(nb::make_tuple(kNames[static_cast<size_t>(event.kind)],
                                                 event.tenant, event.ns, event.key, event.version,
                                                 event.size, node));
                }
                return nb::make_tuple(events, batch.next_cursor, batch.resync);
            },
            "cursor"_a, "max_events"_a = 1000,
            "([(kind, tenant, namespace, key, version, size, node id)], next cursor, resync). "
            "Kinds: "
            "publish, withdraw, remove (from every node), flush (the whole namespace), node (all "
            "of "
            "a node came or went). Cursor 0 starts; resync: list, then go on from the cursor.");
}

void bind_options(nb::class_<PyMaster>& master) {
    master.def(
        "__init__",
        [](PyMaster* self, std::vector<std::string> listen, const std::string& cluster_id,
           const nb::bytes& secret, uint32_t epoch, const std::vector<PrincipalTuple>& principals,
           bool rebuilding, bool journal_auto_ack, uint64_t trimmed_seq, uint64_t version_floor,
           size_t loops, uint32_t poll_us, const std::string& grpc_endpoint,
           const std::string& http_endpoint, std::vector<std::string> peers,
           const std::shared_ptr<Tls>& tls) {
            if (epoch == 0 || epoch > kMaxEpoch) {
                raise_status(Status(Code::kInvalidArgument, "epoch out of range"));
            }
            MasterCore::Options core;
            core.secret = secret_from(secret);
            core.epoch = epoch;
            core.rebuilding = rebuilding;
            core.journal_auto_ack = journal_auto_ack;
            core.trimmed_seq = trimmed_seq;
            core.version_floor = version_floor;
            MasterBlockPort::Options service;
            service.listen = std::move(listen);
            service.loops = loops;
            service.poll_us = poll_us;
            service.cluster_id = cluster_id;
            service.grpc_endpoint = grpc_endpoint;
            service.http_endpoint = http_endpoint;
            service.peers = std::move(peers);
            service.principals = principals_from(principals);
            service.tls = tls;
            new (self) PyMaster(core, std::move(service));
        },
        nb::kw_only(), "listen"_a, "cluster_id"_a, "secret"_a, "epoch"_a,
        "principals"_a = std::vector<PrincipalTuple>(), "rebuilding"_a = false,
        "journal_auto_ack"_a = false, "trimmed_seq"_a = 0, "version_floor"_a = 0, "loops"_a = 2,
        "poll_us"_a = 0, "grpc_endpoint"_a = "", "http_endpoint"_a = "",
        "peers"_a = std::vector<std::string>(), "tls"_a.none() = nb::none(),
        "principals: [(name, role 0 client 1 node 2 operator, tenants, secret, scopes)]; none: no "
        "authentication. epoch: drawn by policy, larger than every earlier one.");
}

nb::tuple take_deeds(PyMaster& self) {
    const auto [deeds, lost] = self.service().take_deeds();
    nb::list out;
    for (const Deed& deed : deeds) {
        nb::dict one;
        one["call"] = text_from(deed.call);
        one["principal"] = text_from(deed.principal);
        one["address"] = deed.address;
        one["client"] = text_from(deed.client_name);
        one["tenant"] = text_from(deed.tenant);
        one["namespace"] = text_from(deed.ns);
        one["keys"] = deed.keys;
        one["prefix"] = text_from(deed.prefix);
        one["status"] = static_cast<int>(deed.code);
        out.append(one);
    }
    return nb::make_tuple(out, lost);
}

void bind_peers(nb::class_<PyMaster>& master) {
    master
        .def(
            "sessions",
            [](PyMaster& self) {
                return sessions_from(unlocked([&] { return self.service().sessions(); }));
            },
            "Sessions of the block port.")
        .def(
            "end_sessions",
            [](PyMaster& self, const std::vector<uint64_t>& ids, const std::string& reason) {
                return unlocked([&] { return self.service().end_sessions(ids, reason); });
            },
            "ids"_a, "reason"_a, "End sessions; how many there were.")
        .def("take_deeds", &take_deeds,
             "What was done over the block protocol since the last call; how much is left out.")
        .def(
            "keep_deeds", [](PyMaster& self, bool wanted) { self.service().keep_deeds(wanted); },
            "wanted"_a, "Whether take_deeds() will be called; until then there are none.")
        .def(
            "take_refusals",
            [](PyMaster& self) {
                return refusals_from(unlocked([&] { return self.service().take_refusals(); }));
            },
            "Refused peers and ended connections since the last call.");
}

}  // namespace

void bind_master(nb::module_& module) {
    nb::class_<PyMaster> master(
        module, "MasterCore", "The native master: directory, claims, operations log, block port.");
    bind_options(master);
    master
        .def(
            "start",
            [](PyMaster& self) { return value_or_raise(unlocked([&] { return self.start(); })); },
            "Binds and serves; the bound endpoints in the order of `listen`.")
        .def("stop", &PyMaster::stop, nb::call_guard<GilReleased>())
        .def(
            "set_endpoints",
            [](PyMaster& self, const std::string& grpc, const std::string& http,
               const std::string& tls_grpc) { self.service().set_endpoints(grpc, http, tls_grpc); },
            "grpc_endpoint"_a, "http_endpoint"_a, "tls_grpc_endpoint"_a = "",
            "What the hello names, once they are bound; the last one to peers that use TLS.")
        .def(
            "set_principals",
            [](PyMaster& self, const std::vector<PrincipalTuple>& principals) {
                self.service().set_principals(principals_from(principals));
            },
            "principals"_a)
        .def(
            "set_principal_share",
            [](PyMaster& self, double share) { self.service().set_principal_share(share); },
            "share"_a, "Of sessions and waiting calls, that one principal may hold.")
        .def(
            "set_tenant_namespaces",
            [](PyMaster& self, size_t most) {
                self.core().directory().namespaces().set_tenant_limit(most);
            },
            "most"_a, "How many namespaces clients of one tenant may create.")
        .def(
            "finish_rebuild",
            [](PyMaster& self) {
                GilReleased release;
                self.core().finish_rebuild();
            },
            "Every known node has announced, or its time has passed: grant claims.")
        .def("rebuilding", [](PyMaster& self) { return self.core().rebuilding(); })
        .def("stats", &stats_dict);
    bind_links(master);
    bind_nodes(master);
    bind_copies(master);
    bind_journal(master);
    bind_heartbeats(master);
    bind_history(master);
    bind_master_changes(master);
    bind_reads(master);
    bind_peers(master);
}

}  // namespace kvstore
