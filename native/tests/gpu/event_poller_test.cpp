// Events that fire late, from many threads, or never.
#include "gpu/event_poller.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gpu/device_copies.h"
#include "gpu/pinned_buffers.h"
#include "tests/gpu/fake_cuda.h"
#include "tests/waiting.h"

namespace kvstore {
namespace {

using EventPollerTest = FakeCudaTest;
using testing::eventually;

std::unique_ptr<CudaEvent> event_on(const std::shared_ptr<CudaContext>& context,
                                    cuda::Stream stream) {
    const CudaContext::Scope scope(*context);
    return std::move(*CudaEvent::record(context, stream));
}

TEST_F(EventPollerTest, TellsOnceThatAnEventHasFired) {
    const auto context = fake_context();
    const auto poller = EventPoller::shared();
    EXPECT_EQ(poller, EventPoller::shared());
    std::atomic<int> told{0};
    fake_pause(1);
    poller->add(event_on(context, fake_stream_handle()), [&](const Status& status) {
        EXPECT_TRUE(status.ok());
        ++told;
    });
    const long asked = fake_count("calls:cuEventQuery");
    ASSERT_TRUE(eventually([&] { return fake_count("calls:cuEventQuery") > asked + 5; }));
    EXPECT_EQ(told, 0);
    fake_pause(0);
    ASSERT_TRUE(eventually([&] { return told == 1 && fake_count("events") == 0; }));
}

TEST_F(EventPollerTest, ManyThreadsAddEvents) {
    const auto context = fake_context();
    std::atomic<int> told{0};
    {
        const auto poller = EventPoller::shared();
        std::vector<std::thread> threads;
        for (int thread = 0; thread < 4; ++thread) {
            threads.emplace_back([&] {
                const cuda::Stream stream = fake_stream_handle();
                for (int i = 0; i < 100; ++i) {
                    poller->add(event_on(context, stream), [&](const Status&) { ++told; });
                }
            });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
    }  // the last owner waits for what is in progress
    EXPECT_EQ(told, 400);
}

TEST_F(EventPollerTest, AnEventOfADestroyedContextEndsWithAnError) {
    const auto context = fake_context();
    const auto poller = EventPoller::shared();
    std::atomic<bool> told{false};
    fake_pause(1);
    poller->add(event_on(context, fake_stream_handle()), [&](const Status& status) {
        EXPECT_EQ(status.code(), Code::kIoError);
        told = true;
    });
    fake_destroy_context(0);
    ASSERT_TRUE(eventually([&] { return told.load(); }));
}

TEST_F(EventPollerTest, AnEventThatDoesNotFireOutlivesThePoller) {
    const auto context = fake_context();
    auto poller = EventPoller::shared();
    std::atomic<bool> told{false};
    fake_pause(1);
    poller->add(event_on(context, fake_stream_handle()), [&](const Status&) { told = true; });
    poller.reset();  // after its patience
    EXPECT_FALSE(told);
    fake_pause(0);
    ASSERT_TRUE(eventually([&] { return told.load() && fake_count("events") == 0; }));
}

}  // namespace
}  // namespace kvstore
