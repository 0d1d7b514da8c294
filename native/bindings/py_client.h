// The client core as Python owns it, and what the files that bind it share.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <vector>

#include "client/client_core.h"
#include "gil.h"
#include "py_arguments.h"

namespace kvstore {

// Owns the core. A forked child leaks it: sockets, locks and threads are its parent's.
class Client {
  public:
    explicit Client(std::unique_ptr<ClientCore> core) : core_(std::move(core)) {}
    ~Client() {
        if (core_->in_forked_child()) {
            (void)core_.release();
            return;
        }
        const GilReleased unlocked;
        core_.reset();
    }
    ClientCore& operator*() const { return *core_; }
    ClientCore* operator->() const { return core_.get(); }

  private:
    std::unique_ptr<ClientCore> core_;
};

// How a put is to be kept, as plain numbers; kvstore/client has checked and named them.
struct PutHow {
    uint8_t replicas = 1;
    uint8_t pin = 0;
    uint32_t ttl_ms = 0;
    nanobind::object parent;
    bool upsert = false;
};
// The items of a put; they view the arguments.
std::vector<PutItem> put_items(const KeyArguments& keys, const std::vector<Pieces>& pieces,
                               const PutHow& how);
PutOptions put_options(const PutHow& how);

// The calls for memory of a GPU.
void bind_device(nanobind::module_& module, nanobind::class_<Client>& client);
// nodes(), peers() and node_counters().
void bind_client_nodes(nanobind::class_<Client>& client);
// register_memory() and forget_memory().
void bind_client_ucx(nanobind::class_<Client>& client);
// Hands it to kvstore.client.paths, which logs it. Called without the GIL.
void report_unattached(const std::string& node_id, const std::string& unix_endpoint,
                       const NodePath& path);

}  // namespace kvstore
