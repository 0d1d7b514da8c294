// Several devices as one: what one of them does, or does not, is not seen in what is found.
#include "nvme/devices.h"

#include <future>

#include "tests/nvme/fixture.h"

namespace kvstore {
namespace {

constexpr int kObjects = 40;
constexpr size_t kBytes = 3000;

class NvmeDevicesTest : public testing::Test {
  protected:
    std::vector<NvmeOptions> options(const std::vector<int>& order) {
        std::vector<NvmeOptions> chosen;
        for (const int device : order) {
            chosen.push_back(testers[static_cast<size_t>(device)].options);
        }
        return chosen;
    }
    void open(const std::vector<int>& order) {
        devices.reset();
        Result<std::unique_ptr<NvmeDevices>> opened = NvmeDevices::open(options(order));
        ASSERT_TRUE(opened.ok()) << opened.status().to_string();
        devices = std::move(*opened);
        ASSERT_TRUE(devices->register_namespace(ns()).ok());
    }
    const NamespaceEpoch& ns() const { return testers[0].ns; }
    static std::string key(int number) { return "key " + std::to_string(number); }
    Hash128 hash(int number) const { return testers[0].hash(key(number)); }
    Status put(int number, Version version) {
        const std::string name = key(number);
        const std::vector<uint8_t> data = test_data(hash(number), version, kBytes);
        const NvmeObject object = testers[0].object(name, version, data);
        for (int tries = 0; tries < 1000; ++tries) {
            Status status = devices->append(object, data);
            if (status.code() != Code::kOverloaded) {
                return status;
            }
            devices->await_space(hash(number), kBytes, 100);
        }
        return {Code::kOverloaded, "no room"};
    }
    void put_all(Version version) {
        for (int i = 0; i < kObjects; ++i) {
            ASSERT_TRUE(put(i, version).ok()) << i;
        }
    }
    // 0: it is not there. Its bytes are compared.
    Version read(int number) {
        const auto found = devices->find(ns().id, hash(number));
        if (!found) {
            return 0;
        }
        const std::string name = key(number);
        std::vector<uint8_t> data(kBytes);
        std::promise<Status> answer;
        const NvmeRead wanted{ns().id, hash(number), found->version, name, data.data(), kBytes, 7};
        devices->read({&wanted, 1}, [&](uint64_t tag, const NvmeReadResult& result) {
            EXPECT_EQ(tag, 7u);
            answer.set_value(result.status);
        });
        const Status status = answer.get_future().get();
        EXPECT_TRUE(status.ok()) << status.to_string();
        EXPECT_EQ(data, test_data(hash(number), found->version, kBytes));
        return found->version;
    }
    int present() {
        int count = 0;
        for (int i = 0; i < kObjects; ++i) {
            count += read(i) != 0 ? 1 : 0;
        }
        return count;
    }
    std::multimap<std::string, Version> listed() {
        std::multimap<std::string, Version> names;
        NvmeDevices::Cursor cursor;
        while (!cursor.done) {
            std::vector<NvmeListed> some;
            EXPECT_TRUE(devices->list(&cursor, 7, &some).ok());
            for (const NvmeListed& one : some) {
                names.emplace(one.key, one.identity.version);
            }
        }
        return names;
    }

    TempDir dir;
    NvmeTester testers[2] = {NvmeTester(dir.path() + "/a"), NvmeTester(dir.path() + "/b")};
    std::unique_ptr<NvmeDevices> devices;
};

TEST_F(NvmeDevicesTest, ObjectsAreSpreadAndFoundInAnyOrderOfTheDevices) {
    open({0, 1});
    put_all(5);
    EXPECT_EQ(present(), kObjects);
    EXPECT_EQ(listed().size(), static_cast<size_t>(kObjects));
    open({1, 0});
    EXPECT_EQ(present(), kObjects);
    EXPECT_EQ(devices->counters().objects, static_cast<uint64_t>(kObjects));
    open({0});
    const int first = present();
    open({1});
    const int second = present();
    EXPECT_EQ(first + second, kObjects);
    EXPECT_GT(first, kObjects / 4);
    EXPECT_GT(second, kObjects / 4);
}

TEST_F(NvmeDevicesTest, TheHighestVersionWinsWhereverItLies) {
    open({0, 1});
    put_all(5);
    open({1, 0});  // other places for the same keys
    EXPECT_EQ(put(0, 5).code(), Code::kAlreadyExists);
    EXPECT_EQ(put(0, 4).code(), Code::kAlreadyExists);
    put_all(6);
    for (int i = 0; i < kObjects; ++i) {
        EXPECT_EQ(read(i), 6u) << i;
    }
    EXPECT_EQ(devices->counters().objects, static_cast<uint64_t>(kObjects))
        << "the older ones went";
    const auto names = listed();
    EXPECT_EQ(names.size(), static_cast<size_t>(kObjects));
    EXPECT_EQ(names.find(key(3))->second, 6u);
    EXPECT_TRUE(devices->sync_removals().ok());
    open({0, 1});
    EXPECT_EQ(read(3), 6u);
}

// One device was not there when the other one got a newer version.
TEST_F(NvmeDevicesTest, AnOlderVersionThatComesBackIsNotListed) {
    open({0});
    put_all(5);
    open({1});
    put_all(6);
    open({0, 1});
    EXPECT_EQ(devices->counters().objects, uint64_t{2} * kObjects);
    for (int i = 0; i < kObjects; ++i) {
        EXPECT_EQ(read(i), 6u) << i;
    }
    for (const auto& [name, version] : listed()) {
        EXPECT_EQ(version, 6u) << name;
    }
}

TEST_F(NvmeDevicesTest, RemovesAndFlushesReachEveryDevice) {
    open({0, 1});
    put_all(5);
    for (int i = 0; i < kObjects / 2; ++i) {
        EXPECT_TRUE(devices->remove(ns().id, hash(i), 5));
    }
    EXPECT_EQ(present(), kObjects / 2);
    devices->note_applied(9);
    ASSERT_TRUE(devices->sync_removals().ok());
    open({1, 0});
    EXPECT_EQ(present(), kObjects / 2);
    EXPECT_EQ(devices->recovered_applied(), 9u);
    devices->flush_namespace(ns().id);
    EXPECT_EQ(present(), 0);
}

TEST_F(NvmeDevicesTest, ADeviceThatFailsIsPassedOver) {
    open({0, 1});
    put_all(5);
    ASSERT_TRUE(devices->sync().ok());
    testers[0].io.fail_writes = true;
    for (int i = kObjects; i < 2 * kObjects && devices->state() == NvmeState::kActive; ++i) {
        put(i, 5).ok();  // it is refused only when the device has failed
        devices->sync().ok();
    }
    EXPECT_NE(devices->state(), NvmeState::kActive);
    EXPECT_FALSE(devices->error().ok());
    ASSERT_TRUE(devices->is_active());
    for (int i = 3 * kObjects; i < 4 * kObjects; ++i) {
        ASSERT_TRUE(put(i, 5).ok()) << i;
        EXPECT_EQ(read(i), 5u);
    }
    EXPECT_EQ(present(), kObjects) << "what was written before";
    testers[1].io.fail_writes = true;
    for (int i = 4 * kObjects; i < 5 * kObjects && devices->is_active(); ++i) {
        put(i, 5).ok();
        devices->sync().ok();
    }
    EXPECT_FALSE(devices->is_active());
}

TEST_F(NvmeDevicesTest, AFolderIsNotTwoDevices) {
    EXPECT_EQ(NvmeDevices::open(options({0, 0})).code(), Code::kUnavailable);
}

}  // namespace
}  // namespace kvstore
