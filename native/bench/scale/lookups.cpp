// Asking, checking and timing of lookups.
#include "scale/lookups.h"

#include <sys/prctl.h>

#include <chrono>
#include <sstream>

#include "base/clock.h"
#include "net/channel.h"
#include "scale/objects.h"

namespace kvstore::scale {
namespace {

constexpr uint32_t kConnectMs = 5'000;
constexpr auto kPace = std::chrono::microseconds(500);
constexpr uint64_t kTimerSlackNs = 1'000;

}  // namespace

Clients::Clients(Nodes& nodes, std::string master, EventServer& server)
    : nodes_(nodes), master_(std::move(master)), server_(server) {}

Clients::~Clients() { stop(); }

uint64_t Clients::now_ns() {
    return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() /
                                 std::chrono::nanoseconds(1));
}

Status Clients::connect(size_t count) {
    const Result<Endpoint> endpoint = Endpoint::parse(master_);
    if (!endpoint.ok()) {
        return endpoint.status();
    }
    std::erase_if(clients_, [](const auto& client) { return !client->ref->open(); });
    while (clients_.size() < count) {
        HelloParams hello;
        hello.tenant = kTenant;
        hello.ns = kNamespace;
        hello.client_name = "scale";
        Result<std::unique_ptr<Channel>> channel =
            Channel::connect(*endpoint, hello, Deadline::after_ms(kConnectMs));
        if (!channel.ok()) {
            return channel.status();
        }
        auto client = std::make_shared<Client>();
        client->random.seed(clients_.size() + 1);
        Result<std::shared_ptr<ConnectionRef>> ref =
            server_.adopt((*channel)->release(), Peer{.address = master_}, client);
        if (!ref.ok()) {
            return ref.status();
        }
        client->ref = *ref;
        clients_.push_back(std::move(client));
        ++open_;
    }
    return {};
}

void Clients::start(double batches_per_s) {
    latency_us_ = std::make_unique<Histogram>();
    batches_ = found_ = missing_ = down_ = wrong_ = failed_ = 0;
    dead_since_ns_ = named_ns_ = 0;
    started_ns_ = now_ns();
    paced_ = batches_per_s != 0;
    running_ = true;
    if (paced_) {
        {
            const MutexLock lock(mutex_);
            idle_.clear();
            for (const auto& client : clients_) {
                idle_.push_back(client.get());
            }
        }
        pacer_ = std::thread([this, batches_per_s] { pace(batches_per_s); });
        return;
    }
    for (const auto& client : clients_) {
        ask(*client, now_ns());
    }
}

std::string Clients::stop() {
    running_ = false;
    if (pacer_.joinable()) {
        pacer_.join();
    }
    const double seconds = static_cast<double>(now_ns() - started_ns_) / 1e9;
    // The answers that are on their way belong to no measurement.
    const uint64_t patience = now_ns() + 2'000'000'000;
    for (const auto& client : clients_) {
        while (client->due_ns != 0 && client->ref->open() && now_ns() < patience) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    }
    const Histogram::Snapshot latency = latency_us_->snapshot();
    std::ostringstream out;
    out << std::fixed << R"({"seconds":)" << seconds << R"(,"batches":)" << batches_
        << R"(,"keys_per_s":)" << static_cast<double>(batches_ * kBatch) / seconds
        << R"(,"p50_us":)" << latency.quantile(0.5) << R"(,"p99_us":)" << latency.quantile(0.99)
        << R"(,"p999_us":)" << latency.quantile(0.999) << R"(,"found":)" << found_
        << R"(,"missing":)" << missing_ << R"(,"down":)" << down_ << R"(,"wrong":)" << wrong_
        << R"(,"failed":)" << failed_ << "}";
    return out.str();
}

// Latency counts from when a request was due, not from when a client was free to send it.
void Clients::pace(double batches_per_s) {
    prctl(PR_SET_TIMERSLACK, kTimerSlackNs);
    const double step_ns = 1e9 / batches_per_s;
    double due = static_cast<double>(now_ns());
    while (running_) {
        const auto now = static_cast<double>(now_ns());
        for (; due <= now; due += step_ns) {
            Client* client = nullptr;
            {
                const MutexLock lock(mutex_);
                if (idle_.empty()) {
                    break;
                }
                client = idle_.back();
                idle_.pop_back();
            }
            ask(*client, static_cast<uint64_t>(due));
        }
        std::this_thread::sleep_for(kPace);
    }
}

void Clients::ask(Client& client, uint64_t due_ns) {
    std::vector<Key> keys;
    std::vector<std::string_view> views;
    keys.reserve(kBatch);
    while (keys.size() < kBatch) {
        const auto node = static_cast<uint32_t>(client.random() % nodes_.size());
        const std::optional<uint64_t> number = nodes_.at(node).pick(client.random());
        if (number) {
            client.asked[keys.size()] = {static_cast<uint16_t>(node),
                                         nodes_.at(node).version_of(*number)};
            views.push_back(keys.emplace_back(node, *number).view());
        }
    }
    Lookup request;
    request.keys = views;
    request.timeout_ms = kConnectMs;
    client.due_ns = due_ns;
    client.ref->send_message(request, 1);
}

void Clients::on_frame(Connection& connection, const FrameHeader& header,
                       std::span<const uint8_t> body) {
    auto* const session = dynamic_cast<Client*>(connection.session_as<ConnectionState>());
    if (session == nullptr) {
        return connection.fail(Code::kUnsupported, "there is no node behind this endpoint");
    }
    Client& client = *session;
    const uint64_t now = now_ns();
    LookupReply reply;
    if (header.message() != LookupReply::kType) {
        ++failed_;
    } else if (connection.decode(body, &reply)) {
        count(client, reply, now);
    }
    finished(client, now);
}

void Clients::count(const Client& client, const LookupReply& reply, uint64_t now) {
    uint64_t found = 0;
    uint64_t missing = 0;
    uint64_t down = 0;
    uint64_t wrong = 0;
    for (size_t row = 0; row < reply.status.size(); ++row) {
        const Asked& asked = client.asked[row % kBatch];
        const bool dead = nodes_.at(asked.node).muted();
        if (reply.status[row] != static_cast<int32_t>(Code::kOk)) {
            ++(dead ? down : missing);
            continue;
        }
        ++found;
        wrong += reply.versions[row] == asked.version ? 0 : 1;
        if (dead) {
            named_ns_ = now;
        }
    }
    ++batches_;
    found_ += found;
    missing_ += missing;
    down_ += down;
    wrong_ += wrong;
    latency_us_->record((now - client.due_ns) / 1000);
}

void Clients::finished(Client& client, uint64_t now) {
    client.due_ns = 0;
    if (!running_) {
        return;
    }
    if (!paced_) {
        return ask(client, now);
    }
    const MutexLock lock(mutex_);
    idle_.push_back(&client);
}

void Clients::on_close(Connection& connection) {
    if (dynamic_cast<Client*>(connection.session_as<ConnectionState>()) != nullptr) {
        --open_;
    }
}

std::string Clients::last_named() const {
    const uint64_t since = dead_since_ns_;
    const uint64_t named = named_ns_;
    std::ostringstream out;
    out << R"({"named_for_ms":)" << (named > since && since != 0 ? (named - since) / 1'000'000 : 0)
        << R"(,"quiet_for_ms":)" << (now_ns() - std::max(since, named)) / 1'000'000 << "}";
    return out.str();
}

}  // namespace kvstore::scale
