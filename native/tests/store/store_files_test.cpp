// Opening a folder: who has to be gone before it is believed.
#include "store/store_files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "base/file.h"
#include "tests/temp_dir.h"

namespace kvstore {
namespace {

// A UCX process of the earlier life holds a lock on the segment while it may write into it.
TEST(StoreFiles, WaitsUntilTheUcxProcessOfAnEarlierLifeHasEnded) {
    const TempDir folder;
    const std::string segment = folder.path() + "/segment";
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    const pid_t process = fork();
    ASSERT_GE(process, 0);
    if (process == 0) {
        const int fd = ::open(segment.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        struct flock whole{};
        whole.l_type = F_WRLCK;
        whole.l_whence = SEEK_SET;
        const char answer = fcntl(fd, F_SETLK, &whole) == 0 ? 'y' : 'n';
        (void)!write(ready[1], &answer, 1);
        usleep(300'000);
        (void)!write(ready[1], "e", 1);
        _exit(0);
    }
    char answer = 0;
    ASSERT_EQ(read(ready[0], &answer, 1), 1);
    ASSERT_EQ(answer, 'y');
    const auto files = StoreFiles::open({.directory = folder.path(), .domain = ""});
    EXPECT_TRUE(files.ok()) << files.status().message();
    ASSERT_EQ(fcntl(ready[0], F_SETFL, O_NONBLOCK), 0);
    EXPECT_EQ(read(ready[0], &answer, 1), 1) << "it was opened while the process still ran";
    kill(process, SIGKILL);
    waitpid(process, nullptr, 0);
    close(ready[0]);
    close(ready[1]);
}

}  // namespace
}  // namespace kvstore
