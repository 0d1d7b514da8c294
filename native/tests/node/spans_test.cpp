// Spans of traced requests: none without a trace, a bounded number with one.
#include "node/spans.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace kvstore::testing {
namespace {

TraceContext counting_context() {
    TraceContext context{};
    for (size_t i = 0; i < context.size(); ++i) {
        context[i] = static_cast<uint8_t>(i + 1);
    }
    return context;
}

TEST(Spans, NoneWhereNothingIsTracedOrExported) {
    const auto ring = std::make_shared<SpanRing>();
    EXPECT_EQ(OpenSpan::begin(ring, SpanKind::kGet, TraceContext{}, 1), nullptr);
    EXPECT_EQ(OpenSpan::begin(nullptr, SpanKind::kGet, counting_context(), 1), nullptr);
    TraceContext half = counting_context();
    std::fill(half.begin() + kTraceIdBytes, half.end(), uint8_t{0});
    EXPECT_EQ(OpenSpan::begin(ring, SpanKind::kGet, half, 1), nullptr);
    half = counting_context();
    std::fill_n(half.begin(), kTraceIdBytes, uint8_t{0});
    EXPECT_EQ(OpenSpan::begin(ring, SpanKind::kGet, half, 1), nullptr);
    EXPECT_TRUE(ring->take().empty());
}

TEST(Spans, AChildIsOfTheSameTraceBelowItsParent) {
    const auto ring = std::make_shared<SpanRing>();
    const auto parent = OpenSpan::begin(ring, SpanKind::kGet, counting_context(), 3);
    const auto child = parent->child(SpanKind::kNvmeRead, 2);
    child->end(1, 100);
    parent->end(2, 200);
    const std::vector<FinishedSpan> spans = ring->take();
    ASSERT_EQ(spans.size(), 2u);
    const FinishedSpan& below = spans[0];
    const FinishedSpan& above = spans[1];
    EXPECT_EQ(above.parent, counting_context());
    EXPECT_TRUE(std::equal(below.parent.begin(), below.parent.begin() + 16, above.parent.begin()));
    EXPECT_TRUE(std::equal(above.id.begin(), above.id.end(), below.parent.begin() + 16));
    EXPECT_NE(above.id, below.id);
    EXPECT_NE(above.id, SpanId{});
    EXPECT_EQ(below.kind, SpanKind::kNvmeRead);
    EXPECT_EQ(below.keys, 2u);
    EXPECT_EQ(below.found, 1u);
    EXPECT_EQ(below.bytes, 100u);
    EXPECT_GE(below.began_us, above.began_us);
    EXPECT_TRUE(ring->take().empty());
}

TEST(Spans, WhatDoesNotFitIsCounted) {
    const auto ring = std::make_shared<SpanRing>();
    for (size_t i = 0; i < SpanRing::kMost + 7; ++i) {
        OpenSpan::begin(ring, SpanKind::kPut, counting_context(), 1)->end(1, 0);
    }
    EXPECT_EQ(ring->dropped(), 7u);
    EXPECT_EQ(ring->take().size(), SpanRing::kMost);
    OpenSpan::begin(ring, SpanKind::kPut, counting_context(), 1)->end(1, 0);
    EXPECT_EQ(ring->take().size(), 1u);
    EXPECT_EQ(ring->dropped(), 7u);
}

}  // namespace
}  // namespace kvstore::testing
