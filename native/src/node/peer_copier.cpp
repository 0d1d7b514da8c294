// Loading, sending and answering copy orders.
#include "node/peer_copier.h"

#include <algorithm>
#include <future>

#include "base/checksum.h"
#include "base/mutex.h"
#include "wire/messages.h"

namespace kvstore {

PeerCopier::PeerCopier(Options options, Domains& domains, NvmeTier* tier,
                       NodeNamespaces& namespaces, const ReplicaWishes& wishes,
                       NodeMetrics& metrics, Done done)
    : options_(std::move(options)),
      domains_(domains),
      tier_(tier),
      namespaces_(namespaces),
      wishes_(wishes),
      metrics_(metrics),
      done_(std::move(done)),
      hello_(options_.hello) {}

PeerCopier::~PeerCopier() { stop(); }

void PeerCopier::start() {
    thread_ = std::thread([this] { loop(); });
}

void PeerCopier::stop() {
    {
        const MutexLock lock(mutex_);
        stopping_ = true;
        queue_.clear();
        if (busy_ != nullptr) {
            busy_->shutdown();
        }
        changed_.notify_all();
    }
    if (thread_.joinable()) {
        thread_.join();
    }
}

void PeerCopier::push(CopyOrder job) {
    {
        const MutexLock lock(mutex_);
        if (!stopping_ && queue_.size() < kMaxQueued) {
            queue_.push_back(std::move(job));
            changed_.notify_one();
            return;
        }
    }
    done_(job, Code::kOverloaded);
}

void PeerCopier::drop_link(uint64_t link) {
    const MutexLock lock(mutex_);
    std::erase_if(queue_, [link](const CopyOrder& job) { return job.link == link; });
}

void PeerCopier::loop() {
    while (true) {
        std::vector<CopyOrder> jobs = next_batch();
        if (jobs.empty()) {
            return;
        }
        Outgoing outgoing = load(std::move(jobs));
        if (!outgoing.jobs.empty()) {
            send(std::move(outgoing));
        }
    }
}

// The oldest order and others for the same node and namespace; empty when stopping.
std::vector<CopyOrder> PeerCopier::next_batch() {
    MutexLock lock(mutex_);
    changed_.wait(mutex_, [&]() KV_REQUIRES(mutex_) { return stopping_ || !queue_.empty(); });
    std::vector<CopyOrder> jobs;
    if (stopping_) {
        return jobs;
    }
    jobs.push_back(std::move(queue_.front()));
    queue_.pop_front();
    while (!queue_.empty() && jobs.size() < kMaxBatch) {
        const CopyOrder& next = queue_.front();
        if (next.target_endpoint != jobs[0].target_endpoint ||
            next.target_node != jobs[0].target_node || next.ns != jobs[0].ns) {
            break;
        }
        jobs.push_back(std::move(queue_.front()));
        queue_.pop_front();
    }
    return jobs;
}

// Holds what is still here and proves it: a damaged object must not multiply. What would make the
// message too large goes back to the queue's front.
PeerCopier::Outgoing PeerCopier::load(std::vector<CopyOrder> jobs) {
    Outgoing out;
    const LinkNamespace& name = jobs[0].ns;
    const Result<NamespaceRef> ns = namespaces_.at(name.tenant, name.ns, name.epoch);
    while (!jobs.empty() && out.bytes < kMaxBatchBytes) {
        CopyOrder job = std::move(jobs.front());
        jobs.erase(jobs.begin());
        BlockStore::Found found;
        Identity identity;
        if (ns.ok()) {
            identity = {(*ns)->tenant_id, (*ns)->id,
                        key_hash(options_.hash_secret, (*ns)->id, job.key), job.version, 0};
            found = find(*ns, {job.key, identity.hash, job.version});
        }
        identity.length = found.length;
        const uint32_t crc = found.hold != nullptr ? crc32c(found.data, found.length) : 0;
        // The batch may hold all the memory there is: it goes first.
        if (found.hold == nullptr && !out.jobs.empty() && tier_ != nullptr &&
            tier_->has(identity.ns, identity.hash, job.version)) {
            jobs.insert(jobs.begin(), std::move(job));
            break;
        }
        const bool whole =
            found.hold != nullptr && seal_checksum(crc, identity) == found.sealed_crc;
        if (!whole || found.length > limits::kMaxPayloadBytes) {
            metrics_.copies_failed.add();
            done_(job, found.hold == nullptr ? Code::kNotFound
                       : !whole              ? Code::kChecksumMismatch
                                             : Code::kTooLarge);
            continue;
        }
        if (!out.jobs.empty() && out.bytes + found.length > limits::kMaxPayloadBytes) {
            jobs.insert(jobs.begin(), std::move(job));
            break;
        }
        out.bytes += found.length;
        out.crcs.push_back(crc);
        out.parents.push_back(domains_.store_of(*ns).parent_key(found.generation));
        out.found.push_back(std::move(found));
        out.jobs.push_back(std::move(job));
    }
    const MutexLock lock(mutex_);
    queue_.insert(queue_.begin(), std::make_move_iterator(jobs.begin()),
                  std::make_move_iterator(jobs.end()));
    return out;
}

// In DRAM, where it is brought to when only NVMe has it.
BlockStore::Found PeerCopier::find(const NamespaceRef& ns, const BlockStore::Key& key) {
    BlockStore& store = domains_.store_of(ns);
    BlockStore::Found found = store.find(ns, key, false);
    if (found.hold == nullptr && tier_ != nullptr) {
        auto promoted = std::make_shared<std::promise<void>>();
        std::future<void> done = promoted->get_future();
        tier_->promote(ns, {&key, 1}, [promoted] { promoted->set_value(); });
        done.wait();  // the tier ends every wait when it stops
        found = store.find(ns, key, false);
    }
    return found;
}

void PeerCopier::set_credentials(std::string principal, std::string token) {
    const MutexLock lock(mutex_);
    hello_.principal = std::move(principal);
    hello_.token = std::move(token);
}

Result<Channel*> PeerCopier::channel_to(const CopyOrder& job) {
    auto& channel = channels_[job.target_endpoint];
    if (channel != nullptr && channel->usable() && channel->welcome().node_id == job.target_node) {
        return channel.get();
    }
    channel = nullptr;
    // A peer that was started again has another port: nobody would ask for its old one.
    std::erase_if(channels_, [](const auto& item) {
        return item.second != nullptr && !item.second->usable();
    });
    const Result<Endpoint> endpoint = Endpoint::parse(job.target_endpoint);
    if (!endpoint.ok()) {
        return endpoint.status();
    }
    const HelloParams hello = [this] {
        const MutexLock lock(mutex_);
        return hello_;
    }();
    auto connected = Channel::connect(*endpoint, hello, Deadline::after_ms(options_.connect_ms));
    if (!connected.ok()) {
        return connected.status();
    }
    if ((*connected)->welcome().node_id != job.target_node) {
        return {Code::kUnavailable, job.target_endpoint + " is another node"};
    }
    channel = std::move(*connected);
    return channel.get();
}

void PeerCopier::send(Outgoing outgoing) {
    std::vector<Code> codes;
    const std::string endpoint = outgoing.jobs[0].target_endpoint;
    Result<Channel*> channel = channel_to(outgoing.jobs[0]);
    Status status = channel.status();
    if (status.ok()) {
        bool stopping = false;
        {
            const MutexLock lock(mutex_);
            stopping = stopping_;
            busy_ = stopping ? nullptr : *channel;
        }
        status = stopping ? Status(Code::kClosed) : exchange(**channel, outgoing, &codes);
        const MutexLock lock(mutex_);
        busy_ = nullptr;
    }
    if (!status.ok() || channels_.size() > kMaxChannels) {
        channels_.erase(endpoint);
    }
    codes.resize(outgoing.jobs.size(), status.ok() ? Code::kProtocolError : status.code());
    for (size_t i = 0; i < outgoing.jobs.size(); ++i) {
        // What the target has already is as good as copied.
        const bool there = codes[i] == Code::kOk || codes[i] == Code::kAlreadyExists;
        if (codes[i] == Code::kOk) {
            metrics_.copies_out.add();
            metrics_.copy_bytes_out.add(outgoing.found[i].length);
        } else if (!there) {
            metrics_.copies_failed.add();
        }
        done_(outgoing.jobs[i], there ? Code::kOk : codes[i]);
    }
}

Status PeerCopier::exchange(Channel& channel, const Outgoing& outgoing, std::vector<Code>* codes) {
    std::vector<std::string_view> keys;
    const std::vector<std::string_view> parents(outgoing.parents.begin(), outgoing.parents.end());
    std::vector<uint64_t> sizes;
    std::vector<uint8_t> pins;
    std::vector<uint8_t> replicas;
    std::vector<uint32_t> ttl_ms;
    std::vector<uint64_t> versions;
    std::vector<iovec> payload;
    for (size_t i = 0; i < outgoing.jobs.size(); ++i) {
        const BlockStore::Found& found = outgoing.found[i];
        keys.push_back(outgoing.jobs[i].key);
        sizes.push_back(found.length);
        pins.push_back(static_cast<uint8_t>(found.pin));
        replicas.push_back(wishes_.wanted(found.version));
        ttl_ms.push_back(static_cast<uint32_t>(std::min<uint64_t>(found.ttl_ms, UINT32_MAX)));
        versions.push_back(found.version);
        if (found.length != 0) {
            payload.push_back({const_cast<uint8_t*>(found.data), found.length});
        }
    }
    const LinkNamespace& ns = outgoing.jobs[0].ns;
    CopyPut message;
    message.tenant = ns.tenant;
    message.ns = ns.ns;
    message.epoch = ns.epoch;
    message.keys = keys;
    message.parents = parents;
    message.sizes = sizes;
    message.pins = pins;
    message.replicas = replicas;
    message.ttl_ms = ttl_ms;
    message.versions = versions;
    message.crcs = outgoing.crcs;
    message.timeout_ms = options_.copy_ms;
    StatusReply reply;
    const Status status =
        channel.exchange(message, &reply, Deadline::after_ms(options_.copy_ms), {payload});
    if (status.ok()) {
        for (const int32_t code : reply.status) {
            codes->push_back(static_cast<Code>(code));
        }
    }
    return status;
}

}  // namespace kvstore
