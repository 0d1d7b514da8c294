// Core and block port of the master as the one object that Python holds, with blocking calls where
// the core answers through a callback.
#pragma once

#include <atomic>
#include <functional>
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

    NamespacePtr find(const std::string& tenant, const std::string& ns) {
        return core_.directory().namespaces().find(tenant, ns);
    }
    // Calls `done` once, from any thread, without locks held: kOk when all that nodes have answered
    // of these keys (none: of any key of the namespace) is recorded, kUnavailable when a node does
    // not say so.
    void when_recorded(const std::string& tenant, const std::string& ns,
                       const std::vector<std::string>& keys, std::function<void(Code)> done) {
        const NamespacePtr space = core_.has_unannounced() ? find(tenant, ns) : nullptr;
        size_t bytes = 0;
        for (const std::string& key : keys) {
            bytes += key.size();
        }
        const std::vector<LinkId> links =
            space == nullptr ? std::vector<LinkId>() : core_.unannounced(*space, views(keys));
        if (links.empty()) {
            return done(Code::kOk);
        }
        auto then = [this, done](bool known) {
            service_.post([done, known] { done(known ? Code::kOk : Code::kUnavailable); });
        };
        if (!core_.fence(links, bytes, std::move(then))) {
            done(Code::kOverloaded);
        }
    }

    // The changes answer through a callback, once, from any thread; an error instead of a status
    // comes at once, and nothing is called then.
    using CodesDone = std::function<void(Codes)>;
    Status remove(const std::string& tenant, const std::string& ns,
                  const std::vector<std::string>& keys, uint32_t timeout_ms,
                  const std::string& principal, CodesDone done) {
        const Result<Shares::Held> held = admit(keys, principal);
        const Result<NamespacePtr> space = core_.space_to_change(tenant, ns);
        if (!held.ok() || !space.ok()) {
            return held.ok() ? space.status() : held.status();
        }
        if (*space == nullptr) {
            done({std::vector<int32_t>(keys.size(), static_cast<int32_t>(Code::kNotFound)), {}});
        } else {
            core_.remove(**space, views(keys), timeout_ms, answering(*held, std::move(done)));
        }
        return {};
    }
    Status set_pin(const std::string& tenant, const std::string& ns,
                   const std::vector<std::string>& keys, Pin level, uint32_t timeout_ms,
                   CodesDone done) {
        const Result<Shares::Held> held = admit(keys, "");
        if (!held.ok()) {
            return held.status();
        }
        if (const NamespacePtr space = find(tenant, ns)) {
            const std::vector<Pin> levels(keys.size(), level);
            core_.set_pins(*space, views(keys), levels, timeout_ms,
                           answering(*held, std::move(done)));
        } else {
            const Code code = core_.rebuilding() ? Code::kRebuilding : Code::kNotFound;
            done({std::vector<int32_t>(keys.size(), static_cast<int32_t>(code)), {}});
        }
        return {};
    }
    using Flushed = std::tuple<int32_t, std::vector<std::string>, uint32_t>;
    Status flush(const std::string& tenant, const std::string& ns, uint32_t timeout_ms,
                 const std::string& principal, std::function<void(Flushed)> done) {
        const Result<Shares::Held> held = admit({}, principal);
        const Result<NamespacePtr> space = core_.directory().namespaces().open_for(tenant, ns);
        if (!held.ok() || !space.ok()) {
            return held.ok() ? space.status() : held.status();
        }
        core_.flush(**space, timeout_ms,
                    [done = std::move(done), held = *held](
                        Code code, std::vector<std::string> unreached, uint32_t epoch) {
                        done({static_cast<int32_t>(code), std::move(unreached), epoch});
                    });
        return {};
    }

    // Blocks until `start` has called what it is given.
    template <class T, class Start>
    static Result<T> wait_for(Start start) {
        auto promise = std::make_shared<std::promise<T>>();
        std::future<T> answer = promise->get_future();
        const Status started = start([promise](T value) { promise->set_value(std::move(value)); });
        if (!started.ok()) {
            return started;
        }
        return answer.get();
    }

  private:
    Result<Shares::Held> admit(const std::vector<std::string>& keys, const std::string& principal) {
        const Status checked = check_keys(keys);
        if (!checked.ok()) {
            return checked;
        }
        return core_.waiting_changes().take(principal);
    }
    static MasterCore::RemoveDone answering(Shares::Held held, CodesDone done) {
        return [held = std::move(held), done = std::move(done)](
                   std::vector<Code> codes, std::vector<std::string> unreached) {
            std::vector<int32_t> numbers;
            for (const Code code : codes) {
                numbers.push_back(static_cast<int32_t>(code));
            }
            done({std::move(numbers), std::move(unreached)});
        };
    }

    MasterCore core_;
    MasterBlockPort service_;
    std::atomic<bool> started_{false};
};

}  // namespace kvstore
