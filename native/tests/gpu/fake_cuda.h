// Control of the fake driver (tests/gpu/fake_driver.cpp), which these tests load as libcuda.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "gpu/cuda_driver.h"

extern "C" {
uint64_t fake_alloc(size_t size, int device);
void fake_free(uint64_t address);
void fake_read(uint64_t address, void* to, size_t size);
void fake_write(uint64_t address, const void* from, size_t size);
uint64_t fake_stream(int device);
void fake_pause(int on);
void fake_destroy_context(int device);
void fake_set_read_only(int on);
void fake_fail(const char* name, int after, int code);
long fake_count(const char* name);
const char* fake_last_violation();
void fake_reset();
}

namespace kvstore {

inline std::shared_ptr<CudaContext> fake_context(int device = 0) {
    setenv("KVSTORE_CUDA_LIB", FAKE_CUDA_LIBRARY, 1);
    Result<std::shared_ptr<CudaContext>> context = CudaContext::retain(device);
    EXPECT_TRUE(context.ok()) << context.status().to_string();
    return *context;
}

inline cuda::Stream fake_stream_handle(int device = 0) {
    return reinterpret_cast<cuda::Stream>(fake_stream(device));
}

// The driver as new at the beginning, and neither misused nor leaked from at the end.
class FakeCudaTest : public ::testing::Test {
  protected:
    void SetUp() override { fake_reset(); }
    void TearDown() override {
        fake_pause(0);
        EXPECT_EQ(fake_count("violations"), 0) << fake_last_violation();
        for (const char* what : {"events", "registered", "pinned", "contexts", "pending"}) {
            EXPECT_EQ(fake_count(what), 0) << what;
        }
    }
};

}  // namespace kvstore
