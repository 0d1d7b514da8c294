// Runs seeds, each in a process of its own, so that every run starts from the same memory.
//
//   sim --seeds 1..200 [--jobs N] [--twice]   --twice: each seed again, the event logs must agree
//   sim --seed 17 --trace                      replays one seed with its whole event log
//
// What is real: all of the native product from its system calls up (event servers, frames, links,
// stores, claims, operations, copies, the client library), with its threads, and the Python policy
// of master and node. Sockets, clocks, threads and random numbers are simulated below the C
// library's functions (libc_*.cpp), so no line of the product knows of this. The other way, driving
// the classes one by one through seams of their own, would leave out the handshakes, the framing,
// the locks and every hand-over between threads; this costs a few per cent of the time budget more.
// What is played: gRPC, LMDB, and who restarts a process.
#include <signal.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "policy.h"
#include "scenario.h"

namespace {

using kvstore::sim::draw_plan;
using kvstore::sim::Plan;
using kvstore::sim::Random;
using kvstore::sim::Runtime;
using kvstore::sim::Scenario;

namespace fs = std::filesystem;

constexpr unsigned kWallLimitS = 60;  // of one run, real time
// With --keep-memory each run has a folder here, named after it and its parent.
const fs::path kMemory = "/dev/shm";
const std::string kMemoryPrefix = "kvstore-sim-";

volatile sig_atomic_t stopped = 0;

struct Options {
    uint64_t first = 1;
    uint64_t last = 0;
    size_t jobs = 1;
    bool trace = false;
    bool twice = false;
    bool keep_memory = false;
    uint64_t max_failures = 5;
};

void on_signal(int signal) {
    if (Runtime* const runtime = Runtime::active()) {
        runtime->fail(signal == SIGALRM ? "progress" : "assertion",
                      signal == SIGABRT   ? "a process aborts"
                      : signal == SIGSEGV ? "a process reads or writes where nothing is"
                                          : "a thread runs forever");
    }
    _exit(3);
}

fs::path memory_of(pid_t parent, pid_t run) {
    return kMemory / (kMemoryPrefix + std::to_string(parent) + "-" + std::to_string(run));
}

// What runs have left whose parent was killed.
void remove_orphaned_memory() {
    std::error_code ignored;
    for (const fs::directory_entry& entry : fs::directory_iterator(kMemory, ignored)) {
        const std::string name = entry.path().filename();
        if (name.starts_with(kMemoryPrefix)) {
            const long parent = strtol(name.c_str() + kMemoryPrefix.size(), nullptr, 10);
            if (parent > 0 && kill(static_cast<pid_t>(parent), 0) != 0 && errno == ESRCH) {
                fs::remove_all(entry.path(), ignored);
            }
        }
    }
}

// In the child.
[[noreturn]] void run_seed(uint64_t seed, const Options& options, int report_fd) {
    for (const int number : {SIGABRT, SIGSEGV, SIGALRM}) {
        signal(number, on_signal);
    }
    alarm(kWallLimitS);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    // A name of its own in the report, whatever the run's random numbers are used for.
    Random plans(seed * 0x9E3779B97F4A7C15 + 7);
    Plan plan = draw_plan(plans, seed);
    plan.cluster.keep_memory = options.keep_memory;
    plan.cluster.memory_folder = memory_of(getppid(), getpid());
    auto* const runtime = new Runtime(seed);
    runtime->report_fd = report_fd;
    runtime->set_trace(options.trace);
    auto* const scenario = new Scenario(*runtime, plan);
    scenario->run();
    char line[160];
    const int length = snprintf(line, sizeof line, "OK %016llx %llu %zu %zu",
                                static_cast<unsigned long long>(runtime->log_hash()),
                                static_cast<unsigned long long>(runtime->steps()),
                                scenario->checker().writes(), scenario->checker().hits());
    fflush(stdout);
    (void)!write(report_fd, line, static_cast<size_t>(length));
    _exit(0);
}

struct Child {
    uint64_t seed;
    int report_fd;
    pid_t pid;
};

Child start_seed(uint64_t seed, const Options& options) {
    int ends[2];
    if (pipe(ends) != 0) {
        perror("sim: pipe");
        exit(2);
    }
    fflush(nullptr);
    const pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        run_seed(seed, options, ends[1]);
    }
    close(ends[1]);
    return {seed, ends[0], pid};
}

std::string end_seed(const Child& child) {
    std::string report;
    char bytes[1024];
    if (stopped != 0) {
        kill(child.pid, SIGKILL);
    }
    for (ssize_t count; (count = read(child.report_fd, bytes, sizeof bytes)) > 0;) {
        report.append(bytes, static_cast<size_t>(count));
    }
    close(child.report_fd);
    if (stopped != 0) {
        kill(child.pid, SIGKILL);
    }
    int status = 0;
    waitpid(child.pid, &status, 0);
    std::error_code ignored;
    fs::remove_all(memory_of(getpid(), child.pid), ignored);
    if (report.empty()) {
        report = "FAIL crash: the run ended without a report, status " + std::to_string(status);
    }
    return report;
}

