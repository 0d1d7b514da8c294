// The order in which replicas are read, and what labels say of two hosts.
#include "client/nearness.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvstore {
namespace {

TEST(Fabrics, OneInCommonIsEnough) {
    struct Row {
        const char* mine;
        const char* theirs;
        Fabrics want;
    };
    const Row rows[] = {
        {"", "", Fabrics::kUnknown},
        {"pod-1", "", Fabrics::kUnknown},
        {"", "pod-1", Fabrics::kUnknown},
        {"pod-1", "pod-1", Fabrics::kShared},
        {"pod-1", "pod-2", Fabrics::kApart},
        {"pod-1", "pod-10", Fabrics::kApart},
        {"ib:fe80000000000000", "ib:fe80000000000001", Fabrics::kApart},
        {"ib:fe80000000000000", "roce:10.8.0.0/24", Fabrics::kApart},
        {"roce:10.8.0.0/24+roce:10.8.1.0/24", "roce:10.8.1.0/24", Fabrics::kShared},
        {"a+b", "c+b+a", Fabrics::kShared},
        {"a+b", "c+d", Fabrics::kApart},
        // RoCE v2 is routed: what the networks' names say is no proof.
        {"roce:10.8.0.0/24", "roce:10.9.0.0/24", Fabrics::kUnknown},
        {"roce:10.8.0.0/24", "pod-1", Fabrics::kApart},
        {"+", "+", Fabrics::kApart},
        {"a++b", "+b", Fabrics::kShared},
    };
    for (const Row& row : rows) {
        EXPECT_EQ(compare_fabrics(row.mine, row.theirs), row.want) << row.mine << " " << row.theirs;
        EXPECT_EQ(compare_fabrics(row.theirs, row.mine), row.want) << row.theirs << " " << row.mine;
    }
}

TEST(Nearness, UnknownLabelsAreNearToNothing) {
    const Locality mine{.numa = "0", .rack = "r1", .rdma_domain = "pod-1"};
    EXPECT_EQ(nearness_of(mine, {}, false, true), Nearness());
    EXPECT_EQ(nearness_of({}, {}, false, true), Nearness());
    EXPECT_EQ(nearness_of({}, {}, true, true), (Nearness{.host = true}));
    EXPECT_EQ(nearness_of(mine, mine, true, true),
              (Nearness{.host = true, .numa = true, .rdma_domain = true, .rack = true}));
    // Another host has nodes of this number, too.
    EXPECT_EQ(nearness_of(mine, mine, false, true), (Nearness{.rdma_domain = true, .rack = true}));
    EXPECT_EQ(nearness_of(mine, mine, false, false), (Nearness{.rack = true}))
        << "a fabric helps only who can use UCX";
}

TEST(Nearness, LabelsThatAreTooLongAreUnknown) {
    const Locality longest{.numa = std::string(16, '1'),
                           .rack = std::string(128, 'r'),
                           .rdma_domain = std::string(255, 'd')};
    EXPECT_EQ(longest.bounded(), longest);
    const Locality longer{.numa = longest.numa + "1",
                          .rack = longest.rack + "r",
                          .rdma_domain = std::string(256, 'd')};
    EXPECT_EQ(longer.bounded(), Locality());
}

TEST(Nearness, IsCalledByTheBestThatIsTrue) {
    EXPECT_EQ(nearness_name({.host = true, .numa = true, .rack = true}), "numa");
    EXPECT_EQ(nearness_name({.host = true, .rdma_domain = true}), "host");
    EXPECT_EQ(nearness_name({.rdma_domain = true, .rack = true}), "rdma_domain");
    EXPECT_EQ(nearness_name({.rack = true}), "rack");
    EXPECT_EQ(nearness_name({}), "other");
}

TEST(ReadScore, OrdersReplicas) {
    struct Step {
        const char* what;
        ReadWay way;
        Nearness near;
    };
    // The farthest first; whatever is drawn, each step stands above the one before it.
    const Step steps[] = {
        {"down", ReadWay::kNone, {.host = true, .numa = true}},
        {"failed a moment ago, though near", ReadWay::kFailed, {.host = true, .numa = true}},
        {"another rack", ReadWay::kSocket, {}},
        {"the same rack", ReadWay::kSocket, {.rack = true}},
        {"the same RDMA domain", ReadWay::kSocket, {.rdma_domain = true}},
        {"both", ReadWay::kSocket, {.rdma_domain = true, .rack = true}},
        {"a socket of this host", ReadWay::kSocket, {.host = true}},
        {"what a process of this host has left", ReadWay::kKept, {.host = true, .numa = true}},
        {"memory of this host", ReadWay::kMapped, {.host = true}},
        {"memory of this NUMA node", ReadWay::kMapped, {.host = true, .numa = true}},
    };
    int above = -1;
    for (const Step& step : steps) {
        const int least = read_score(step.way, step.near);
        const int most = least + 1;  // where it was drawn from its equals
        EXPECT_GT(least, above) << step.what;
        above = most;
    }
    EXPECT_EQ(read_score(ReadWay::kNone, {}), 0);
}

}  // namespace
}  // namespace kvstore
