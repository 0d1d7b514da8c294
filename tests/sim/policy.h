// The Python control plane inside the simulation (policy_bridge.py): an embedded interpreter,
// called on the scheduler's stack with the simulated clock.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "master/master_core.h"
#include "runtime.h"

namespace kvstore::sim {

// What the registry asks of the native side.
struct PolicyCall {
    std::string name;
    std::string node_id;
    std::string tcp;
    std::string host;
    std::vector<uint64_t> numbers;
    double rate = 0;
};
using PolicyCalls = std::vector<PolicyCall>;

// What a node does next (kvstore/node/session.py).
enum class NodeStep : int { kContinue = 0, kRegister = 1, kFindMaster = 2, kGiveUp = 3 };

namespace policy {

// Once, before any run; ends the process with a sentence when Python cannot be started.
void start_interpreter();

bool rebuilding();
PolicyCalls start_master();
struct Registered {
    Code code = Code::kUnavailable;
    uint64_t session_id = 0;
    uint32_t node_epoch = 0;
    PolicyCalls calls;
};
Registered register_node(const std::string& node_id, uint64_t incarnation, uint32_t node_epoch,
                         uint64_t session_id, const std::string& tcp, uint64_t capacity);
struct Beaten {
    Code code = Code::kUnavailable;
    NodeState state = NodeState::kJoining;
    PolicyCalls calls;
};
Beaten heartbeat(const std::string& node_id, uint64_t session_id, uint64_t capacity, uint64_t used,
                 const std::string& tcp, bool refuses_writes);
PolicyCalls unregister(const std::string& node_id, uint64_t session_id);
PolicyCalls drain(const std::string& node_id, bool cancel);
PolicyCalls tick(const std::vector<MasterCore::NodeView>& seen);
NodeStep after_register(Code code, bool served_before);
NodeStep after_heartbeat(Code code);
uint64_t backoff_ms(int failures, double jitter);

// Carries the calls out, in their order.
void carry_out(MasterCore& core, const PolicyCalls& calls);

}  // namespace policy
}  // namespace kvstore::sim
