// Speaks for the nodes and clients of a large cluster to one real master (bench/scale): real links,
// heartbeats, announcements, claims, withdrawals and lookups; no memory behind them. Commands come
// as lines on stdin, each answered with a line of JSON:
//
//   endpoint                where every node is reached, for the master's own call
//   prepared NODE EPOCH     the node's epoch, as the master gave it
//   session NODE ID         the node has registered: its link begins, or begins again
//   heartbeat NODE HEX      sends this HeartbeatRequest over the node's link
//   heard NODE              its answer: a code and the reply in HEX; nothing before it has come
//   links                   states of the links, and what was announced
//   clients COUNT           connects as many as are missing
//   load BATCHES_PER_S      lookups; 0: each client asks again once it is answered
//   unload                  ends them; the rate and the latencies
//   churn OBJECTS_PER_S     withdrawals of the oldest objects, claims and announcements of new ones
//   mute FIRST COUNT        these nodes say nothing more, and close nothing
//   cut FIRST COUNT         the same, and their connections are closed
//   named                   for how long after that lookups have named them
#include <sys/resource.h>

#include <iostream>
#include <sstream>
#include <string>

#include "net/event_server.h"
#include "node/connection_state.h"
#include "scale/lookups.h"
#include "scale/nodes.h"

namespace kvstore::scale {
namespace {

class Generator final : public ConnectionHandler {
  public:
    Generator(const std::string& master, const std::string& cluster_id, uint32_t nodes,
              uint64_t objects)
        : server_({.loops = 2, .cluster_id = cluster_id, .max_connections = size_t{1} << 20},
                  *this),
          nodes_(nodes, objects, master, server_),
          clients_(nodes_, master, server_) {}
    ~Generator() override {
        clients_.stop();
        nodes_.stop();
        server_.stop();
    }

    Status start() {
        Result<Endpoint> at = Endpoint::parse("tcp://127.0.0.1:0");
        Result<Endpoint> bound = server_.listen(*at);
        if (!bound.ok()) {
            return bound.status();
        }
        endpoint_ = bound->host + ":" + std::to_string(bound->port);
        return server_.start();
    }

    std::string run(const std::string& line) {
        std::istringstream words(line);
        std::string verb;
        double first = 0;
        double second = 0;
        words >> verb >> first;
        if (verb == "session") {
            uint64_t id = 0;  // more digits than a double has
            words >> id;
            nodes_.enter(static_cast<size_t>(first), id);
            return "{}";
        }
        if (verb == "heartbeat") {
            std::string request;
            words >> request;
            nodes_.at(static_cast<size_t>(first)).heartbeat(request);
            return "{}";
        }
        words >> second;
        return run(verb, first, second);
    }

    Result<HelloAnswer> on_hello(Connection&, const Hello& hello) override {
        HelloAnswer answer;
        answer.welcome.node_id = hello.node_id;
        answer.welcome.node_epoch = nodes_.epoch_of(hello.node_id);
        answer.session = std::make_shared<ConnectionState>();
        return answer;
    }
    void on_open(Connection& connection) override {
        if (Node* node = node_of(connection)) {
            node->link()->on_open(connection);
        }
    }
    void on_frame(Connection& connection, const FrameHeader& header, std::span<const uint8_t> body,
                  PayloadPlan*) override {
        if (!MasterLink::is_link(connection)) {
            return clients_.on_frame(connection, header, body);
        }
        Node* node = node_of(connection);
        if (node != nullptr && !node->muted()) {
            node->link()->on_frame(connection, header, body);
        }
    }
    void on_ping(Connection& connection) override {
        if (Node* node = node_of(connection)) {
            node->link()->on_ping(connection);
        }
    }
    void on_close(Connection& connection, Code, std::string_view reason) override {
        if (!MasterLink::is_link(connection)) {
            return clients_.on_close(connection);
        }
        Node* node = node_of(connection);
        if (node != nullptr && !node->muted()) {  // one without power does not come back
            node->link()->on_close(connection, reason);
        }
    }
    void on_tick(size_t loop) override {
        if (loop == 0) {
            nodes_.tick();
        }
    }

  private:
    Node* node_of(const Connection& connection) const {
        return MasterLink::is_link(connection) ? nodes_.of_session(connection.peer().session_id)
                                               : nullptr;
    }

    std::string run(const std::string& verb, double first, double second) {
        if (verb == "endpoint") {
            return R"({"endpoint":")" + endpoint_ + R"("})";
        }
        if (verb == "prepared") {
            nodes_.prepared(static_cast<size_t>(first), static_cast<uint32_t>(second));
        } else if (verb == "heard") {
            return nodes_.at(static_cast<size_t>(first)).heard();
        } else if (verb == "links") {
            return nodes_.states();
        } else if (verb == "clients") {
            const Status connected = clients_.connect(static_cast<size_t>(first));
            if (!connected.ok()) {
                return R"({"error":")" + connected.to_string() + R"("})";
            }
        } else if (verb == "load") {
            clients_.start(first);
        } else if (verb == "unload") {
            return clients_.stop();
        } else if (verb == "churn") {
            nodes_.set_churn(first);
        } else if (verb == "mute" || verb == "cut") {
            nodes_.silence(static_cast<size_t>(first), static_cast<size_t>(second), verb == "cut");
            clients_.note_dead();
        } else if (verb == "named") {
            return clients_.last_named();
        } else {
            return R"({"error":"no such command"})";
        }
        return "{}";
    }

    std::string endpoint_;
    EventServer server_;
    Nodes nodes_;
    Clients clients_;
};

void raise_descriptor_limit() {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int serve(const std::string& master, const std::string& cluster_id, uint32_t nodes,
          uint64_t objects) {
    raise_descriptor_limit();
    Generator generator(master, cluster_id, nodes, objects);
    const Status started = generator.start();
    if (!started.ok()) {
        std::cerr << "scale_generator: " << started.to_string() << std::endl;
        return 1;
    }
    for (std::string line; std::getline(std::cin, line);) {
        std::cout << generator.run(line) << std::endl;
    }
    return 0;
}

}  // namespace
}  // namespace kvstore::scale

int main(int count, char** arguments) {
    const uint64_t nodes = count == 5 ? std::strtoull(arguments[3], nullptr, 10) : 0;
    const uint64_t objects = count == 5 ? std::strtoull(arguments[4], nullptr, 10) : 0;
    if (nodes == 0 || nodes > kvstore::limits::kMaxNodes || objects == 0 || objects > UINT32_MAX) {
        std::cerr << "usage: scale_generator MASTER CLUSTER_ID NODES OBJECTS_OF_A_NODE"
                  << std::endl;
        return 2;
    }
    return kvstore::scale::serve(arguments[1], arguments[2], static_cast<uint32_t>(nodes), objects);
}
