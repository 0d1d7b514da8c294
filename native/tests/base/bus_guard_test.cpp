// Mapped files that lose their pages, and the handlers of the program around us.
#include "base/bus_guard.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"

namespace kvstore {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kPages = 16;
constexpr int kOwnHandler = 7;  // exit code

Fd file_of(uint64_t pages) {
    Fd fd = std::move(*create_region("", "bus_guard_test"));
    EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(pages * kPage)), 0);
    return fd;
}

// A mapping whose pages are all ones, and its file.
struct Filled {
    Fd fd = file_of(kPages);
    Mapping mapping = std::move(*Mapping::map(fd.get(), kPages* kPage, true));
    Filled() { std::fill_n(mapping.data(), mapping.size(), uint8_t{1}); }
    void cut(uint64_t pages) const {
        EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(pages * kPage)), 0);
    }
    uint8_t at(uint64_t page) const {
        return *const_cast<volatile uint8_t*>(mapping.data() + page * kPage);
    }
};

void touch_torn_memory_of_somebody_else() {
    const Fd fd = file_of(1);
    void* data = mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd.get(), 0);
    EXPECT_EQ(ftruncate(fd.get(), 0), 0);
    (void)*static_cast<volatile uint8_t*>(data);
}

bool survives_a_cut() {
    const Filled filled;
    filled.cut(1);
    return filled.at(0) == 1 && filled.at(3) == 0 && filled.mapping.torn();
}

void own_handler(int) { _exit(kOwnHandler); }

struct sigaction before{};

// As Python's faulthandler: it puts back what was there, and raises the signal again.
void handler_that_raises_again(int signal) {
    sigaction(signal, &before, nullptr);
    raise(signal);
}

void install(void (*handler)(int)) {
    struct sigaction action{};
    action.sa_handler = handler;
    action.sa_flags = SA_NODEFER;
    sigaction(SIGBUS, &action, &before);
}

// What a program does around us; each runs in a process of its own. True: it has survived.
const std::map<std::string, bool (*)()> kPrograms = {
    {"foreign fault",
     [] {
         const Filled guarded;
         touch_torn_memory_of_somebody_else();
         return true;
     }},
    {"handler before",
     [] {
         install(own_handler);
         return survives_a_cut();
     }},
    {"handler before, foreign fault",
     [] {
         install(own_handler);
         const Filled guarded;
         touch_torn_memory_of_somebody_else();
         return true;
     }},
    {"handler after",
     [] {
         const Filled guarded;
         install(handler_that_raises_again);
         return survives_a_cut();
     }},
    {"handler after, foreign fault",
     [] {
         const Filled guarded;
         install(handler_that_raises_again);
         touch_torn_memory_of_somebody_else();
         return true;
     }},
    {"sent by somebody",
     [] {
         const Filled guarded;
         kill(getpid(), SIGBUS);
         return true;
     }},
    {"sent by somebody, ignored",
     [] {
         install(SIG_IGN);
         const Filled guarded;
         kill(getpid(), SIGBUS);
         return true;
     }},
};

// 0: survived; an exit code; or the signal, negative.
int outcome(const std::string& program) {
    const pid_t pid = fork();
    if (pid == 0) {
        setenv("BUS_GUARD_TEST_PROGRAM", program.c_str(), 1);
        execl("/proc/self/exe", "bus_guard_test", nullptr);
        _exit(99);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

TEST(BusGuard, WhatIsCutOffReadsAsZeros) {
    const Filled filled;
    EXPECT_FALSE(filled.mapping.torn());
    filled.cut(3);
    EXPECT_EQ(filled.at(2), 1);
    EXPECT_FALSE(filled.mapping.torn());
    EXPECT_EQ(filled.at(5), 0);
    EXPECT_TRUE(filled.mapping.torn());
    EXPECT_EQ(filled.at(4), 0);
    EXPECT_EQ(filled.at(2), 1);
    EXPECT_EQ(filled.at(kPages - 1), 0);
}

TEST(BusGuard, WritesGoOnAndReachNobody) {
    const Filled filled;
    const auto other = Mapping::map(filled.fd.get(), kPages * kPage, false);
    ASSERT_TRUE(other.ok());
    filled.cut(0);
    std::fill_n(filled.mapping.data(), filled.mapping.size(), uint8_t{2});
    EXPECT_TRUE(filled.mapping.torn());
    EXPECT_EQ(filled.at(5), 2);
    EXPECT_FALSE(other.value().torn());
    EXPECT_EQ(*const_cast<volatile uint8_t*>(other.value().data()), 0);
    EXPECT_TRUE(other.value().torn());
}

TEST(BusGuard, ANewMappingIsWhole) {
    for (int i = 0; i < 3; ++i) {
        const Filled filled;
        EXPECT_FALSE(filled.mapping.torn());
        filled.cut(0);
        EXPECT_EQ(filled.at(1), 0);
        EXPECT_TRUE(filled.mapping.torn());
    }
}

// A child does not have its parent's writable mappings: what lies in their place is its own, and
// the end of the parent's objects in the child must not take it away.
TEST(BusGuard, AForkedChildHasMappingsOfItsOwn) {
    constexpr uint64_t kBytes = kPages * kPage;
    Filled filled;
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        void* const place = mmap(filled.mapping.data(), kBytes, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        bool fine = place == filled.mapping.data();
        *static_cast<char*>(place) = 'x';
        filled.mapping = Mapping();
        fine = fine && *static_cast<char*>(place) == 'x';
        munmap(place, kBytes);
        // At the same place again, most likely.
        const Mapping own = std::move(*Mapping::map(filled.fd.get(), kBytes, true));
        fine = fine && ftruncate(filled.fd.get(), 0) == 0;
        own.data()[0] = 1;
        _exit(fine && own.torn() ? 0 : 1);
    }
    int status = 1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_FALSE(filled.mapping.torn());
}

TEST(BusGuard, ThreadsMapAndLoseAtOnce) {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([] {
            for (int round = 0; round < 200; ++round) {
                const Filled filled;
                filled.cut(2);
                EXPECT_EQ(filled.at(kPages - 1), 0);
                EXPECT_EQ(filled.at(1), 1);
                EXPECT_TRUE(filled.mapping.torn());
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
}

TEST(BusGuard, LeavesTheProgramItsOwnFaultsAndHandlers) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "sanitizers have a handler of their own below ours, which ends the process";
#endif
    EXPECT_EQ(outcome("foreign fault"), -SIGBUS);
    EXPECT_EQ(outcome("handler before"), 0);
    EXPECT_EQ(outcome("handler before, foreign fault"), kOwnHandler);
    EXPECT_EQ(outcome("handler after"), 0);
    EXPECT_EQ(outcome("handler after, foreign fault"), -SIGBUS);
    EXPECT_EQ(outcome("sent by somebody"), -SIGBUS);
    EXPECT_EQ(outcome("sent by somebody, ignored"), 0);
}

}  // namespace

int run(const char* program) { return kPrograms.at(program)() ? 0 : 1; }

}  // namespace kvstore

int main(int argc, char** argv) {
    if (const char* program = getenv("BUS_GUARD_TEST_PROGRAM")) {
        return kvstore::run(program);
    }
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
