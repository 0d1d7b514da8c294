// Buffers of a limited total, and copies through them and registered memory.
#include "gpu/pinned_buffers.h"

#include <cstring>
#include <thread>
#include <vector>

#include "gpu/device_copies.h"
#include "gpu/host_registration.h"
#include "tests/gpu/fake_cuda.h"

namespace kvstore {
namespace {

constexpr uint64_t kMega = 1u << 20;

using PinnedBuffersTest = FakeCudaTest;

TEST_F(PinnedBuffersTest, GivesBuffersOutAgain) {
    const auto pool = std::make_shared<PinnedBuffers>(fake_context());
    const uint8_t* first = nullptr;
    for (int turn = 0; turn < 3; ++turn) {
        const auto buffer = std::move(*pool->take(3 * kMega, Deadline::never()));
        std::memset(buffer->data(), turn, 3 * kMega);
        first = first == nullptr ? buffer->data() : first;
        EXPECT_EQ(buffer->data(), first);
    }
    EXPECT_EQ(fake_count("calls:cuMemHostRegister"), 1);
}

TEST_F(PinnedBuffersTest, WaitsForTheLimit) {
    const auto pool = std::make_shared<PinnedBuffers>(fake_context());
    auto whole = std::move(*pool->take(PinnedBuffers::kMaxBytes, Deadline::never()));
    EXPECT_EQ(pool->take(1, Deadline::after_ms(30)).code(), Code::kDeadlineExceeded);
    std::thread other([&] { EXPECT_TRUE(pool->take(kMega, Deadline::after_ms(20'000)).ok()); });
    whole.reset();
    other.join();
    EXPECT_LE(fake_count("most_pinned_bytes"), static_cast<long>(PinnedBuffers::kMaxBytes));
}

TEST_F(PinnedBuffersTest, GivesALargerBufferToWhoeverIsAlone) {
    const auto pool = std::make_shared<PinnedBuffers>(fake_context());
    const auto large = std::move(*pool->take(PinnedBuffers::kMaxBytes + 1, Deadline::never()));
    large->data()[PinnedBuffers::kMaxBytes] = 1;
    EXPECT_EQ(pool->take(1, Deadline::after_ms(30)).code(), Code::kDeadlineExceeded);
}

TEST_F(PinnedBuffersTest, AFailureOfTheDriverIsNoWait) {
    const auto pool = std::make_shared<PinnedBuffers>(fake_context());
    fake_fail("cuMemHostRegister", 0, cuda::kOutOfMemory);
    EXPECT_EQ(pool->take(1, Deadline::never()).code(), Code::kNoSpace);
    EXPECT_TRUE(pool->take(1, Deadline::never()).ok());
}

TEST_F(PinnedBuffersTest, CopiesGoBothWays) {
    const auto context = fake_context();
    const auto pool = std::make_shared<PinnedBuffers>(context);
    const auto host = std::move(*pool->take(kMega, Deadline::never()));
    const uint64_t device = fake_alloc(kMega, 0);
    for (uint64_t i = 0; i < kMega; ++i) {
        host->data()[i] = static_cast<uint8_t>(i * 7);
    }
    const std::vector<uint8_t> wanted(host->data(), host->data() + kMega);
    for (const cuda::Stream stream : {cuda::Stream(nullptr), fake_stream_handle()}) {
        DeviceCopies there(context, DeviceCopies::Direction::kToDevice);
        DeviceCopies back(context, DeviceCopies::Direction::kToHost);
        for (uint64_t at = 0; at < kMega; at += kMega / 8) {
            there.add(device + at, host->data() + at, kMega / 8);
            back.add(device + at, host->data() + at, kMega / 8);
        }
        const CudaContext::Scope scope(*context);
        ASSERT_TRUE(there.queue(stream).ok());
        ASSERT_TRUE((*CudaEvent::record(context, stream))->wait(Deadline::never()).ok());
        std::memset(host->data(), 0, kMega);
        ASSERT_TRUE(back.queue(stream).ok());
        ASSERT_TRUE((*CudaEvent::record(context, stream))->wait(Deadline::never()).ok());
        EXPECT_EQ(std::memcmp(host->data(), wanted.data(), kMega), 0);
    }
    fake_free(device);
}

TEST_F(PinnedBuffersTest, RegistrationsAreMadeOnceAndEndWithTheirOwner) {
    const auto context = fake_context();
    std::vector<uint8_t> memory(3 * HostRegistration::kSliceBytes);
    {
        HostRegistration registration(context, memory, false);
        EXPECT_EQ(fake_count("calls:cuMemHostRegister"), 0);
        EXPECT_TRUE(registration.ensure(5, 100));
        EXPECT_TRUE(registration.ensure(HostRegistration::kSliceBytes - 1, 2));
        EXPECT_TRUE(registration.ensure(0, HostRegistration::kSliceBytes));
        EXPECT_TRUE(registration.ensure(memory.size(), 0));
        EXPECT_FALSE(registration.ensure(memory.size(), 1));
        EXPECT_FALSE(registration.ensure(1, UINT64_MAX));
        EXPECT_EQ(fake_count("calls:cuMemHostRegister"), 2);
        fake_fail("cuMemHostRegister", 0, cuda::kOutOfMemory);
        EXPECT_FALSE(registration.ensure(0, memory.size()));
        EXPECT_FALSE(registration.ensure(memory.size() - 1, 1));
        EXPECT_EQ(fake_count("calls:cuMemHostRegister"), 3);
        EXPECT_EQ(fake_count("pinned"), 2);
    }
    EXPECT_EQ(fake_count("pinned"), 0);
}

}  // namespace
}  // namespace kvstore
