// One-sided reads over UCX's software transports. Without UCX on this machine there is nothing to
// test.
#include "ucx/ucx_worker.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace kvstore {
namespace {

using std::chrono::steady_clock;

UcxOptions options() { return {{"libucp.so.0"}, {{"TLS", "tcp,self"}, {"NET_DEVICES", "lo"}}}; }

#define REQUIRE_UCX()                                                               \
    const Result<std::shared_ptr<UcxContext>> opened = UcxContext::open(options()); \
    if (!opened.ok()) {                                                             \
        GTEST_SKIP() << opened.status().message();                                  \
    }                                                                               \
    const std::shared_ptr<UcxContext> context = *opened

std::unique_ptr<UcxWorker> worker_of(const std::shared_ptr<UcxContext>& context) {
    Result<std::unique_ptr<UcxWorker>> worker = UcxWorker::create(context);
    KV_ASSERT(worker.ok());
    return std::move(*worker);
}

// Makes progress in a thread of its own, asleep while there is nothing to do.
class Serving {
  public:
    explicit Serving(UcxWorker& worker) : worker_(worker), thread_([this] { run(); }) {}
    ~Serving() {
        stopping_ = true;
        worker_.wake();
        thread_.join();
    }

  private:
    void run() {
        while (!stopping_) {
            while (worker_.progress()) {
            }
            if (worker_.arm()) {
                pollfd entry{worker_.event_fd(), POLLIN, 0};
                poll(&entry, 1, -1);
            }
        }
    }
    UcxWorker& worker_;
    std::atomic<bool> stopping_{false};
    std::thread thread_;
};

bool finish(UcxWorker& worker, const UcxRead& read, int timeout_ms = 10'000) {
    const auto until = steady_clock::now() + std::chrono::milliseconds(timeout_ms);
    while (!read.done && steady_clock::now() < until) {
        if (!worker.progress() && worker.arm()) {
            pollfd entry{worker.event_fd(), POLLIN, 0};
            poll(&entry, 1, 10);
        }
    }
    return read.done;
}

std::vector<uint8_t> random_bytes(size_t count) {
    std::mt19937_64 random(count);
    std::vector<uint8_t> bytes(count);
    for (uint8_t& byte : bytes) {
        byte = static_cast<uint8_t>(random());
    }
    return bytes;
}

TEST(UcxWorker, ReadsWhatAPeerHasRegistered) {
    REQUIRE_UCX();
    std::vector<uint8_t> source = random_bytes(3 << 20);
    std::vector<uint8_t> into(source.size());
    const auto shared = context->register_memory(source.data(), source.size());
    ASSERT_TRUE(shared.ok()) << shared.status().message();
    const auto mine = context->register_memory(into.data(), into.size());
    ASSERT_TRUE(mine.ok());
    const auto server = worker_of(context);
    const auto client = worker_of(context);
    const Serving serving(*server);
    auto endpoint = client->connect(server->address());
    ASSERT_TRUE(endpoint.ok()) << endpoint.status().message();
    for (const size_t bytes : {size_t{1}, size_t{100}, size_t{65536}, source.size()}) {
        UcxRead read;
        const size_t offset = source.size() - bytes;
        client->read(**endpoint, (*shared)->key(),
                     reinterpret_cast<uintptr_t>(source.data()) + offset, into.data(), bytes,
                     **mine, &read);
        ASSERT_TRUE(finish(*client, read));
        EXPECT_EQ(read.status, ucp::kOk);
        EXPECT_EQ(memcmp(into.data(), source.data() + offset, bytes), 0) << bytes;
    }
    client->close(std::move(*endpoint));
}

TEST(UcxWorker, ClosingEndsWhatIsUnderWay) {
    REQUIRE_UCX();
    std::vector<uint8_t> source = random_bytes(1 << 20);
    std::vector<uint8_t> into(source.size());
    const auto shared = context->register_memory(source.data(), source.size());
    const auto mine = context->register_memory(into.data(), into.size());
    const auto server = worker_of(context);  // nobody calls its progress(): it hangs
    const auto client = worker_of(context);
    auto endpoint = client->connect(server->address());
    ASSERT_TRUE(endpoint.ok());
    std::vector<UcxRead> reads(8);
    for (UcxRead& read : reads) {
        client->read(**endpoint, (*shared)->key(), reinterpret_cast<uintptr_t>(source.data()),
                     into.data(), into.size(), **mine, &read);
    }
    EXPECT_FALSE(finish(*client, reads[0], 100));
    client->close(std::move(*endpoint));
    for (const UcxRead& read : reads) {
        EXPECT_TRUE(read.done);
        EXPECT_NE(read.status, ucp::kOk);
    }
}

TEST(UcxWorker, AProcessThatDiesEndsItsReads) {
    REQUIRE_UCX();
    int pipes[2];
    ASSERT_EQ(pipe(pipes), 0);
    const pid_t child = fork();
    if (child == 0) {  // a context of its own, and never progress: it hangs, then dies
        auto own = UcxContext::open(options());
        static std::vector<uint8_t> source(1 << 20);
        auto shared = (*own)->register_memory(source.data(), source.size());
        auto server = UcxWorker::create(*own);
        const std::string& key = (*shared)->key();
        const uint64_t base = reinterpret_cast<uintptr_t>(source.data());
        const uint32_t sizes[2] = {static_cast<uint32_t>((*server)->address().size()),
                                   static_cast<uint32_t>(key.size())};
        (void)!write(pipes[1], sizes, sizeof sizes);
        (void)!write(pipes[1], (*server)->address().data(), sizes[0]);
        (void)!write(pipes[1], key.data(), sizes[1]);
        (void)!write(pipes[1], &base, sizeof base);
        for (int i = 0; i < 100; ++i) {
            (*server)->progress();
            usleep(1000);
        }
        pause();
        _exit(0);
    }
    uint32_t sizes[2];
    ASSERT_EQ(read(pipes[0], sizes, sizeof sizes), static_cast<ssize_t>(sizeof sizes));
    std::string address(sizes[0], 0);
    std::string key(sizes[1], 0);
    uint64_t base = 0;
    ASSERT_EQ(read(pipes[0], address.data(), address.size()), static_cast<ssize_t>(sizes[0]));
    ASSERT_EQ(read(pipes[0], key.data(), key.size()), static_cast<ssize_t>(sizes[1]));
    ASSERT_EQ(read(pipes[0], &base, sizeof base), static_cast<ssize_t>(sizeof base));
    std::vector<uint8_t> into(1 << 20);
    const auto mine = context->register_memory(into.data(), into.size());
    const auto client = worker_of(context);
    auto endpoint = client->connect(address);
    ASSERT_TRUE(endpoint.ok());
    usleep(200'000);
    UcxRead one;
    client->read(**endpoint, key, base, into.data(), into.size(), **mine, &one);
    EXPECT_FALSE(finish(*client, one, 200));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    EXPECT_TRUE(finish(*client, one));
    EXPECT_NE(one.status, ucp::kOk);
    EXPECT_TRUE((*endpoint)->failed());
    client->close(std::move(*endpoint));
    close(pipes[0]);
    close(pipes[1]);
}

TEST(UcxContext, SaysWhatCannotBeLoaded) {
    const std::vector<std::string> none = {"/nonexistent/libucp.so"};
    const Result<const UcxLibrary*> library = UcxLibrary::load(none);
    if (library.ok()) {
        GTEST_SKIP() << "loaded already by another test";
    }
    EXPECT_NE(library.status().message().find("/nonexistent/libucp.so"), std::string::npos);
}

}  // namespace
}  // namespace kvstore
