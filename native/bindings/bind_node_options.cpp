// What a native node is created with: attributes for Python, and Python's catalog and progress
// report as the native side calls them.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "gil.h"
#include "node_options.h"
#include "server_values.h"

namespace nb = nanobind;

namespace kvstore {
namespace {

class PyCatalog final : public NvmeCatalog {
  public:
    explicit PyCatalog(nb::object catalog) : catalog_(std::move(catalog)) {}

    Status save(uint64_t seq, std::span<const uint8_t> manifest) override {
        return call([&] {
            catalog_.attr("save")(
                seq, nb::bytes(reinterpret_cast<const char*>(manifest.data()), manifest.size()));
        });
    }
    Result<std::vector<uint8_t>> load(uint64_t seq) override {
        std::vector<uint8_t> manifest;
        Status status = call([&] {
            const nb::object found = catalog_.attr("load")(seq);
            if (found.is_none()) {
                return;
            }
            const auto bytes = nb::cast<nb::bytes>(found);
            const auto* data = reinterpret_cast<const uint8_t*>(bytes.c_str());
            manifest.assign(data, data + bytes.size());
        });
        if (!status.ok()) {
            return status;
        }
        if (manifest.empty()) {
            return Code::kNotFound;
        }
        return manifest;
    }
    Status drop(uint64_t seq) override {
        return call([&] { catalog_.attr("drop")(seq); });
    }
    Result<std::vector<uint64_t>> list() override {
        std::vector<uint64_t> seqs;
        Status status =
            call([&] { seqs = nb::cast<std::vector<uint64_t>>(catalog_.attr("list")()); });
        if (!status.ok()) {
            return status;
        }
        return seqs;
    }

