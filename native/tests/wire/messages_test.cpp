// Every message: round trip, golden transcripts of minor 0 and a made-up minor 1, limits,
// mutations.
#include "wire/messages.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <random>
#include <string>

#include "tests/wire/message_samples.h"

namespace kvstore {
namespace {

using Bytes = std::vector<uint8_t>;

template <class M>
Bytes body_of(const M& message) {
    Bytes out;
    encode_message(message, out);
    return out;
}

// type → (name, body) of every sample.
struct Sample {
    std::string name;
    Bytes body;
};
auto collect(std::map<uint16_t, Sample>& all) {
    return [&all]<class M>(const M& message) {
        const auto type = static_cast<uint16_t>(M::kType);
        all[type] = {std::string(message_type_name(type)), body_of(message)};
    };
}
std::map<uint16_t, Sample> sample_bodies() {
    std::map<uint16_t, Sample> all;
    samples::all_messages(collect(all));
    return all;
}
std::map<uint16_t, Sample> added_bodies() {
    std::map<uint16_t, Sample> all;
    samples::added_fields(collect(all));
    return all;
}

TEST(Messages, EveryTypeHasASampleAndRoundTrips) {
    const auto all = sample_bodies();
    for (uint32_t type = 0; type <= 0xFFFF; ++type) {
        const bool known = !message_type_name(static_cast<uint16_t>(type)).empty();
        EXPECT_EQ(all.contains(static_cast<uint16_t>(type)), known) << type;
    }
    for (const auto& [type, sample] : all) {
        Bytes again;
        ASSERT_TRUE(samples::reencode(type, sample.body, &again)) << sample.name;
        EXPECT_EQ(again, sample.body) << sample.name;
    }
}

TEST(Messages, DefaultsAreEmptyBodiesAndDecodeToDefaults) {
    samples::all_messages([]<class M>(const M&) {
        EXPECT_TRUE(body_of(M{}).empty());
        M message;
        EXPECT_TRUE(decode_message({}, &message).ok());
    });
}

TEST(Messages, ColumnsKeepTheirValues) {
    Bytes body = {0xEE};  // odd alignment on purpose
    samples::all_messages([&body]<class M>(const M& message) {
        if constexpr (std::is_same_v<M, Announce>) {
            encode_message(message, body);
        }
    });
    Announce announce;
    ASSERT_TRUE(decode_message(std::span(body).subspan(1), &announce).ok());
    EXPECT_EQ(announce.seq, 9u);
    EXPECT_EQ(announce.phase, AnnouncePhase::kEnd);
    EXPECT_EQ(announce.ns, "llama-3-70b");
    ASSERT_EQ(announce.keys.size(), 3u);
    for (size_t row = 0; row < 3; ++row) {
        EXPECT_EQ(announce.keys[row], samples::kKeys[row]);
        EXPECT_EQ(announce.versions[row], samples::kU64[row]);
        EXPECT_EQ(announce.pins[row], samples::kSmall[row]);
    }
    EXPECT_EQ(announce.versions[3], 0u) << "behind the end is 0";
    EXPECT_EQ(announce.keys[3], "");
    size_t seen = 0;
    for (const std::string_view key : announce.keys) {
        EXPECT_EQ(key, samples::kKeys[seen++]);
    }
    EXPECT_EQ(seen, 3u);
}

TEST(Messages, DecodedKeysCanBeSlicedAndSentOn) {
    const Bytes body = body_of(Lookup{.keys = samples::keys()});
    Lookup lookup;
    ASSERT_TRUE(decode_message(body, &lookup).ok());
    const Bytes part = body_of(Lookup{.keys = lookup.keys.slice(1, 9)});
    Lookup rest;
    ASSERT_TRUE(decode_message(part, &rest).ok());
    ASSERT_EQ(rest.keys.size(), 2u);
    EXPECT_EQ(rest.keys[0], samples::kKeys[1]);
    EXPECT_EQ(rest.keys[1], samples::kKeys[2]);
    EXPECT_TRUE(lookup.keys.slice(7, 1).empty());
    EXPECT_EQ(samples::keys().slice(2, 1)[0], samples::kKeys[2]);
}

// ---------------------------------------------------------------------------------- refusals

template <class M>
std::string refusal(const Bytes& body) {
    M message;
    const Status status = decode_message(body, &message);
    EXPECT_EQ(status.code(), Code::kProtocolError);
    return status.message();
}

void append_field(Bytes& body, uint16_t tag, uint32_t length, size_t bytes) {
    for (int i = 0; i < 2; ++i) {
        body.push_back(static_cast<uint8_t>(tag >> (8 * i)));
    }
    for (int i = 0; i < 4; ++i) {
        body.push_back(static_cast<uint8_t>(length >> (8 * i)));
    }
    body.insert(body.end(), bytes, 0);
}

TEST(Messages, RefusesBrokenFields) {
    Bytes cut = {1, 0, 4};
    EXPECT_EQ(refusal<Ping>(cut), "field 0 is cut off");
    Bytes longer;
    append_field(longer, 1, 9, 8);
    EXPECT_EQ(refusal<Ping>(longer), "field 1 is longer than its frame");
    Bytes twice;
    append_field(twice, 1, 8, 8);
    append_field(twice, 1, 8, 8);
    EXPECT_EQ(refusal<Ping>(twice), "field 1 comes twice");
    Bytes narrow;
    append_field(narrow, 1, 4, 4);
    EXPECT_EQ(refusal<Ping>(narrow), "field 1 has a wrong length");
    Bytes ragged;
    append_field(ragged, 1, 9, 9);
    EXPECT_EQ(refusal<Commit>(ragged), "field 1 has a wrong length");
}

TEST(Messages, RefusesWhatExceedsALimit) {
    const std::vector<uint64_t> many(limits::kMaxBatchKeys + 1, 1);
    EXPECT_EQ(refusal<Abort>(body_of(Abort{.generations = many})), "field 1 has a wrong length");
    const std::vector<std::string_view> keys(limits::kMaxBatchKeys + 1, "k");
    EXPECT_FALSE(refusal<Lookup>(body_of(Lookup{.keys = keys})).empty());
    const std::string long_key(limits::kMaxKeyBytes + 1, 'x');
    const std::string_view long_view = long_key;
    EXPECT_FALSE(refusal<Lookup>(body_of(Lookup{.keys = long_view})).empty());
    EXPECT_EQ(refusal<Inspect>(body_of(Inspect{.key = long_view})), "field 1 is too long");
    Hello hello;
    hello.role = static_cast<Role>(9);
    EXPECT_EQ(refusal<Hello>(body_of(hello)), "field 6 is out of range");
    const std::vector<uint8_t> pins = {0, 3, 0};
    EXPECT_EQ(refusal<SetPin>(body_of(SetPin{.keys = samples::keys(), .levels = pins})),
              "field 2 has a value out of range");
}

TEST(Messages, RefusesColumnsThatDisagree) {
    const std::vector<uint64_t> two = {1, 2};
    EXPECT_EQ(refusal<Get>(body_of(Get{.keys = samples::keys(), .versions = two})),
              "field 2 has another number of rows");
    const std::vector<uint8_t> counts = {1, 1, 2};
    EXPECT_EQ(refusal<LookupReply>(
                  body_of(LookupReply{.status = samples::codes(),
                                      .replica_counts = counts,
                                      .nodes = std::span<const uint32_t>(samples::kU32)})),
              "columns disagree");
    EXPECT_EQ(refusal<Claim>(body_of(Claim{.claim_ids = samples::u64s()})), "columns disagree");
}

TEST(Messages, TimeoutsAreCapped) {
    Flush flush;
    ASSERT_TRUE(decode_message(body_of(Flush{.timeout_ms = UINT32_MAX}), &flush).ok());
    EXPECT_EQ(flush.timeout_ms, limits::kMaxTimeoutMs);
}

TEST(Messages, KeyListOffsetsAreChecked) {
    const auto accepted = [](std::vector<uint32_t> words, const std::string& text) {
        Bytes bytes(words.size() * 4 + text.size());
        std::memcpy(bytes.data(), words.data(), words.size() * 4);
        std::copy(text.begin(), text.end(), bytes.begin() + static_cast<long>(words.size()) * 4);
        KeyList list;
        return KeyList::from_bytes(bytes, 10, &list);
    };
    EXPECT_TRUE(accepted({2, 1, 3}, "abc"));
    EXPECT_TRUE(accepted({0}, ""));
    EXPECT_FALSE(accepted({2, 2, 1}, "abc")) << "falling";
    EXPECT_FALSE(accepted({2, 1, 4}, "abc")) << "behind the end";
    EXPECT_FALSE(accepted({2, 1, 2}, "abc")) << "bytes left over";
    EXPECT_FALSE(accepted({3, 1, 3}, "abc")) << "count above the bytes";
    EXPECT_FALSE(accepted({UINT32_MAX}, "")) << "count overflows";
    EXPECT_FALSE(accepted({0}, "abc"));
}

// ------------------------------------------------------------------------------ golden transcripts

std::string golden_path(const char* name) { return std::string(KVSTORE_GOLDEN_DIR "/") + name; }

Bytes from_hex(const std::string& text) {
    Bytes bytes;
    for (size_t i = 0; i + 1 < text.size(); i += 2) {
        bytes.push_back(static_cast<uint8_t>(std::stoi(text.substr(i, 2), nullptr, 16)));
    }
    return bytes;
}

Bytes frame_of(uint16_t type, const Bytes& body) {
    const FrameHeader header{.body_bytes = static_cast<uint32_t>(body.size()),
                             .type = type,
                             .request_id = type == 1 ? kHelloMagic : 7};
    const FrameHeaderBytes bytes = encode_header(header);
    Bytes frame(bytes.begin(), bytes.end());
    frame.insert(frame.end(), body.begin(), body.end());
    return frame;
}

// What a build of the next minor version might send: new fields before, between and behind ours.
Bytes with_unknown_fields(const Bytes& body) {
    Bytes out;
    append_field(out, 200, 3, 3);
    size_t at = 0;
    while (at < body.size()) {
        uint32_t length = 0;
        std::memcpy(&length, body.data() + at + 2, sizeof length);
        out.insert(out.end(), body.begin() + static_cast<long>(at),
                   body.begin() + static_cast<long>(at + 6 + length));
        at += 6 + length;
        append_field(out, 201, 0, 0);
    }
    append_field(out, 46, 5, 5);
    append_field(out, 0xFFFF, 16, 16);
    return out;
}

std::map<std::string, Bytes> read_golden(const char* name) {
    std::ifstream in(golden_path(name));
    std::map<std::string, Bytes> frames;
    std::string message;
    std::string frame;
    while (in >> message >> frame) {
        frames[message] = from_hex(frame);
    }
    return frames;
}

void write_golden() {
    std::ofstream minor0(golden_path("minor0.txt"));
    std::ofstream minor1(golden_path("minor1_unknown_fields.txt"));
    for (const auto& [type, sample] : sample_bodies()) {
        minor0 << sample.name << " " << hex(frame_of(type, sample.body)) << "\n";
        minor1 << sample.name << " " << hex(frame_of(type, with_unknown_fields(sample.body)))
               << "\n";
    }
    std::ofstream added(golden_path("added_fields.txt"));
    for (const auto& [type, sample] : added_bodies()) {
        added << sample.name << " " << hex(frame_of(type, sample.body)) << "\n";
    }
}

void expect_as_committed(const char* name, const std::map<uint16_t, Sample>& all) {
    const auto golden = read_golden(name);
    EXPECT_EQ(golden.size(), all.size());
    for (const auto& [type, sample] : all) {
        ASSERT_TRUE(golden.contains(sample.name)) << sample.name;
        const Bytes& frame = golden.at(sample.name);
        EXPECT_EQ(hex(frame), hex(frame_of(type, sample.body))) << sample.name;
        Bytes again;
        EXPECT_TRUE(samples::reencode(type, std::span(frame).subspan(kFrameHeaderBytes), &again));
        EXPECT_EQ(again, sample.body) << sample.name;
    }
}

// To add a message: KVSTORE_WRITE_GOLDEN=1 messages_test, then look at the diff. An existing line
// of minor0.txt must never change: a field that is added to a message stands in added_fields.txt.
TEST(Golden, Minor0EncodesAndDecodesAsCommitted) {
    if (std::getenv("KVSTORE_WRITE_GOLDEN") != nullptr) {
        write_golden();
    }
    expect_as_committed("minor0.txt", sample_bodies());
}

TEST(Golden, AddedFieldsEncodeAndDecodeAsCommitted) {
    expect_as_committed("added_fields.txt", added_bodies());
}

TEST(Golden, UnknownFieldsOfANewerMinorAreSkipped) {
    const auto golden = read_golden("minor1_unknown_fields.txt");
    const auto all = sample_bodies();
    EXPECT_EQ(golden.size(), all.size());
    for (const auto& [type, sample] : all) {
        ASSERT_TRUE(golden.contains(sample.name)) << sample.name;
        const Bytes& frame = golden.at(sample.name);
        FrameHeader header;
        ASSERT_TRUE(decode_header(std::span(frame).first<kFrameHeaderBytes>(), &header).ok());
        EXPECT_EQ(header.type, type);
        Bytes again;
        ASSERT_TRUE(samples::reencode(type, std::span(frame).subspan(kFrameHeaderBytes), &again))
            << sample.name;
        EXPECT_EQ(again, sample.body) << sample.name;
    }
}

// ---------------------------------------------------------------------------------- mutations

void mutate(Bytes& bytes, std::mt19937_64& random) {
    const auto below = [&random](size_t bound) { return static_cast<size_t>(random() % bound); };
    for (size_t count = 1 + below(4); count > 0; --count) {
        if (bytes.empty()) {
            bytes.push_back(static_cast<uint8_t>(random()));
        }
        const size_t at = below(bytes.size());
        switch (below(6)) {
            case 0:
                bytes[at] = static_cast<uint8_t>(random());
                break;
            case 1:
                bytes[at] ^= static_cast<uint8_t>(1u << below(8));
                break;
            case 2:
                bytes.resize(at);
                break;
            case 3:
                bytes.insert(bytes.begin() + static_cast<long>(at), bytes[below(bytes.size())]);
                break;
            case 4:
                bytes.erase(bytes.begin() + static_cast<long>(at));
                break;
            default:
                for (size_t i = at; i < std::min(at + 4, bytes.size()); ++i) {
                    bytes[i] = 0xFF;
                }
        }
    }
}

TEST(Messages, MutatedBodiesNeverCrash) {
    const uint64_t seed = 20240501;
    std::mt19937_64 random(seed);
    std::vector<std::pair<uint16_t, Bytes>> bodies;
    for (const auto& [type, sample] : sample_bodies()) {
        bodies.emplace_back(type, sample.body);
    }
    size_t accepted = 0;
    for (int round = 0; round < 100'000; ++round) {
        const auto& [type, body] = bodies[random() % bodies.size()];
        Bytes mutated = body;
        mutate(mutated, random);
        Bytes again;
        if (samples::reencode(type, mutated, &again)) {
            ++accepted;
            Bytes stable;  // what was accepted is well formed
            ASSERT_TRUE(samples::reencode(type, again, &stable))
                << "seed " << seed << " round " << round;
            ASSERT_EQ(stable, again) << "seed " << seed << " round " << round;
        }
    }
    std::printf("seed %llu: %zu of 100000 mutations accepted\n",
                static_cast<unsigned long long>(seed), accepted);
    EXPECT_GT(accepted, 0u);
}

}  // namespace
}  // namespace kvstore
