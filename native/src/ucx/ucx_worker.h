// A UCX worker: connections to peers, and one-sided reads of their memory.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <string_view>

#include "ucx/ucx_context.h"

namespace kvstore {

class UcxEndpoint;

// A read in progress. It stays where it is until it is done.
struct UcxRead {
    bool done = false;
    ucp::UcsStatus status = ucp::kOk;
    UcxEndpoint* endpoint = nullptr;  // while it is in progress
};

// One peer's worker, as another one reaches it.
class UcxEndpoint {
  public:
    // Whether the connection has broken; then it is closed and another one made.
    bool failed() const { return failed_; }

  private:
    friend class UcxWorker;
    static void on_error(void* self, ucp::Endpoint* endpoint, ucp::UcsStatus status);

    const UcxLibrary* library_ = nullptr;
    ucp::Endpoint* endpoint_ = nullptr;
    std::list<std::pair<std::string, ucp::Key*>> keys_;  // unpacked, last used first
    bool failed_ = false;
    size_t reads_ = 0;  // in progress
};

// Used by one thread at a time, but for wake(). Nothing moves unless progress() is called.
class UcxWorker {
  public:
    static Result<std::unique_ptr<UcxWorker>> create(std::shared_ptr<UcxContext> context);
    ~UcxWorker();

    // By which peers connect to it.
    const std::string& address() const { return address_; }
    // To the worker with this address. Every endpoint is given to close() before the worker goes.
    Result<std::unique_ptr<UcxEndpoint>> connect(std::string_view address);
    // Ends what is in progress, with an error where it was not done: when it returns, nothing
    // writes into the memory that was read into.
    void close(std::unique_ptr<UcxEndpoint> endpoint);

    // Reads `bytes` at `address` of the peer, in memory that `key` gives access to, into `into`,
    // which lies in `memory`. Done at once, or in a later progress().
    void read(UcxEndpoint& endpoint, std::string_view key, uint64_t address, void* into,
              size_t bytes, const UcxMemory& memory, UcxRead* read);

    bool progress();  // whether anything moved
    // As long as anything moves, but not forever: a broken device may report without end.
    void progress_all();
    // True: event_fd() becomes readable when there is something for progress() to do. False: there
    // is already.
    bool arm();
    int event_fd() const { return event_fd_; }
    void wake() const;  // makes event_fd() readable; from any thread

  private:
    explicit UcxWorker(std::shared_ptr<UcxContext> context) : context_(std::move(context)) {}
    Result<ucp::Key*> unpack(UcxEndpoint& endpoint, std::string_view key);
    static void on_read(void* request, ucp::UcsStatus status, void* read);

    const std::shared_ptr<UcxContext> context_;
    ucp::Worker* worker_ = nullptr;
    int event_fd_ = -1;
    std::string address_;
};

}  // namespace kvstore