  private:
    template <class F>
    static Status call(F f) {
        const GilHeld acquire;
        try {
            f();
            return {};
        } catch (const nb::python_error& error) {
            return {Code::kIoError, std::string("the NVMe catalog: ") + error.what()};
        } catch (const nb::cast_error&) {
            return {Code::kIoError, "the NVMe catalog answers something else"};
        }
    }
    nb::object catalog_;
};

template <class T>
void bind_nvme(nb::class_<NodeTunables>& tunables, const char* name, T NvmeTierTunables::* member) {
    tunables.def_prop_rw(
        name, [member](const NodeTunables& self) { return self.nvme.*member; },
        [member](NodeTunables& self, T value) { self.nvme.*member = value; });
}

void bind_tunables(nb::module_& module) {
    nb::class_<NodeTunables> tunables(module, "NodeTunables",
                                      "What of a native node may change while it serves.");
    tunables.def(nb::init<>())
        .def_rw("client_cap_bytes", &NodeTunables::client_cap_bytes)
        .def_rw("reservation_ms", &NodeTunables::reservation_ms)
        .def_rw("shm_read", &NodeTunables::shm_read)
        .def_rw("shm_write", &NodeTunables::shm_write)
        .def_rw("pin_cap_bytes", &NodeTunables::pin_cap_bytes)
        .def_rw("principal_share", &NodeTunables::principal_share)
        .def_prop_rw(
            "hot_reads_per_s", [](const NodeTunables& self) { return self.hot_reads.reads_per_s; },
            [](NodeTunables& self, uint32_t rate) { self.hot_reads.reads_per_s = rate; })
        .def_prop_rw(
            "hot_replicas", [](const NodeTunables& self) { return self.hot_reads.replicas; },
            [](NodeTunables& self, uint8_t replicas) { self.hot_reads.replicas = replicas; })
        .def_prop_rw(
            "readmit_share",
            [](const NodeTunables& self) { return self.nvme.readmission.readmit_share; },
            [](NodeTunables& self, double share) { self.nvme.readmission.readmit_share = share; });
    bind_nvme(tunables, "demote_ahead", &NvmeTierTunables::demote_ahead);
    bind_nvme(tunables, "promote_reads", &NvmeTierTunables::promote_reads);
    bind_nvme(tunables, "prefetch_depth", &NvmeTierTunables::prefetch_depth);
    bind_nvme(tunables, "prefetch_bytes_per_s", &NvmeTierTunables::prefetch_bytes_per_s);
}

// How it works: processes, threads, the tier on NVMe.
void bind_workings(nb::class_<PyNodeOptions>& options) {
    options.def_rw("ucx", &PyNodeOptions::ucx, "UCX processes will be adopted.")
        .def_rw("tracing", &PyNodeOptions::tracing, "take_spans() will be called.")
        .def_rw("server_threads", &PyNodeOptions::server_threads)
        .def_rw("poll_us", &PyNodeOptions::poll_us)
        .def_rw("nvme_dirs", &PyNodeOptions::nvme_dirs, "One on each device. Empty: no tier.")
        .def_rw("nvme_bytes", &PyNodeOptions::nvme_bytes)
        .def_rw("discard_foreign_nvme", &PyNodeOptions::discard_foreign_nvme)
        .def_rw("nvme_keep_free", &PyNodeOptions::nvme_keep_free,
                "Share of nvme_dir's file system that new log files leave free.")
        .def_rw("allow_cold_restart", &PyNodeOptions::allow_cold_restart,
                "Start without room for a second index, and empty when there is none.")
        .def_rw("nvme_catalogs", &PyNodeOptions::catalogs,
                "Of each folder: save(seq, bytes), load(seq), drop(seq), list(). Empty: every "
                "start scans.")
        .def_rw("on_nvme_progress", &PyNodeOptions::on_progress,
                "Called with (files read, files, objects) while the folder is read.");
}

}  // namespace

std::vector<std::unique_ptr<NvmeCatalog>> catalogs_of(const PyNodeOptions& options) {
    std::vector<std::unique_ptr<NvmeCatalog>> catalogs;
    for (const nb::object& catalog : options.catalogs) {
        catalogs.push_back(std::make_unique<PyCatalog>(catalog));
    }
    return catalogs;
}

std::function<void(const NvmeProgress&)> progress_of(const PyNodeOptions& options) {
    if (options.on_progress.is_none()) {
        return {};
    }
    return [handle = options.on_progress.ptr()](const NvmeProgress& at) {
        const GilHeld acquire;
        try {
            nb::borrow(handle)(at.files_done, at.files, at.objects);
        } catch (nb::python_error& error) {
            error.discard_as_unraisable("on_nvme_progress");
        }
    };
}

void bind_node_options(nb::module_& module) {
    bind_tunables(module);
    nb::class_<DomainOptions>(module, "DomainOptions", "A part of a node's memory.")
        .def(nb::init<>())
        .def_rw("name", &DomainOptions::name, "Of its files; empty: the plain names.")
        .def_rw("tenants", &DomainOptions::tenants)
        .def_rw("others", &DomainOptions::others, "And all tenants that no domain names.")
        .def_rw("is_private", &DomainOptions::is_private, "Nobody may map it.")
        .def_rw("segment_bytes", &DomainOptions::segment_bytes, "0: all of the node's.");
    nb::class_<PyNodeOptions> options(module, "NodeOptions", "What a native node is created with.");
    options.def(nb::init<>())
        .def_prop_rw(
            "tunables", [](PyNodeOptions& self) -> NodeTunables& { return self; },
            [](PyNodeOptions& self, const NodeTunables& tunables) {
                static_cast<NodeTunables&>(self) = tunables;
            })
        .def_rw("cluster_id", &PyNodeOptions::cluster_id, "Expected of the master; empty: any.")
        .def_rw("node_id", &PyNodeOptions::node_id)
        .def_rw("node_epoch", &PyNodeOptions::node_epoch)
        .def_rw("session_id", &PyNodeOptions::session_id, "0: no link before set_session().")
        .def_prop_rw(
            "hash_secret", nullptr,
            [](PyNodeOptions& self, const nb::bytes& secret) {
                self.hash_secret = secret_from(secret);
            },
            "16 bytes; cannot be read back.")
        .def_rw("tcp_endpoint", &PyNodeOptions::tcp_endpoint, "Empty: none.")
        .def_rw("unix_endpoint", &PyNodeOptions::unix_endpoint, "Empty: none.")
        .def_prop_rw(
            "unix_mode", [](const PyNodeOptions& self) { return self.unix_access.mode; },
            [](PyNodeOptions& self, uint32_t mode) { self.unix_access.mode = mode; },
            "Permission bits of that path.")
        .def_prop_rw(
            "unix_gid", [](const PyNodeOptions& self) { return self.unix_access.gid; },
            [](PyNodeOptions& self, int64_t gid) { self.unix_access.gid = gid; },
            "Group of that path; -1: the process's, or that of a set-group-ID folder.")
        .def_rw("master_endpoints", &PyNodeOptions::master_endpoints)
        .def_rw("principal", &PyNodeOptions::principal)
        .def_rw("token", &PyNodeOptions::token, "The principal's secret; empty: none.")
        .def_prop_rw(
            "principals", nullptr,
            [](PyNodeOptions& self, const std::vector<PrincipalTuple>& principals) {
                self.principals = principals_from(principals);
            },
            "[(name, role, tenants, secret, scopes)] who may connect; cannot be read back. Empty: "
            "no "
            "authentication.")
        .def_prop_rw(
            "tls", nullptr,
            [](PyNodeOptions& self, const std::shared_ptr<Tls>& tls) { self.tls = tls; },
            nb::for_setter(nb::arg("tls").none()), "Of TCP; None: plain.")
        .def_rw("segment_bytes", &PyNodeOptions::segment_bytes)
        .def_rw("domains", &PyNodeOptions::domains,
                "In the order of SegmentFiles's; empty: one for everybody.")
        .def_rw("index_entries", &PyNodeOptions::index_entries, "0: from the segment's size.")
        .def_rw("lease_cap_bytes", &PyNodeOptions::lease_cap_bytes,
                "Leased bytes of one tenant. 0: half of the segment.");
    bind_workings(options);
}

}  // namespace kvstore
