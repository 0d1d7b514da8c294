// Where one write stands on its node, and what moves it on.
//
//               committed    granted      refused   published    queued     link lost
//   kClaiming   kFilled      kGranted     kRefused  -            -          kRefused
//   kGranted    kPublishing  -            -         -            -          kRefused
//   kRefused    kEnded       -            -         -            -          -
//   kFilled     -            kPublishing  kEnded    -            -          kEnded
//   kPublishing -            -            -         kAnnouncing  -          -
//   kAnnouncing -            -            -         -            kAnswered  kEnded
//   kAnswered   -            -            -         -            -          kEnded
//
// A dash: the event changes nothing. A write that is being published is in the store's hands: it
// does not notice that the link is lost before its announce does. The deadline ends a write at
// every stage but that one and kAnswered, an abort or a closed connection only before them. What
// ends at kAnswered stays readable, unless the master has refused it.
#pragma once

#include <cstdint>

namespace kvstore {

enum class PutStage : uint8_t {
    kClaiming,    // the writer is copying, the master has not answered the claim
    kGranted,     // the writer is copying, the key is its own
    kRefused,     // the writer is copying, in vain: its block is freed when it has stopped
    kFilled,      // the bytes are there, the master has not answered the claim
    kPublishing,  // the store makes it readable here
    kAnnouncing,  // readable here; the master has not acknowledged it
    kAnswered,    // the same, but the writer knows: the first of its key, its announce queued
    kEnded,
};
enum class PutEvent : uint8_t { kCommitted, kGranted, kRefused, kPublished, kQueued, kLinkLost };

constexpr PutStage next_stage(PutStage stage, PutEvent event) {
    using enum PutStage;
    switch (event) {
        case PutEvent::kCommitted:
            return stage == kClaiming  ? kFilled
                   : stage == kGranted ? kPublishing
                   : stage == kRefused ? kEnded
                                       : stage;
        case PutEvent::kGranted:
            return stage == kClaiming ? kGranted : stage == kFilled ? kPublishing : stage;
        case PutEvent::kRefused:
            return stage == kClaiming ? kRefused : stage == kFilled ? kEnded : stage;
        case PutEvent::kPublished:
            return stage == kPublishing ? kAnnouncing : stage;
        case PutEvent::kQueued:
            return stage == kAnnouncing ? kAnswered : stage;
        case PutEvent::kLinkLost:
            return stage == kClaiming || stage == kGranted                          ? kRefused
                   : stage == kFilled || stage == kAnnouncing || stage == kAnswered ? kEnded
                                                                                    : stage;
    }
    return stage;
}

// By its deadline.
constexpr bool may_end(PutStage stage) {
    return stage != PutStage::kPublishing && stage != PutStage::kAnswered;
}

}  // namespace kvstore