bool parse_range(std::string_view text, Options* options) {
    const size_t dots = text.find("..");
    const std::string_view from = text.substr(0, dots);
    const std::string_view to = dots == std::string_view::npos ? from : text.substr(dots + 2);
    const auto number = [](std::string_view digits, uint64_t* out) {
        const auto [end, error] =
            std::from_chars(digits.data(), digits.data() + digits.size(), *out);
        return error == std::errc() && end == digits.data() + digits.size();
    };
    return number(from, &options->first) && number(to, &options->last);
}

Options parse(int argc, char** argv) {
    Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string_view name = argv[i];
        const bool has_value = i + 1 < argc;
        if ((name == "--seeds" || name == "--seed") && has_value &&
            parse_range(argv[i + 1], &options)) {
            ++i;
        } else if (name == "--jobs" && has_value) {
            options.jobs = std::max<size_t>(strtoul(argv[++i], nullptr, 10), 1);
        } else if (name == "--max-failures" && has_value) {
            options.max_failures = strtoul(argv[++i], nullptr, 10);
        } else if (name == "--trace") {
            options.trace = true;
        } else if (name == "--twice") {
            options.twice = true;
        } else if (name == "--keep-memory") {
            options.keep_memory = true;
        } else {
            options.last = 0;
            break;
        }
    }
    if (options.last < options.first) {
        fprintf(stderr,
                "usage: sim --seeds A..B [--jobs N] [--twice] [--keep-memory] | --seed N "
                "[--trace]\n");
        exit(2);
    }
    return options;
}

// Addresses are part of a run: hash tables of pointers keep their order only with them.
void fix_addresses(char** argv) {
    const int now = personality(0xffffffff);
    if (now != -1 && (now & ADDR_NO_RANDOMIZE) == 0 &&
        personality(static_cast<unsigned long>(now) | ADDR_NO_RANDOMIZE) != -1) {
        execv("/proc/self/exe", argv);
    }
}

}  // namespace

int main(int argc, char** argv) {
    const Options options = parse(argc, argv);
    fix_addresses(argv);
    kvstore::sim::policy::start_interpreter();
    remove_orphaned_memory();
    struct sigaction stop{};
    stop.sa_handler = [](int) { stopped = 1; };  // without SA_RESTART: waits end
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
        sigaction(number, &stop, nullptr);
    }
    const uint64_t begin_ms = kvstore::boottime_ms();
    std::vector<Child> running;
    std::map<uint64_t, std::string> first_hash;
    uint64_t failures = 0;
    uint64_t passed = 0;
    unsigned long long writes = 0;
    unsigned long long hits = 0;
    std::vector<uint64_t> todo;
    for (uint64_t seed = options.first; seed <= options.last; ++seed) {
        todo.push_back(seed);
        if (options.twice) {
            todo.push_back(seed);
        }
    }
    size_t next = 0;
    while (next < todo.size() || !running.empty()) {
        while (next < todo.size() && running.size() < options.jobs &&
               failures < options.max_failures && stopped == 0) {
            running.push_back(start_seed(todo[next++], options));
        }
        if (running.empty()) {
            break;
        }
        const Child child = running.front();
        running.erase(running.begin());
        std::string report = end_seed(child);
        unsigned long long run_writes = 0;
        unsigned long long run_hits = 0;
        char hash[32] = "";
        if (sscanf(report.c_str(), "OK %31s %*u %llu %llu", hash, &run_writes, &run_hits) == 3) {
            const auto [at, added] = first_hash.try_emplace(child.seed, hash);
            if (added || at->second == hash) {
                ++passed;
                writes += run_writes;
                hits += run_hits;
                if (options.trace) {
                    printf("%s\n", report.c_str());
                }
                continue;
            }
            report = "FAIL determinism: two runs have the hashes " + at->second + " and " + hash;
        }
        if (stopped != 0) {
            continue;
        }
        ++failures;
        printf("seed %llu: %s\n", static_cast<unsigned long long>(child.seed), report.c_str());
        fflush(stdout);
    }
    printf("%llu runs passed, %llu failed; %llu writes, %llu reads with a value; %.1f s\n",
           static_cast<unsigned long long>(passed), static_cast<unsigned long long>(failures),
           writes, hits, static_cast<double>(kvstore::boottime_ms() - begin_ms) / 1000);
    return failures == 0 && stopped == 0 ? 0 : 1;
}
