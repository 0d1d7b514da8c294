// What this machine can do without a store: memcpy out of and into shared memory, one TCP stream
// over loopback, and round trips. One long-lived process that a line on stdin drives and that
// answers with a line of JSON, so that its rounds can be interleaved with those of the stores.
//
//   init BYTES CONGESTION  both regions, pre-faulted; "-": the default
//   copy get|put plain|nt|sum SIZE BATCH CALLS START  shared to private memory, or the reverse
//   tcp get|put|stream|get_sum|put_sum SIZE BATCH CALLS START  the other side is another process
//   rtt tcp|unix BYTES COUNT  ping-pong, blocking on both sides
//
// "sum" does the same with the checksums of the store, by its own code.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "base/checksum.h"
#include "net/transfer_cursor.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

[[noreturn]] void die(const char* what) {
    std::perror(what);
    std::_Exit(1);
}

uint64_t now_ns() {
    return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

// ---- copying ---------------------------------------------------------------------------------

using Copy = void (*)(uint8_t*, const uint8_t*, size_t);

void copy_plain(uint8_t* to, const uint8_t* from, size_t size) { std::memcpy(to, from, size); }

// What a sum came to goes here, so that it is computed.
volatile uint32_t last_sum = 0;

void copy_sum(uint8_t* to, const uint8_t* from, size_t size) {
    last_sum = kvstore::copy_crc32c(to, from, size);
}

#if defined(__x86_64__)
// Both need 64-byte aligned destinations and sizes, which every slot has.
__attribute__((target("avx512f"))) void copy_nt_avx512(uint8_t* to, const uint8_t* from,
                                                       size_t size) {
    for (size_t at = 0; at < size; at += 256) {
        const __m512i a = _mm512_loadu_si512(from + at);
        const __m512i b = _mm512_loadu_si512(from + at + 64);
        const __m512i c = _mm512_loadu_si512(from + at + 128);
        const __m512i d = _mm512_loadu_si512(from + at + 192);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + at), a);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + at + 64), b);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + at + 128), c);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + at + 192), d);
    }
    _mm_sfence();
}

__attribute__((target("avx2"))) void copy_nt_avx2(uint8_t* to, const uint8_t* from, size_t size) {
    for (size_t at = 0; at < size; at += 128) {
        for (size_t part = 0; part < 128; part += 32) {
            const __m256i line =
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at + part));
            _mm256_stream_si256(reinterpret_cast<__m256i*>(to + at + part), line);
        }
    }
    _mm_sfence();
}
#endif

// Null where the processor has no such stores.
Copy copy_nt() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        return copy_nt_avx512;
    }
    if (__builtin_cpu_supports("avx2")) {
        return copy_nt_avx2;
    }
#endif
    return nullptr;
}

// ---- the regions -----------------------------------------------------------------------------

uint8_t* map_region(uint64_t bytes, int sharing, int fill) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        die("mmap");
    }
    std::memset(at, fill, bytes);
    return static_cast<uint8_t*>(at);
}

struct Regions {
    uint64_t bytes = 0;
    uint8_t* shared = nullptr;
    uint8_t* own = nullptr;
};

// A walk over slots of one size: block `b` of call `c` starts at `start + c * batch + b`, and its
// counterpart in the other region lies half a region away, as in the stores' rounds.
struct Walk {
    uint64_t size, batch, calls, start;
    uint64_t slots(const Regions& regions) const { return regions.bytes / size; }
    uint64_t index(const Regions& regions, uint64_t call, uint64_t block) const {
        return (start + call * batch + block) % slots(regions);
    }
    uint8_t* shared(const Regions& regions, uint64_t call, uint64_t block) const {
        return regions.shared + index(regions, call, block) * size;
    }
    uint8_t* own(const Regions& regions, uint64_t call, uint64_t block) const {
        const uint64_t count = slots(regions);
        return regions.own + (index(regions, call, block) + count / 2) % count * size;
    }
};

// ---- sockets ---------------------------------------------------------------------------------

enum class Kind : uint64_t { kGet = 1, kPut, kPutSum, kStream, kEcho, kSpin };

struct Request {
    Kind kind;
    Walk walk;  // kEcho, kSpin: `size` bytes, `calls` times
};

