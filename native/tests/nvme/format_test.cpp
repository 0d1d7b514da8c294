// Format 1 on disk: golden files of it are read forever, later formats are refused by name, and no
// damaged byte passes.
#include "nvme/format.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <array>
#include <fstream>

#include "tests/nvme/fixture.h"

namespace kvstore {
namespace {

const std::string kGolden = std::string(KVSTORE_GOLDEN_DIR) + "/format1";

std::vector<uint8_t> file_bytes(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

void write_file(const std::string& path, const std::vector<uint8_t>& bytes) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
}

RecordHead sample_head() {
    RecordHead head;
    head.kind = RecordKind::kObject;
    head.pin = Pin::kSoft;
    head.sealed_crc = 0xdeadbeef;
    head.seq = 7;
    head.session = 8;
    head.expires_at_ms = 9;
    head.put_wall_ms = 10;
    head.identity = {.tenant = 1, .ns = 2, .hash = {3, 4}, .version = 5, .length = 600};
    head.parent = {11, 12};
    head.key = "a key of some length, so that the head has more than one step";
    return head;
}

TEST(NvmeFormatTest, HeadsRoundTripAndNoFlippedBitPasses) {
    const RecordHead head = sample_head();
    std::array<uint8_t, kMaxRecordHeadBytes> bytes{};
    encode_record_head(head, bytes.data());
    const size_t size = record_head_bytes(head.key.size());
    RecordHead back;
    uint64_t total = 0;
    ASSERT_TRUE(decode_record_head(std::span(bytes).first(size), &back, &total));
    EXPECT_EQ(total, size + 640);
    EXPECT_EQ(back.key, head.key);
    EXPECT_EQ(back.pin, Pin::kSoft);
    EXPECT_EQ(back.sealed_crc, head.sealed_crc);
    EXPECT_EQ(back.seq, 7u);
    EXPECT_EQ(back.session, 8u);
    EXPECT_EQ(back.expires_at_ms, 9u);
    EXPECT_EQ(back.put_wall_ms, 10u);
    EXPECT_EQ(back.identity.tenant, 1u);
    EXPECT_EQ(back.identity.ns, 2u);
    EXPECT_EQ(back.identity.hash, (Hash128{3, 4}));
    EXPECT_EQ(back.identity.version, 5u);
    EXPECT_EQ(back.parent, (Hash128{11, 12}));
    for (size_t bit = 0; bit < size * 8; ++bit) {
        auto damaged = bytes;
        damaged[bit / 8] ^= static_cast<uint8_t>(1u << bit % 8);
        EXPECT_FALSE(decode_record_head(damaged, &back, &total)) << bit;
    }
    for (size_t cut = 0; cut < size; ++cut) {
        EXPECT_FALSE(decode_record_head(std::span(bytes).first(cut), &back, &total));
    }
}

// A whole checksum does not make numbers harmless.
TEST(NvmeFormatTest, HostileHeadsAreRefused) {
    RecordHead back;
    uint64_t total = 0;
    const auto accepted = [&](const RecordHead& head) {
        std::array<uint8_t, kMaxRecordHeadBytes> bytes{};
        encode_record_head(head, bytes.data());
        return decode_record_head(bytes, &back, &total);
    };
    RecordHead head = sample_head();
    EXPECT_TRUE(accepted(head));
    head.identity.length = uint64_t{1} << 32;
    EXPECT_FALSE(accepted(head));
    head = sample_head();
    head.identity.version = 0;
    EXPECT_FALSE(accepted(head));
    head = sample_head();
    head.key = "";
    EXPECT_FALSE(accepted(head));
    head = sample_head();
    head.pin = static_cast<Pin>(3);
    EXPECT_FALSE(accepted(head));
    head = sample_head();
    head.kind = static_cast<RecordKind>(9);
    EXPECT_FALSE(accepted(head));
    head = sample_head();
    head.kind = RecordKind::kNamespace;
    head.identity.length = head.key.size() + 1;
    EXPECT_FALSE(accepted(head));
    RecordHead pad;
    for (const uint64_t length : {0ull, 63ull, 65ull, ~0ull, 1ull << 41}) {
        pad.identity.length = length;
        EXPECT_FALSE(accepted(pad)) << length;
    }
    pad.identity.length = 128;
    EXPECT_TRUE(accepted(pad));
    EXPECT_EQ(total, 128u);
}

TEST(NvmeFormatTest, LogFileHeadersAreWholeOrDamaged) {
    std::vector<uint8_t> block(kLogFileHeaderBytes);
    EXPECT_EQ(decode_log_file_header(block, "s").code(), Code::kNotFound);
    encode_log_file_header(
        {.seq = 5, .log_file_bytes = 65536, .cluster_check = 9, .node_id = "node"}, block);
    const Result<LogFileHeader> header = decode_log_file_header(block, "s");
    ASSERT_TRUE(header.ok());
    EXPECT_EQ(header->seq, 5u);
    EXPECT_EQ(header->log_file_bytes, 65536u);
    EXPECT_EQ(header->cluster_check, 9u);
    EXPECT_EQ(header->node_id, "node");
    for (size_t at = 0; at < block.size(); at += at < 64 ? 1 : 101) {
        auto damaged = block;
        damaged[at] ^= 1;
        EXPECT_EQ(decode_log_file_header(damaged, "s").code(), Code::kChecksumMismatch) << at;
    }
}

TEST(NvmeManifestTest, RoundTripsAndNoDamagePasses) {
    Manifest manifest(42);
    const uint32_t first = manifest.add_namespace(test_namespace("a", 1));
    const uint32_t second = manifest.add_namespace(test_namespace("b", 2));
    EXPECT_EQ(manifest.add_namespace(test_namespace("a", 1)), first);
    for (uint64_t n = 0; n < 20; ++n) {
        const std::string key = "key" + std::to_string(n);
        manifest.add({.ns_index = n % 2 == 0 ? first : second,
                      .offset = 4096 + n * 64,
                      .hash = {n, n + 1},
                      .version = n + 2,
                      .length = static_cast<uint32_t>(n + 3),
                      .sealed_crc = static_cast<uint32_t>(n + 4),
                      .expires_at_ms = n + 5,
                      .put_wall_ms = n + 6,
                      .parent = {n + 7, n + 8},
                      .pin = static_cast<Pin>(n % 3),
                      .key = key});
    }
    const std::vector<uint8_t> bytes = manifest.encode();
    const Result<Manifest> back = Manifest::decode(bytes);
    ASSERT_TRUE(back.ok());
    EXPECT_EQ(back->seq(), 42u);
    EXPECT_EQ(back->objects(), 20u);
    ASSERT_EQ(back->namespaces().size(), 2u);
    EXPECT_EQ(back->namespaces()[1].name, "b");
    uint64_t at = 0;
    ManifestRow row;
    for (uint64_t n = 0; n < 20; ++n) {
        ASSERT_TRUE(back->next(&at, &row));
        EXPECT_EQ(row.ns_index, n % 2 == 0 ? first : second);
        EXPECT_EQ(row.offset, 4096 + n * 64);
        EXPECT_EQ(row.hash, (Hash128{n, n + 1}));
        EXPECT_EQ(row.version, n + 2);
        EXPECT_EQ(row.length, n + 3);
        EXPECT_EQ(row.sealed_crc, n + 4);
        EXPECT_EQ(row.expires_at_ms, n + 5);
        EXPECT_EQ(row.put_wall_ms, n + 6);
        EXPECT_EQ(row.parent, (Hash128{n + 7, n + 8}));
        EXPECT_EQ(row.pin, static_cast<Pin>(n % 3));
        EXPECT_EQ(row.key, "key" + std::to_string(n));
    }
    EXPECT_FALSE(back->next(&at, &row));
    for (size_t i = 0; i < bytes.size(); ++i) {
        auto damaged = bytes;
        damaged[i] ^= 0x20;
        EXPECT_FALSE(Manifest::decode(damaged).ok()) << i;
        EXPECT_FALSE(Manifest::decode(std::span(bytes).first(i)).ok());
    }
}

// The golden folder: log file 0 with its first blocks only, a removal journal, and the log file's
// manifest.
class GoldenTester : public NvmeTester {
  public:
    explicit GoldenTester(const std::string& folder) : NvmeTester(folder, 512 << 10) {
        options.log_file_bytes = 64 << 10;
    }
};

// Writes the golden files; run by hand (--gtest_also_run_disabled_tests) when a format is added.
TEST(NvmeGoldenTest, DISABLED_WriteThem) {
    TempDir dir;
    GoldenTester nvme(dir.path());
    ASSERT_TRUE(nvme.open().ok());
    ASSERT_TRUE(nvme.put("first", 11, 100, Pin::kSoft).ok());
    ASSERT_TRUE(nvme.put("second", 12, 3000).ok());
    ASSERT_TRUE(nvme.put("removed", 13, 10).ok());
    ASSERT_TRUE(nvme.log->sync().ok());
    ASSERT_TRUE(nvme.put("third", 14, 0, Pin::kNone, 4'000'000'000'000).ok());
    nvme.log->remove(nvme.ns.id, nvme.hash("removed"), 13);
    nvme.log->flush_namespace(test_namespace("other").id);
    ASSERT_TRUE(nvme.log->sync().ok());
    ASSERT_TRUE(nvme.log->sync_removals().ok());
    nvme.close();
    std::filesystem::create_directories(kGolden);
    auto file = file_bytes(log_file_path(dir.path(), 0));
    file.resize(16384);
    write_file(kGolden + "/segment-0.kvs", file);
    auto journal = file_bytes(dir.path() + "/removals-1.kvs");
    journal.resize(256);
    write_file(kGolden + "/removals-1.kvs", journal);
    const Fd fd(open(log_file_path(dir.path(), 0).c_str(), O_RDONLY | O_CLOEXEC));
    const LogFileScan scan = scan_log_file(FileIo::system(), fd.get(), "", 1, 65536, true);
    write_file(kGolden + "/manifest", scan.manifest.encode());
}

void expect_golden(NvmeTester& nvme) {
    ASSERT_TRUE(nvme.open().ok());
    EXPECT_EQ(nvme.check("first"), 11u);
    EXPECT_EQ(nvme.check("second"), 12u);
    EXPECT_EQ(nvme.check("removed"), 0u);
    EXPECT_EQ(nvme.check("third"), 14u);
    const auto all = nvme.list();
    ASSERT_EQ(all.size(), 3u);
    EXPECT_EQ(all.at("first").pin, Pin::kSoft);
    EXPECT_EQ(all.at("first").ns.name, "space");
    EXPECT_GT(all.at("third").ttl_ms, 0u);
    EXPECT_EQ(nvme.log->register_namespace(test_namespace("other")).code(), Code::kOk);
}

TEST(NvmeGoldenTest, Format1IsReadByAScan) {
    TempDir dir;
    copy_folder(kGolden, dir.path() + "/nvme");
    GoldenTester nvme(dir.path() + "/nvme");
    expect_golden(nvme);
    EXPECT_EQ(nvme.log->counters().scanned_log_files, 1u);
}

TEST(NvmeGoldenTest, Format1IsReadByItsManifest) {
    TempDir dir;
    copy_folder(kGolden, dir.path() + "/nvme");
    GoldenTester nvme(dir.path() + "/nvme");
    ASSERT_TRUE(nvme.catalog.save(1, file_bytes(kGolden + "/manifest")).ok());
    expect_golden(nvme);
    EXPECT_EQ(nvme.log->counters().scanned_log_files, 0u);
}

TEST(NvmeGoldenTest, ALaterFormatIsRefusedByName) {
    TempDir dir;
    copy_folder(kGolden, dir.path() + "/nvme");
    const std::string path = log_file_path(dir.path() + "/nvme", 0);
    auto bytes = file_bytes(path);
    bytes[8] = 2;
    std::memset(bytes.data() + 12, 0, 4);
    const uint32_t crc = crc32c(bytes.data(), kLogFileHeaderBytes);
    std::memcpy(bytes.data() + 12, &crc, 4);
    write_file(path, bytes);
    GoldenTester nvme(dir.path() + "/nvme");
    const Status refused = nvme.open();
    EXPECT_EQ(refused.code(), Code::kVersionMismatch);
    EXPECT_NE(refused.message().find("format 2"), std::string::npos) << refused.message();
    EXPECT_EQ(file_bytes(path), bytes) << "refused, and left alone";
    nvme.options.discard_foreign = true;
    ASSERT_TRUE(nvme.open().ok());
    EXPECT_EQ(nvme.log->counters().objects, 0u);
    EXPECT_TRUE(nvme.put("new", 1, 10).ok());
}

}  // namespace
}  // namespace kvstore
