// Tagged fields: the bounds checks of decoding and the appending of encoding.
//
// Bodies come from anywhere: the order of the checks below is what keeps them from reading past the
// end. native/fuzz/fuzz_messages.cpp attacks it.
#include "wire/fields.h"

#include <algorithm>
#include <string>

namespace kvstore {
namespace {

constexpr size_t kFieldHeaderBytes = 6;  // u16 tag, u32 length

template <class T>
T load(const uint8_t* data) {
    T value;
    std::memcpy(&value, data, sizeof(T));
    return value;
}

}  // namespace

bool KeyList::from_bytes(std::span<const uint8_t> bytes, size_t max_count, KeyList* out) {
    *out = {};
    if (bytes.size() < sizeof(uint32_t)) {
        return bytes.empty();
    }
    // The count is bounded by the limit and by the bytes that its offsets take; then it can be
    // multiplied without overflow.
    const size_t count = load<uint32_t>(bytes.data());
    if (count > max_count || (bytes.size() - sizeof(uint32_t)) / sizeof(uint32_t) < count) {
        return false;
    }
    const uint8_t* ends = bytes.data() + sizeof(uint32_t);
    const size_t text_bytes = bytes.size() - sizeof(uint32_t) * (count + 1);
    // Ends that never fall and finish exactly at the text's end lie inside it, each of them.
    size_t previous = 0;
    for (size_t row = 0; row < count; ++row) {
        const size_t end = load<uint32_t>(ends + row * sizeof(uint32_t));
        if (end < previous || end - previous > limits::kMaxKeyBytes) {
            return false;
        }
        previous = end;
    }
    if (previous != text_bytes) {
        return false;
    }
    out->ends_ = ends;
    out->text_ = ends + count * sizeof(uint32_t);
    out->count_ = count;
    return true;
}

uint32_t KeyList::end_offset(size_t row) const {
    return load<uint32_t>(ends_ + row * sizeof(uint32_t));
}

std::string_view KeyList::operator[](size_t row) const {
    if (row >= count_) {
        return {};
    }
    if (views_ != nullptr) {
        return views_[row];
    }
    const size_t at = first_ + row;
    const uint32_t begin = at == 0 ? 0 : end_offset(at - 1);
    return {reinterpret_cast<const char*>(text_) + begin, end_offset(at) - begin};
}

KeyList KeyList::slice(size_t first, size_t count) const {
    KeyList part = *this;
    first = std::min(first, count_);
    part.count_ = std::min(count, count_ - first);
    if (views_ != nullptr) {
        part.views_ += first;
    } else {
        part.first_ += first;
    }
    return part;
}

size_t KeyList::encoded_bytes() const {
    size_t total = sizeof(uint32_t) * (count_ + 1);
    for (size_t row = 0; row < count_; ++row) {
        total += (*this)[row].size();
    }
    return total;
}

void KeyList::encode_to(uint8_t* out) const {
    const auto count = static_cast<uint32_t>(count_);
    std::memcpy(out, &count, sizeof count);
    uint8_t* ends = out + sizeof count;
    uint8_t* text = ends + count_ * sizeof(uint32_t);
    uint32_t end = 0;
    for (size_t row = 0; row < count_; ++row) {
        const std::string_view key = (*this)[row];
        if (!key.empty()) {
            std::memcpy(text + end, key.data(), key.size());
        }
        end += static_cast<uint32_t>(key.size());
        std::memcpy(ends + row * sizeof(uint32_t), &end, sizeof end);
    }
}

uint8_t* FieldWriter::grow(uint16_t tag, size_t size) {
    const size_t at = out_.size();
    out_.resize(at + kFieldHeaderBytes + size);
    const auto length = static_cast<uint32_t>(size);
    std::memcpy(out_.data() + at, &tag, sizeof tag);
    std::memcpy(out_.data() + at + sizeof tag, &length, sizeof length);
    return out_.data() + at + kFieldHeaderBytes;
}

void FieldWriter::put(uint16_t tag, const void* data, size_t size) {
    std::memcpy(grow(tag, size), data, size);
}

void FieldWriter::list(uint16_t tag, const KeyList& keys, size_t) {
    if (!keys.empty()) {
        keys.encode_to(grow(tag, keys.encoded_bytes()));
    }
}

void FieldReader::split(std::span<const uint8_t> body) {
    while (!body.empty()) {
        if (body.size() < kFieldHeaderBytes) {
            return fail(0, "is cut off");
        }
        const auto tag = load<uint16_t>(body.data());
        const size_t length = load<uint32_t>(body.data() + sizeof tag);
        body = body.subspan(kFieldHeaderBytes);
        if (length > body.size()) {
            return fail(tag, "is longer than its frame");
        }
        if (tag <= kMaxTag) {  // else from a newer build: skipped
            if (present(tag)) {
                return fail(tag, "comes twice");
            }
            fields_[tag] = body.first(length);
        }
        body = body.subspan(length);
    }
}

// A longer time-out is no mistake of the peer's: it is shortened, not refused.
void FieldReader::timeout(uint16_t tag, uint32_t& ms) {
    number(tag, ms);
    ms = std::min(ms, limits::kMaxTimeoutMs);
}

void FieldReader::text(uint16_t tag, std::string_view& value, size_t max_bytes) {
    const std::span<const uint8_t> raw = at(tag);
    value = {};
    if (raw.size() > max_bytes) {
        return fail(tag, "is too long");
    }
    value = {reinterpret_cast<const char*>(raw.data()), raw.size()};
}

void FieldReader::list(uint16_t tag, KeyList& keys, size_t max_count) {
    if (!KeyList::from_bytes(at(tag), max_count, &keys)) {
        fail(tag, "is not a list of strings within the limits");
    }
}

// The first failure is the one that is told.
void FieldReader::fail(uint16_t tag, const char* what) {
    if (status_.ok()) {
        status_ = Status(Code::kProtocolError, "field " + std::to_string(tag) + " " + what);
    }
}

}  // namespace kvstore