// False at the end of the stream.
bool transfer(int fd, std::vector<iovec>& parts, bool write) {
    size_t first = 0;
    while (first < parts.size()) {
        const int count = static_cast<int>(std::min<size_t>(parts.size() - first, 1024));
        const ssize_t got =
            write ? writev(fd, &parts[first], count) : readv(fd, &parts[first], count);
        if (got == 0) {
            return false;
        }
        if (got < 0) {
            if (errno == EINTR) {
                continue;
            }
            return false;
        }
        for (size_t left = static_cast<size_t>(got); left > 0;) {
            const size_t taken = std::min(left, parts[first].iov_len);
            parts[first].iov_base = static_cast<uint8_t*>(parts[first].iov_base) + taken;
            parts[first].iov_len -= taken;
            left -= taken;
            if (parts[first].iov_len == 0) {
                ++first;
            }
        }
    }
    return true;
}

// The same with the checksum of each part on the way.
bool transfer_sum(int fd, const std::vector<iovec>& parts, bool write) {
    std::vector<uint32_t> crcs(parts.size());
    kvstore::TransferCursor cursor(parts, crcs);
    iovec step[1024];
    while (!cursor.done()) {
        const int count = static_cast<int>(cursor.gather(step));
        const ssize_t got = write ? writev(fd, step, count) : readv(fd, step, count);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return false;
        }
        cursor.passed(static_cast<size_t>(got));
    }
    last_sum = crcs.back();
    return true;
}

bool transfer_one(int fd, void* data, size_t size, bool write) {
    std::vector<iovec> parts{{data, size}};
    return transfer(fd, parts, write);
}

// Keeps its processor until there is something to read.
void spin(int fd) {
    pollfd one{fd, POLLIN, 0};
    while (poll(&one, 1, 0) == 0) {
    }
}

std::vector<iovec> parts_of(const Regions& regions, const Walk& walk, uint64_t call, bool shared) {
    std::vector<iovec> parts(walk.batch);
    for (uint64_t block = 0; block < walk.batch; ++block) {
        uint8_t* at = shared ? walk.shared(regions, call, block) : walk.own(regions, call, block);
        parts[block] = {at, walk.size};
    }
    return parts;
}

// The other process: serves one connection until it ends.
[[noreturn]] void serve(int fd, const Regions& regions) {
    Request request{};
    std::vector<uint8_t> echo;
    while (transfer_one(fd, &request, sizeof(request), false)) {
        const Walk& walk = request.walk;
        bool ok = true;
        if (request.kind == Kind::kEcho || request.kind == Kind::kSpin) {
            echo.resize(walk.size);
            for (uint64_t call = 0; ok && call < walk.calls; ++call) {
                if (request.kind == Kind::kSpin) {
                    spin(fd);
                }
                ok = transfer_one(fd, echo.data(), echo.size(), false) &&
                     transfer_one(fd, echo.data(), echo.size(), true);
            }
        } else if (request.kind == Kind::kPut || request.kind == Kind::kPutSum) {
            auto parts = parts_of(regions, walk, 0, true);
            uint64_t done = 1;
            const bool sum = request.kind == Kind::kPutSum;
            ok = (sum ? transfer_sum(fd, parts, false) : transfer(fd, parts, false)) &&
                 transfer_one(fd, &done, sizeof(done), true);
        } else {
            for (uint64_t call = 0; ok && call < walk.calls; ++call) {
                auto parts = parts_of(regions, walk, call, true);
                ok = transfer(fd, parts, true);
            }
        }
        if (!ok) {
            break;
        }
    }
    std::_Exit(0);
}

void set_no_delay(int fd) {
    const int on = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) != 0) {
        die("TCP_NODELAY");
    }
}

// A child has the mapping but not its pages: they would fault in, one by one, in the timed part.
void touch_shared(const Regions& regions) {
    constexpr uint64_t kPageBytes = 4096;
    for (uint64_t at = 0; at < regions.bytes; at += kPageBytes) {
        auto* byte = static_cast<volatile uint8_t*>(regions.shared + at);
        *byte = *byte;
    }
}

