// The histogram's buckets: bounds meet without gaps, quantiles are at most a quarter too high.
#include "base/histogram.h"

#include <gtest/gtest.h>

namespace kvstore {
namespace {

TEST(Histogram, BucketsMeet) {
    for (size_t bucket = 0; bucket + 1 < Histogram::kBuckets; ++bucket) {
        const uint64_t last = Histogram::upper_bound(bucket);
        EXPECT_EQ(Histogram::bucket_of(last), bucket);
        EXPECT_EQ(Histogram::bucket_of(last + 1), bucket + 1);
    }
    EXPECT_EQ(Histogram::bucket_of(0), 0u);
    EXPECT_EQ(Histogram::bucket_of(UINT64_MAX), Histogram::kBuckets - 1);
}

TEST(Histogram, QuantilesAreClose) {
    Histogram histogram;
    EXPECT_EQ(histogram.snapshot().quantile(0.5), 0u);
    for (uint64_t value = 1; value <= 100'000; ++value) {
        histogram.record(value);
    }
    const Histogram::Snapshot snapshot = histogram.snapshot();
    EXPECT_EQ(snapshot.total, 100'000u);
    EXPECT_EQ(snapshot.sum, uint64_t{100'000} * 100'001 / 2);
    for (const double q : {0.01, 0.5, 0.9, 0.99, 1.0}) {
        const double exact = q * 100'000;
        const auto bound = static_cast<double>(snapshot.quantile(q));
        EXPECT_GE(bound, exact);
        EXPECT_LE(bound, exact * 1.26);
    }
}

}  // namespace
}  // namespace kvstore
