// Hits by the first object of their chain: through any length, evictions, replaced keys, a restart.
#include <gtest/gtest.h>

#include "tests/store/attach_fixture.h"
#include "tests/store/store_harness.h"

namespace kvstore {
namespace {

constexpr uint64_t kSize = 4096;
constexpr size_t kAll = 1000;

class StorePrefixes : public ::testing::Test {
  protected:
    StorePrefixes() : store(64u << 20) {}

    // `name`/0, `name`/1 … each after the one before, the first after `parent`.
    void put_chain(const std::string& name, int length, std::string parent = "") {
        for (int i = 0; i < length; ++i) {
            BlockStore::ReserveItem item = store.item(name + "/" + std::to_string(i), kSize);
            item.parent = store.intern(parent);
            ASSERT_EQ(store.put_item(item, true), Code::kOk);
            parent = name + "/" + std::to_string(i);
        }
    }
    void read(const std::string& name, int from, int to) {
        std::vector<BlockStore::Key> keys;
        for (int i = from; i < to; ++i) {
            keys.push_back(store.key(name + "/" + std::to_string(i)));
        }
        store.store->find(store.ns, keys);
    }
    // "key uses", the most used first.
    std::vector<std::string> taken(size_t most = kAll) {
        std::vector<std::string> out;
        for (const BlockStore::PrefixUse& one : store.store->take_prefixes(most)) {
            EXPECT_EQ(one.ns->tenant, "default");
            EXPECT_EQ(one.bytes, one.uses * kSize);
            out.push_back(one.key + " " + std::to_string(one.uses));
        }
        return out;
    }
    using Strings = std::vector<std::string>;

    StoreHarness store;
};

TEST_F(StorePrefixes, AnyPartOfAChainCountsForItsFirstKey) {
    put_chain("a", 300);
    put_chain("b", 3);
    read("a", 0, 300);
    read("a", 250, 300);  // an engine has the beginning itself
    read("b", 0, 3);
    store.get("b/2");
    EXPECT_EQ(taken(), (Strings{"a/0 350", "b/0 4"}));
    EXPECT_TRUE(taken().empty());  // each use once
    read("b", 1, 2);
    read("a", 0, 2);
    EXPECT_EQ(taken(1), (Strings{"a/0 2"}));
}

TEST_F(StorePrefixes, BranchesCountForWhatTheyShare) {
    put_chain("system", 4);
    put_chain("one", 3, "system/3");
    put_chain("two", 3, "system/3");
    read("one", 0, 3);
    read("two", 2, 3);
    EXPECT_EQ(taken(), (Strings{"system/0 4"}));
}

TEST_F(StorePrefixes, AChainWithoutItsBeginningIsNamedByWhatIsLeft) {
    put_chain("a", 5);
    put_chain("elsewhere", 3, "of another node");
    read("a", 0, 5);
    read("elsewhere", 0, 3);
    EXPECT_EQ(taken(), (Strings{"a/0 5", "elsewhere/0 3"}));
    read("a", 4, 5);
    ASSERT_EQ(store.store->remove_upto(store.ns, store.key("a/0"), store.version), Code::kOk);
    read("a", 1, 5);
    // What was counted for a key that has gone has no name any more.
    EXPECT_EQ(taken(), (Strings{"a/1 4"}));
    // A key that is put again begins a chain of its own: the others followed its earlier version.
    put_chain("a", 1);
    read("a", 0, 5);
    EXPECT_EQ(taken(), (Strings{"a/1 4", "a/0 1"}));
}

TEST_F(StorePrefixes, TheMostReadOnesStayAmongMany) {
    for (int i = 0; i < 4000; ++i) {
        put_chain("k" + std::to_string(i), 1);
    }
    for (int i = 0; i < 4000; ++i) {
        read("k" + std::to_string(i), 0, 1);
        read("k1", 0, 1);
        if (i % 2 == 0) {
            read("k2", 0, 1);
        }
    }
    const auto found = store.store->take_prefixes(2);
    ASSERT_EQ(found.size(), 2u);
    EXPECT_EQ(found[0].key, "k1/0");
    EXPECT_EQ(found[1].key, "k2/0");
    // Never above the truth, and below it by little.
    EXPECT_LE(found[0].uses, 4001u);
    EXPECT_GE(found[0].uses, 4001u - 2 * 10'000 / 512);
}

class KeptPrefixes : public Attach {};

TEST_F(KeptPrefixes, ChainsAreFoundAfterARestart) {
    ASSERT_TRUE(open().ok());
    std::string parent;
    for (int i = 0; i < 5; ++i) {
        const std::string key = "a/" + std::to_string(i);
        BlockStore::ReserveItem item;
        item.key = key;
        item.hash = key_hash(secret_, ns_->id, key);
        item.parent = parent;
        item.size_bytes = kSize;
        const Owner owner{7, -1};
        ASSERT_EQ(publish(store_->reserve(owner, ns_, item), key, kSize, owner), Code::kOk);
        parent = key;
    }
    next_life();
    ASSERT_TRUE(find("a/4").hold != nullptr);
    const auto found = store_->take_prefixes(kAll);
    ASSERT_EQ(found.size(), 1u);
    EXPECT_EQ(found[0].key, "a/0");
    EXPECT_EQ(found[0].uses, 1u);
}

}  // namespace
}  // namespace kvstore