// A connection over loopback to a process that serves it.
int connect_tcp(const Regions& regions, const std::string& congestion, int unix_fd) {
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0) {
        die("socket");
    }
    if (congestion != "-" && setsockopt(listener, IPPROTO_TCP, TCP_CONGESTION, congestion.c_str(),
                                        static_cast<socklen_t>(congestion.size())) != 0) {
        die("TCP_CONGESTION");
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    auto* raw = reinterpret_cast<sockaddr*>(&address);
    if (bind(listener, raw, length) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, raw, &length) != 0) {
        die("listen");
    }
    const pid_t child = fork();
    if (child < 0) {
        die("fork");
    }
    if (child == 0) {
        // Not held open here: the Unix server must see its end when the driver goes.
        close(unix_fd);
        touch_shared(regions);
        const int fd = accept(listener, nullptr, nullptr);
        if (fd < 0) {
            die("accept");
        }
        close(listener);
        set_no_delay(fd);
        serve(fd, regions);
    }
    close(listener);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (congestion != "-" && setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion.c_str(),
                                        static_cast<socklen_t>(congestion.size())) != 0) {
        die("TCP_CONGESTION");
    }
    if (connect(fd, raw, length) != 0) {
        die("connect");
    }
    set_no_delay(fd);
    return fd;
}

int connect_unix(const Regions& regions) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
        die("socketpair");
    }
    const pid_t child = fork();
    if (child < 0) {
        die("fork");
    }
    if (child == 0) {
        close(ends[0]);
        serve(ends[1], regions);
    }
    close(ends[1]);
    return ends[0];
}

// ---- the driver ------------------------------------------------------------------------------

struct Limits {
    Regions regions;
    int tcp = -1;
    int unix_socket = -1;
};

std::string summary(std::vector<uint64_t> times, uint64_t bytes_a_call) {
    uint64_t total = 0;
    for (const uint64_t time : times) {
        total += time;
    }
    std::sort(times.begin(), times.end());
    const size_t count = times.size();
    const uint64_t median = (times[(count - 1) / 2] + times[count / 2]) / 2;
    const uint64_t p99 = times[std::min(count - 1, count * 99 / 100)];
    std::ostringstream out;
    out << R"({"calls":)" << count << R"(,"bytes":)" << bytes_a_call * count << R"(,"total_ns":)"
        << total << R"(,"p50_ns":)" << median << R"(,"p99_ns":)" << p99 << "}";
    return out.str();
}

std::string error(const std::string& what) { return R"({"error":")" + what + "\"}"; }

std::string init(Limits& limits, std::istringstream& words) {
    std::string congestion;
    if (!(words >> limits.regions.bytes >> congestion) || limits.tcp >= 0) {
        return error("init");
    }
    limits.regions.shared = map_region(limits.regions.bytes, MAP_SHARED, 1);
    limits.unix_socket = connect_unix(limits.regions);
    limits.tcp = connect_tcp(limits.regions, congestion, limits.unix_socket);
    // Only now: a fork would make every page of it copy-on-write, and the first write to each slow.
    limits.regions.own = map_region(limits.regions.bytes, MAP_PRIVATE, 2);
    char name[16] = {};
    socklen_t length = sizeof(name);
    if (getsockopt(limits.tcp, IPPROTO_TCP, TCP_CONGESTION, name, &length) != 0) {
        die("getsockopt");
    }
    return R"({"congestion":")" + std::string(name) + R"(","nt":)" +
           (copy_nt() != nullptr ? "true" : "false") + "}";
}

bool read_walk(std::istringstream& words, const Regions& regions, Walk& walk) {
    return (words >> walk.size >> walk.batch >> walk.calls >> walk.start) && walk.size > 0 &&
           walk.size % 256 == 0 && walk.batch > 0 && walk.calls > 0 &&
           walk.size * walk.batch <= regions.bytes;
}

std::string copy(const Limits& limits, std::istringstream& words) {
    std::string direction;
    std::string kind;
    Walk walk{};
    words >> direction >> kind;
    const Copy how = kind == "nt" ? copy_nt() : kind == "sum" ? copy_sum : copy_plain;
    if (!read_walk(words, limits.regions, walk) || how == nullptr) {
        return error("copy");
    }
    const bool get = direction == "get";
    std::vector<uint64_t> times;
    for (uint64_t call = 0; call < walk.calls; ++call) {
        const uint64_t start = now_ns();
        for (uint64_t block = 0; block < walk.batch; ++block) {
            uint8_t* shared = walk.shared(limits.regions, call, block);
            uint8_t* own = walk.own(limits.regions, call, block);
            get ? how(own, shared, walk.size) : how(shared, own, walk.size);
        }
        times.push_back(now_ns() - start);
    }
    return summary(std::move(times), walk.size * walk.batch);
}

