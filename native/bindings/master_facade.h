// Core and block port of the master as the one object that Python holds, with blocking calls where
// the core answers through a callback.
#pragma once

#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "master/master_block_port.h"

namespace kvstore {

using Codes = std::pair<std::vector<int32_t>, std::vector<std::string>>;

inline std::vector<std::string_view> views(const std::vector<std::string>& keys) {
    return {keys.begin(), keys.end()};
}

// Keys of the wire: what a block-port client may name, no more.
inline Status check_keys(const std::vector<std::string>& keys) {
    if (keys.size() > limits::kMaxBatchKeys) {
        return Status(Code::kTooLarge, "more than 4096 keys");
    }
    for (const std::string& key : keys) {
        if (!is_valid_key(key)) {
            return Status(Code::kInvalidArgument, "key is empty, too long or not UTF-8");
        }
    }
    return {};
}

// Starts and stops core and service in the order in which they need each other.
class PyMaster {
  public:
    PyMaster(const MasterCore::Options& core, MasterBlockPort::Options service)
        : core_(core), service_(core_, std::move(service)) {}
    ~PyMaster() { stop(); }

    Result<std::vector<std::string>> start() {
        started_ = true;
        return service_.start();
    }
    bool started() const { return started_; }
    void stop() {
        core_.stop();
        service_.stop();
    }
    MasterCore& core() { return core_; }
    MasterBlockPort& service() { return service_; }

    Result<Namespace*> open(const std::string& tenant, const std::string& ns) {
        return core_.directory().namespaces().open(tenant, ns);
    }
    const Namespace* find(const std::string& tenant, const std::string& ns) {
        return core_.directory().namespaces().find(tenant, ns);
    }

    Result<Codes> remove(const std::string& tenant, const std::string& ns,
                         const std::vector<std::string>& keys, uint32_t timeout_ms) {
        return wait_for(tenant, ns, keys, [&](Namespace& space, MasterCore::RemoveDone done) {
            core_.remove(space, views(keys), timeout_ms, std::move(done));
        });
    }
    Result<Codes> set_pin(const std::string& tenant, const std::string& ns,
                          const std::vector<std::string>& keys, Pin level, uint32_t timeout_ms) {
        const std::vector<Pin> levels(keys.size(), level);
        return wait_for(tenant, ns, keys, [&](Namespace& space, MasterCore::RemoveDone done) {
            core_.set_pins(space, views(keys), levels, timeout_ms, std::move(done));
        });
    }
    using Flushed = std::tuple<int32_t, std::vector<std::string>, uint32_t>;
    Result<Flushed> flush(const std::string& tenant, const std::string& ns, uint32_t timeout_ms) {
        Result<Namespace*> space = open(tenant, ns);
        if (!space.ok()) {
            return space.status();
        }
        auto promise = std::make_shared<std::promise<Flushed>>();
        std::future<Flushed> answer = promise->get_future();
        core_.flush(
            **space, timeout_ms,
            [promise](Code code, std::vector<std::string> unreached, uint32_t epoch) {
                promise->set_value({static_cast<int32_t>(code), std::move(unreached), epoch});
            });
        return answer.get();
    }

  private:
    template <class Start>
    Result<Codes> wait_for(const std::string& tenant, const std::string& ns,
                           const std::vector<std::string>& keys, Start start) {
        const Status checked = check_keys(keys);
        if (!checked.ok()) {
            return checked;
        }
        Result<Namespace*> space = open(tenant, ns);
        if (!space.ok()) {
            return space.status();
        }
        auto promise = std::make_shared<std::promise<Codes>>();
        std::future<Codes> answer = promise->get_future();
        start(**space, [promise](std::vector<Code> codes, std::vector<std::string> unreached) {
            std::vector<int32_t> numbers;
            for (const Code code : codes) {
                numbers.push_back(static_cast<int32_t>(code));
            }
            promise->set_value({std::move(numbers), std::move(unreached)});
        });
        return answer.get();
    }

    MasterCore core_;
    MasterBlockPort service_;
    std::atomic<bool> started_{false};
};

}  // namespace kvstore
