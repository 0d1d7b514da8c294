// The client core as Python owns it, and what the files that bind it share.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "client/client_core.h"
#include "gil.h"

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

// nodes(), peers() and node_counters().
void bind_client_nodes(nanobind::class_<Client>& client);
// register_memory() and forget_memory().
void bind_client_ucx(nanobind::class_<Client>& client);
// Hands it to kvstore.client.paths, which logs it. Called without the GIL.
void report_unattached(const std::string& node_id, const std::string& unix_endpoint,
                       const NodePath& path);

}  // namespace kvstore
