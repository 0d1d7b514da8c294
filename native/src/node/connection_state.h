// What a node's event server keeps with each connection: a client's (or peer's) session, or the
// link.
#pragma once

#include <cstdint>

#include "node/domains.h"
#include "node/node_namespaces.h"
#include "store/block_store.h"

namespace kvstore {

struct ConnectionState {
    virtual ~ConnectionState() = default;
    virtual bool is_link() const { return false; }
    virtual bool is_ucx_process() const { return false; }
};

// Used by the connection's own loop thread only.
struct ClientConnection final : ConnectionState {
    Role role = Role::kClient;
    std::shared_ptr<NamespaceCell> ns;  // null for a peer node, which names it in every message
    Domain* domain = nullptr;           // of the tenant; null for a peer node
    uint64_t id = 0;                    // owner of reservations, leases and holds
    int offered_slot = -1;              // assigned at hello, not confirmed yet
    int slot = -1;                      // confirmed
    bool may_write = false;             // the mapped segment; else it puts by socket

    // Who writes blocks and holds them: the client's process, or the node on behalf of a socket.
    Owner process() const { return {id, slot}; }
    Owner by_socket() const { return {id, -1}; }
    // What a UCX process writes: the end of the session does not stop it.
    Owner by_ucx() const { return {id | kPulledSession, -1}; }
};

// The UCX process of a domain.
struct UcxConnection final : ConnectionState {
    explicit UcxConnection(Domain& served) : domain(served) {}
    bool is_ucx_process() const override { return true; }
    Domain& domain;
};

struct LinkConnection final : ConnectionState {
    explicit LinkConnection(uint64_t link_number) : link(link_number) {}
    bool is_link() const override { return true; }
    const uint64_t link;
};

}  // namespace kvstore
