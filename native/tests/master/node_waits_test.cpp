// Which nodes a remove or a flush waits for: those that can hold something of the namespace.
#include <gtest/gtest.h>

#include "tests/master/master_core_fixture.h"

namespace kvstore {
namespace {

class NodeWaitsTest : public MasterCoreTest {};

// It was registered, and never came: its memory was new, so it can hold nothing.
TEST_F(NodeWaitsTest, NobodyWaitsForANodeThatNeverCame) {
    Node a = add_node("a");
    const NodeInfo fresh{.node_id = "b", .session_id = 1, .state = NodeState::kDead, .fresh = true};
    ASSERT_TRUE(core_->register_node(fresh, false).ok());
    Answer absent;
    core_->remove(*ns_, {"absent"}, 1000, absent.done());
    EXPECT_EQ(absent.codes, std::vector<Code>{Code::kNotFound});
    put(a, "k");
    Answer answer;
    core_->remove(*ns_, {"k"}, 1000, answer.done());
    ack(a);
    EXPECT_EQ(answer.codes, std::vector<Code>{Code::kOk});
    core_->remove(*ns_, {"k"}, 1000, absent.done());  // an operation behind it is no reason either
    EXPECT_EQ(absent.codes, std::vector<Code>{Code::kNotFound});
    Code flushed = Code::kInternal;
    core_->flush(*ns_, 1000,
                 [&](Code code, const std::vector<std::string>&, uint32_t) { flushed = code; });
    ack(a);
    EXPECT_EQ(flushed, Code::kOk);
}

// A node that hangs delays a flush of the namespaces that it has served, and no other one.
TEST_F(NodeWaitsTest, AFlushWaitsForTheNodesOfItsNamespace) {
    Node a = add_node("a");
    Node b = add_node("b");
    put(a, "k");
    Code flushed = Code::kInternal;
    const auto done = [&](Code code, const std::vector<std::string>&, uint32_t) { flushed = code; };
    core_->flush(*ns_, 60'000, done);
    EXPECT_EQ(flushed, Code::kInternal);
    ack(a);
    EXPECT_EQ(flushed, Code::kOk);
    flushed = Code::kInternal;
    EXPECT_EQ(claim(b, "k").code, Code::kOk);  // granted, perhaps readable on its host
    core_->flush(*ns_, 60'000, done);
    ack(a);
    EXPECT_EQ(flushed, Code::kInternal);
    ack(b);
    EXPECT_EQ(flushed, Code::kOk);
}

}  // namespace
}  // namespace kvstore
