// Codes, reasons, Status and Result.
#include "base/status.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>

namespace kvstore {
namespace {

TEST(Status, EveryCodeAndReasonHasItsOwnName) {
    std::set<std::string_view> names;
    for (int32_t code = 0; code >= static_cast<int32_t>(Code::kInternal); --code) {
        names.insert(code_name(static_cast<Code>(code)));
    }
    EXPECT_EQ(names.size(), 23u);
    EXPECT_FALSE(names.contains("Unknown"));
    EXPECT_EQ(code_name(Code::kNoSpace), "NoSpace");
    EXPECT_EQ(code_name(Code::kRemoved), "Removed");
    EXPECT_EQ(code_name(Code::kInternal), "Internal");
    for (const int32_t code : {1, -23, INT32_MAX, INT32_MIN}) {
        EXPECT_EQ(code_name(static_cast<Code>(code)), "Unknown");
    }
    std::set<std::string_view> reasons;
    for (int reason = 0; reason < kMissReasonCount; ++reason) {
        reasons.insert(miss_reason_name(static_cast<MissReason>(reason)));
    }
    EXPECT_EQ(reasons.size(), static_cast<size_t>(kMissReasonCount));
    EXPECT_EQ(miss_reason_name(MissReason::kNodeDown), "node_down");
    EXPECT_EQ(miss_reason_name(MissReason::kUnavailable), "unavailable");
    EXPECT_EQ(miss_reason_name(static_cast<MissReason>(200)), "unknown");
}

TEST(Status, SaysWhatHappened) {
    EXPECT_TRUE(Status().ok());
    EXPECT_EQ(Status().to_string(), "Ok");
    EXPECT_EQ(Status(Code::kPartial).to_string(), "Partial");
    EXPECT_EQ(Status(Code::kIoError, "open(/x): gone").to_string(), "IoError: open(/x): gone");
}

TEST(Result, HoldsAValueOrItsAbsence) {
    Result<std::unique_ptr<int>> good(std::make_unique<int>(7));
    ASSERT_TRUE(good.ok());
    EXPECT_EQ(good.code(), Code::kOk);
    EXPECT_TRUE(good.status().ok());
    const std::unique_ptr<int> taken = *std::move(good);
    EXPECT_EQ(*taken, 7);
    const Result<std::unique_ptr<int>> bad(Code::kNotFound, "no such thing");
    EXPECT_FALSE(bad.ok());
    EXPECT_EQ(bad.code(), Code::kNotFound);
    EXPECT_EQ(bad.status().message(), "no such thing");
}

TEST(StatusDeathTest, InvariantNamesItsPlace) {
    testing::FLAGS_gtest_death_test_style = "threadsafe";
    KV_ASSERT(1 + 1 == 2);
    EXPECT_DEATH(KV_ASSERT(1 + 1 == 3), "invariant failed: 1 \\+ 1 == 3 .*status_test");
}

}  // namespace
}  // namespace kvstore
