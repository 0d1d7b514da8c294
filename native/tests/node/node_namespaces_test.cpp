// A node's namespaces: which are kept, and which can be forgotten.
#include "node/node_namespaces.h"

#include <gtest/gtest.h>

#include <string>

namespace kvstore::testing {
namespace {

TEST(NodeNamespacesTest, AFloodOfSessionsLeavesOnlyWhatIsUsedOrWasFlushed) {
    NodeNamespaces namespaces({7});
    const std::shared_ptr<NamespaceCell> held = *namespaces.open("t", "held");
    ASSERT_TRUE(namespaces.advance("t", "flushed", 3).ok());
    for (int i = 0; i < 200'000; ++i) {
        ASSERT_TRUE(namespaces.open("t", "flood-" + std::to_string(i)).ok()) << i;
    }
    EXPECT_LE(namespaces.size(), 1024u);
    EXPECT_EQ(*namespaces.open("t", "held"), held);
    EXPECT_EQ((*namespaces.open("t", "flushed"))->current()->epoch, 3u);
}

TEST(NodeNamespacesTest, OneThatIsForgottenIsTheSameAgain) {
    NodeNamespaces namespaces({7});
    const NamespaceId id = (*namespaces.open("t", "a"))->current()->id;
    for (int i = 0; i < 3000; ++i) {
        ASSERT_TRUE(namespaces.open("t", std::to_string(i)).ok());
    }
    EXPECT_EQ((*namespaces.open("t", "a"))->current()->id, id);
    ASSERT_TRUE(namespaces.advance("t", "a", 1).ok());
    EXPECT_NE((*namespaces.open("t", "a"))->current()->id, id);
}

}  // namespace
}  // namespace kvstore::testing
