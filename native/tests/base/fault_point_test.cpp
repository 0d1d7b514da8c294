#include "base/fault_point.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

namespace {

// Runs this program again with the variable set; the child passes `times` times.
int status_of_child(const std::string& variable, int times) {
    const pid_t pid = fork();
    if (pid == 0) {
        setenv("KVSTORE_FAULT_POINT", variable.c_str(), 1);
        setenv("FAULT_POINT_TEST_PASSAGES", std::to_string(times).c_str(), 1);
        execl("/proc/self/exe", "fault_point_test", nullptr);
        _exit(99);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace

TEST(FaultPoint, DoesNothingWithoutTheVariable) {
    EXPECT_FALSE(kvstore::fault::armed.load());
    kvstore::fault_point("here");
}

TEST(FaultPoint, EndsTheProcessAtThePassageThatWasAskedFor) {
    EXPECT_EQ(status_of_child("here", 1), -SIGKILL);
    EXPECT_EQ(status_of_child("here:3", 3), -SIGKILL);
    EXPECT_EQ(status_of_child("here:3", 2), 0);
    EXPECT_EQ(status_of_child("elsewhere", 5), 0);
    EXPECT_EQ(status_of_child("", 5), 0);
}

int main(int argc, char** argv) {
    if (const char* passages = getenv("FAULT_POINT_TEST_PASSAGES")) {
        for (int i = 0; i < atoi(passages); ++i) {
            kvstore::fault_point("here");
        }
        return 0;
    }
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
