// Half-open connections by host, sessions by principal.
#include "net/admission.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvstore::testing {
namespace {

class AdmissionTest : public ::testing::Test {
  protected:
    void begin(uint64_t id, const std::string& host) {
        admission_.begin(id, host, [this, id] { evicted_.push_back(id); });
    }
    Code open(uint64_t id, Role role, std::string_view principal = "") {
        return admission_.open(id, role, principal).code();
    }

    Admission admission_{{.max_connections = 20, .max_half_open = 4, .reserved = 2}, 0.5};
    std::vector<uint64_t> evicted_;
};

TEST_F(AdmissionTest, TheOldestOfTheHostWithTheMostGoes) {
    begin(1, "a");
    begin(2, "b");
    begin(3, "b");
    begin(4, "c");
    begin(5, "c");
    EXPECT_EQ(evicted_, (std::vector<uint64_t>{2}));
    begin(6, "d");
    EXPECT_EQ(evicted_, (std::vector<uint64_t>{2, 4}));
    begin(7, "d");  // one of each host: the oldest of all
    EXPECT_EQ(evicted_, (std::vector<uint64_t>{2, 4, 1}));
    EXPECT_EQ(admission_.half_open(), 4u);
    EXPECT_EQ(open(1, Role::kClient), Code::kOverloaded);
    EXPECT_EQ(open(3, Role::kClient), Code::kOk);
    EXPECT_EQ(admission_.half_open(), 3u);
}

TEST_F(AdmissionTest, AFloodOfOneHostEvictsOnlyItself) {
    begin(1, "quiet");
    for (uint64_t id = 2; id < 1000; ++id) {
        begin(id, "loud");
    }
    EXPECT_EQ(evicted_.size(), 995u);
    EXPECT_EQ(evicted_.front(), 2u);
    EXPECT_EQ(open(1, Role::kClient), Code::kOk);
}

TEST_F(AdmissionTest, DescriptorsComeFromTheOldest) {
    EXPECT_FALSE(admission_.evict_oldest());
    begin(1, "a");
    begin(2, "b");
    EXPECT_TRUE(admission_.evict_oldest());
    EXPECT_EQ(evicted_, (std::vector<uint64_t>{1}));
    admission_.end(1);
    admission_.end(2);
    EXPECT_EQ(admission_.half_open(), 0u);
    EXPECT_FALSE(admission_.evict_oldest());
}

// 16 sessions, of which clients have 14, and one principal 7 of those.
TEST_F(AdmissionTest, SessionsHaveAShareAndAReserve) {
    uint64_t id = 0;
    const auto session = [&](Role role, std::string_view principal) {
        begin(++id, "host");
        const Code code = open(id, role, principal);
        if (code != Code::kOk) {
            admission_.end(id);
        }
        return code;
    };
    for (int i = 0; i < 7; ++i) {
        EXPECT_EQ(session(Role::kClient, "a"), Code::kOk);
    }
    EXPECT_EQ(session(Role::kClient, "a"), Code::kOverloaded);
    for (int i = 0; i < 7; ++i) {
        EXPECT_EQ(session(Role::kClient, "b"), Code::kOk);
    }
    EXPECT_EQ(session(Role::kClient, "c"), Code::kOverloaded);
    EXPECT_EQ(session(Role::kNode, "n"), Code::kOk);
    EXPECT_EQ(session(Role::kOperator, "o"), Code::kOk);
    EXPECT_EQ(session(Role::kNode, "n"), Code::kOverloaded);
    admission_.end(1);
    EXPECT_EQ(session(Role::kClient, "a"), Code::kOk);
    EXPECT_TRUE(evicted_.empty());
}

TEST_F(AdmissionTest, WithoutPrincipalsNobodyHasAShare) {
    for (uint64_t id = 1; id <= 14; ++id) {
        begin(id, "host");
        EXPECT_EQ(open(id, Role::kClient), Code::kOk);
    }
}

}  // namespace
}  // namespace kvstore::testing
