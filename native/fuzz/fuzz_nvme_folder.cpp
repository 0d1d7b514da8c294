// Fuzzes the opening of a folder on NVMe that an earlier life of the node has left: its lock file,
// log files, removal journal and catalog. Input: flags (1 byte), then patches {file (1), offset
// (2, little-endian), length (1), bytes}; a length of 0 cuts the file at the offset. Flag 1 puts
// checksums right, 2 those of objects' data too, 4 discards what is foreign, 8 loses the catalog,
// 16 opens the folder once more. Whatever lies there, the log opens or says why not, what it lists
// can be read or is missed with a reason, what was read matches its checksum, and the log goes on.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/hash.h"
#include "fuzz/nvme_checksums.h"
#include "nvme/log.h"

namespace kvstore {
namespace {

constexpr HashSecret kSecret = {1, 2, 3};
constexpr uint64_t kLogFileBytes = 64 << 10;
constexpr uint64_t kLogFiles = 4;
constexpr std::array<std::string_view, 7> kFiles = {
    "manifest-1",    "owner",         "removals-1.kvs", "segment-0.kvs",
    "segment-1.kvs", "segment-2.kvs", "segment-3.kvs"};
constexpr int kObjects = 40;
constexpr uint8_t kPutSums = 1;
constexpr uint8_t kPutDataSums = 2;
constexpr uint8_t kDiscardForeign = 4;
constexpr uint8_t kLoseCatalog = 8;
constexpr uint8_t kOpenAgain = 16;

using Bytes = std::vector<uint8_t>;

NamespaceEpoch space(const std::string& name) {
    return {.tenant = "tenant",
            .name = name,
            .epoch = 1,
            .tenant_id = tenant_id(kSecret, "tenant"),
            .id = namespace_id(kSecret, "tenant", name, 1)};
}

NvmeOptions options_of(const std::string& folder, NvmeCatalog* catalog) {
    NvmeOptions options;
    options.directory = folder;
    options.size_bytes = kLogFiles * kLogFileBytes;
    options.log_file_bytes = kLogFileBytes;
    options.node_id = "node";
    options.cluster_check = 77;
    options.buffer_bytes = 64 << 10;
    options.buffers = 3;
    options.writers = 1;
    options.reads = {.way = NvmeReadEngine::Way::kPool, .depth = 1, .threads = 1};
    options.flush_after_ms = 1;
    options.catalog = catalog;
    return options;
}

Status put(NvmeLog& log, const NamespaceEpoch& ns, const std::string& key, Version version,
           size_t size) {
    const Bytes data(size, static_cast<uint8_t>(version));
    NvmeObject object;
    object.identity = {.tenant = ns.tenant_id,
                       .ns = ns.id,
                       .hash = key_hash(kSecret, ns.id, key),
                       .version = version,
                       .length = size};
    object.sealed_crc = seal_checksum(crc32c(data.data(), size), object.identity);
    object.key = key;
    Status status;
    do {
        status = log.append(object, data);
    } while (status.code() == Code::kOverloaded && log.await_space(size, 1000));
    return status;
}

Bytes read_file(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

// A folder with objects, a remove and a flush: its files, and the rows of its catalog.
class Base {
  public:
    Base() {
        char path[] = "/dev/shm/kvstore-fuzz-XXXXXX";
        KV_ASSERT(mkdtemp(path) != nullptr);
        directory = path;
        MemoryCatalog catalog;
        {
            auto log = NvmeLog::open(options_of(directory + "/base", &catalog)).value();
            KV_ASSERT(log->register_namespace(space("a")).ok());
            KV_ASSERT(log->register_namespace(space("b")).ok());
            for (int i = 0; i < kObjects; ++i) {
                KV_ASSERT(put(*log, space(i % 5 == 0 ? "b" : "a"), "key-" + std::to_string(i),
                              static_cast<Version>(100 + i), static_cast<size_t>(i) * 97)
                              .ok());
                KV_ASSERT(i % 8 != 0 || log->sync().ok());
            }
            (void)log->remove(space("a").id, key_hash(kSecret, space("a").id, "key-1"), 101);
            log->flush_namespace(space("b").id);
            log->note_applied(5);
            KV_ASSERT(log->sync_removals().ok() && log->sync().ok());
            while (catalog.list().value().empty()) {  // the first log file is sealed behind this
                std::this_thread::yield();
            }
        }
        for (const auto& entry : std::filesystem::directory_iterator(directory + "/base")) {
            files[entry.path().filename()] = read_file(entry.path());
        }
        const std::vector<uint64_t> sealed = catalog.list().value();
        for (const uint64_t seq : sealed) {
            files["manifest-" + std::to_string(seq)] = catalog.load(seq).value();
        }
        for (auto& [name, bytes] : files) {
            // The journal's file is allocated at its full size, nearly all of it zeros.
            while (name.starts_with("removals-") && !bytes.empty() && bytes.back() == 0) {
                bytes.pop_back();
            }
        }
        // An input names a file by its number in this order.
        size_t number = 0;
        for (const auto& [name, bytes] : files) {
            KV_ASSERT(kFiles.at(number++) == name);
        }
    }
    ~Base() { std::filesystem::remove_all(directory); }

    std::string directory;
    std::map<std::string, Bytes> files;
};

void patch(std::map<std::string, Bytes>& files, std::span<const uint8_t> input) {
    while (input.size() >= 4) {
        Bytes& file = std::next(files.begin(), input[0] % files.size())->second;
        const uint64_t at = input[1] | uint64_t{input[2]} << 8;
        const size_t size = std::min<size_t>(input[3], input.size() - 4);
        if (size == 0) {
            file.resize(std::min<uint64_t>(at, file.size()));
        } else if (at + size <= kLogFileBytes) {
            file.resize(std::max<uint64_t>(file.size(), at + size));
            std::copy_n(input.data() + 4, size, file.data() + at);
        }
        input = input.subspan(4 + size);
    }
}

void put_checksums(const std::string& name, Bytes& file, bool data) {
    const std::span<uint8_t> bytes(file);
    if (name == "owner" && bytes.size() >= 12) {
        store_word(bytes.data() + 8, crc32c(bytes.data(), 8));
    } else if (name.starts_with("segment-") && bytes.size() >= kLogFileHeaderBytes) {
        fuzz::put_crc(bytes.first(kLogFileHeaderBytes), fuzz::kCrcAtOfHeader);
        fuzz::put_record_crcs(bytes.subspan(kLogFileHeaderBytes), data);
    } else if (name.starts_with("removals-")) {
        for (size_t at = 0; at + fuzz::kRemovalBytes <= bytes.size(); at += fuzz::kRemovalBytes) {
            uint8_t* record = bytes.data() + at;
            store_word(record + fuzz::kCrcAtOfRecord,
                       crc32c(record + fuzz::kRemovalHeadBytes,
                              fuzz::kRemovalBytes - fuzz::kRemovalHeadBytes));
        }
    } else if (name.starts_with("manifest-") && bytes.size() >= 16) {
        fuzz::put_crc(bytes, fuzz::kCrcAtOfHeader);
    }
}

std::vector<NvmeListed> list(NvmeLog& log) {
    std::vector<NvmeListed> all;
    NvmeCursor cursor;
    while (!cursor.done) {
        const size_t before = all.size();
        KV_ASSERT(log.list(&cursor, 7, &all).ok());
        KV_ASSERT(all.size() <= before + 7);
    }
    return all;
}

void read(NvmeLog& log, const NvmeListed& listed) {
    std::mutex mutex;
    std::condition_variable answered;
    bool is_answered = false;
    Bytes data(listed.identity.length);
    const NvmeRead one{.ns = listed.identity.ns,
                       .hash = listed.identity.hash,
                       .version = 0,
                       .key = listed.key,
                       .to = data.data(),
                       .capacity = data.size(),
                       .tag = 1};
    log.read({&one, 1}, [&](uint64_t tag, const NvmeReadResult& result) {
        const std::lock_guard lock(mutex);
        KV_ASSERT(tag == 1 && !is_answered);
        if (result.status.ok()) {
            const Identity& found = result.identity;
            KV_ASSERT(found.ns == one.ns && found.hash == one.hash && result.key == one.key);
            KV_ASSERT(found.length <= data.size() &&
                      seal_checksum(crc32c(data.data(), found.length), found) == result.sealed_crc);
        }
        is_answered = true;
        answered.notify_one();
    });
    std::unique_lock lock(mutex);
    KV_ASSERT(answered.wait_for(lock, std::chrono::seconds(20), [&] { return is_answered; }));
}

void meet(NvmeLog& log) {
    for (const NvmeListed& listed : list(log)) {
        KV_ASSERT(is_valid_name(listed.ns.tenant) && is_valid_name(listed.ns.name));
        KV_ASSERT(!listed.key.empty() && listed.identity.length <= kLogFileBytes);
        read(log, listed);
    }
    (void)log.namespaces();
    if (log.state() == NvmeState::kActive && log.register_namespace(space("c")).ok()) {
        const Status status = put(log, space("c"), "new", 1000, 3000);
        if (status.ok() && log.sync().ok()) {
            KV_ASSERT(log.find(space("c").id, key_hash(kSecret, space("c").id, "new")));
        }
    }
}

void write_folder(const std::string& folder, const std::map<std::string, Bytes>& files) {
    std::filesystem::create_directory(folder);
    for (const auto& [name, bytes] : files) {
        if (!name.starts_with("manifest-")) {
            std::ofstream(folder + "/" + name, std::ios::binary)
                .write(reinterpret_cast<const char*>(bytes.data()),
                       static_cast<std::streamsize>(bytes.size()));
        }
    }
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace kvstore;
    static const Base base;
    const uint8_t flags = size == 0 ? 0 : data[0];
    std::map<std::string, Bytes> files = base.files;
    patch(files, {data + (size == 0 ? 0 : 1), size == 0 ? 0 : size - 1});
    MemoryCatalog catalog;
    for (auto& [name, bytes] : files) {
        if ((flags & kPutSums) != 0) {
            put_checksums(name, bytes, (flags & kPutDataSums) != 0);
        }
        if (name.starts_with("manifest-") && (flags & kLoseCatalog) == 0) {
            const uint64_t seq = std::strtoull(name.c_str() + name.find('-') + 1, nullptr, 10);
            KV_ASSERT(catalog.save(seq, bytes).ok());
        }
    }
    const std::string folder = base.directory + "/changed";
    write_folder(folder, files);
    NvmeOptions options = options_of(folder, &catalog);
    options.discard_foreign = (flags & kDiscardForeign) != 0;
    auto log = NvmeLog::open(options);
    KV_ASSERT(log.ok() || !options.discard_foreign);
    if (log.ok()) {
        KV_ASSERT(size > 0 || (*log)->counters().objects > kObjects / 2);
        meet(**log);
        log->reset();
        KV_ASSERT((flags & kOpenAgain) == 0 || NvmeLog::open(options).ok());
    }
    std::filesystem::remove_all(folder);
    return 0;
}