std::string tcp(const Limits& limits, std::istringstream& words) {
    std::string kind;
    Walk walk{};
    words >> kind;
    if (!read_walk(words, limits.regions, walk)) {
        return error("tcp");
    }
    const bool stream = kind == "stream";
    const bool sum = kind == "put_sum" || kind == "get_sum";
    const bool put = kind == "put" || kind == "put_sum";
    std::vector<uint64_t> times;
    uint64_t begin = now_ns();
    for (uint64_t call = 0; call < walk.calls; ++call) {
        Walk one = walk;
        one.start = walk.start + call * walk.batch;
        one.calls = 1;
        auto parts = parts_of(limits.regions, one, 0, false);
        if (!stream) {
            begin = now_ns();
        }
        bool ok = true;
        if (put) {
            Request request{sum ? Kind::kPutSum : Kind::kPut, one};
            uint64_t done = 0;
            parts.insert(parts.begin(), {&request, sizeof(request)});
            ok =
                (sum ? transfer_sum(limits.tcp, parts, true) : transfer(limits.tcp, parts, true)) &&
                transfer_one(limits.tcp, &done, sizeof(done), false);
        } else {
            Request request{stream ? Kind::kStream : Kind::kGet, stream ? walk : one};
            if (!stream || call == 0) {
                ok = transfer_one(limits.tcp, &request, sizeof(request), true);
            }
            ok = ok && (sum ? transfer_sum(limits.tcp, parts, false)
                            : transfer(limits.tcp, parts, false));
        }
        if (!ok) {
            return error("the connection ended");
        }
        const uint64_t end = now_ns();
        times.push_back(end - begin);
        begin = end;
    }
    return summary(std::move(times), walk.size * walk.batch);
}

std::string round_trip(const Limits& limits, std::istringstream& words) {
    std::string kind;
    Request request{Kind::kEcho, {.size = 0, .batch = 1, .calls = 0, .start = 0}};
    if (!(words >> kind >> request.walk.size >> request.walk.calls) || request.walk.calls == 0 ||
        request.walk.size == 0 || request.walk.size > 4096) {
        return error("rtt");
    }
    const bool spins = kind == "spin";
    const int fd = kind == "unix" ? limits.unix_socket : limits.tcp;
    request.kind = spins ? Kind::kSpin : Kind::kEcho;
    std::vector<uint8_t> message(request.walk.size, 7);
    if (!transfer_one(fd, &request, sizeof(request), true)) {
        return error("the connection ended");
    }
    std::vector<uint64_t> times;
    for (uint64_t call = 0; call < request.walk.calls; ++call) {
        const uint64_t start = now_ns();
        bool ok = transfer_one(fd, message.data(), message.size(), true);
        if (ok && spins) {
            spin(fd);
        }
        ok = ok && transfer_one(fd, message.data(), message.size(), false);
        if (!ok) {
            return error("the connection ended");
        }
        times.push_back(now_ns() - start);
    }
    return summary(std::move(times), request.walk.size);
}

std::string answer(Limits& limits, const std::string& line) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    if (command == "init") {
        return init(limits, words);
    }
    if (limits.tcp < 0) {
        return error("init comes first");
    }
    if (command == "copy") {
        return copy(limits, words);
    }
    if (command == "tcp") {
        return tcp(limits, words);
    }
    if (command == "rtt") {
        return round_trip(limits, words);
    }
    return error("unknown command");
}

}  // namespace

int main() {
    Limits limits;
    for (std::string line; std::getline(std::cin, line);) {
        std::cout << answer(limits, line) << std::endl;
    }
    if (limits.tcp >= 0) {
        close(limits.tcp);
        close(limits.unix_socket);
        while (wait(nullptr) > 0) {
        }
    }
    return 0;
}
