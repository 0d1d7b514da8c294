// Pages are mapped ahead of their use, but none is brought into being by it.
#include "client/page_mapper.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "base/file.h"

namespace kvstore {
namespace {

constexpr uint64_t kGranule = 256u << 10;
constexpr uint64_t kBytes = 8 * kGranule + 4096;

// How many bytes of the file are in memory.
uint64_t resident_bytes(std::span<uint8_t> memory) {
    std::array<unsigned char, kBytes / 4096> pages{};
    EXPECT_EQ(mincore(memory.data(), memory.size(), pages.data()), 0);
    uint64_t bytes = 0;
    for (const unsigned char page : pages) {
        bytes += (page & 1) != 0 ? 4096 : 0;
    }
    return bytes;
}

TEST(PageMapper, FollowsWhatIsInMemoryAndAllocatesNothing) {
    Result<Fd> file = create_region("", "pages");
    ASSERT_TRUE(file.ok());
    ASSERT_EQ(ftruncate(file->get(), kBytes), 0);
    Result<Mapping> writable = Mapping::map(file->get(), kBytes, true);
    Result<Mapping> read_only = Mapping::map(file->get(), kBytes, false);
    ASSERT_TRUE(writable.ok() && read_only.ok());
    const std::span memory(writable->data(), kBytes);
    std::memset(memory.data(), 1, 3 * kGranule);
    PageMapper mapper(memory, {read_only->data(), kBytes});
    const auto wait_for = [&](uint64_t bytes) {
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
        while (mapper.mapped_ahead() < bytes && std::chrono::steady_clock::now() < deadline) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        return mapper.mapped_ahead();
    };
    EXPECT_EQ(wait_for(3 * kGranule), 3 * kGranule);
    EXPECT_EQ(resident_bytes(memory), 3 * kGranule);
    std::memset(memory.data(), 2, kBytes);  // the owner goes on filling
    mapper.map(kGranule, kBytes - kGranule);
    EXPECT_EQ(wait_for(kBytes), kBytes);
    EXPECT_EQ(memory[kBytes - 1], 2);
}

// "policy nice" of this process's thread of that name; empty if there is none.
std::string scheduling_of(const std::string& name) {
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
        std::ifstream comm(task.path() / "comm");
        std::string line;
        if (std::getline(comm, line) && line == name) {
            const pid_t id = std::stoi(task.path().filename().string());
            return std::to_string(sched_getscheduler(id)) + " " +
                   std::to_string(getpriority(PRIO_PROCESS, static_cast<id_t>(id)));
        }
    }
    return "";
}

// Else a busy machine keeps it from giving back the lock of the process's memory map.
TEST(PageMapper, ItsThreadHasThePriorityOfTheOthers) {
    Result<Fd> file = create_region("", "pages");
    ASSERT_TRUE(file.ok());
    ASSERT_EQ(ftruncate(file->get(), kBytes), 0);
    Result<Mapping> read_only = Mapping::map(file->get(), kBytes, false);
    ASSERT_TRUE(read_only.ok());
    const PageMapper mapper({}, {read_only->data(), kBytes});
    std::string seen;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (seen.empty() && std::chrono::steady_clock::now() < deadline) {
        seen = scheduling_of("kv-map-ahead");
    }
    EXPECT_EQ(seen, std::to_string(sched_getscheduler(0)) + " " +
                        std::to_string(getpriority(PRIO_PROCESS, 0)));
}

}  // namespace
}  // namespace kvstore
