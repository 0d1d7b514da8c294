// Bodies of frames: tagged fields, columns as views, and the two visitors that encode and decode a
// message from its one list of fields.
//
//   body  := field*
//   field := tag u16, length u32, length bytes
//
// Why tags: builds of neighbouring versions talk to each other while a cluster is upgraded. A tag
// that the receiver does not know is skipped by its length, and a field that the sender does not
// know is absent and has its default; so a field can be added without asking anybody. That a field
// with its default is left out makes both cases one. A tag that comes twice is kProtocolError: two
// builds might take different ones.
//
// Why columns: a batch of n rows is a few fields with n values each, not n records. A column of
// numbers is checked by one division and read in place, and a column that a sender leaves out costs
// nothing. After decoding, all columns must have as many rows as the message, or none.
//
// Why bounds come first: FieldReader checks every length against the body, and every count, text
// and enumerator against its limit, before the message's reader sees it. Behind decode_message
// nothing has to be checked again, and nothing was allocated: a decoded message views its body,
// which has to outlive it.
//
// Every message is a struct with `static void fields(auto& m, auto& v)`, which names each field
// once for both directions. To encode, its columns view the caller's arrays.
#pragma once

#include <array>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/limits.h"
#include "base/status.h"

namespace kvstore {

static_assert(std::endian::native == std::endian::little, "columns are viewed in place");

// A column of packed little-endian numbers, at any alignment: fields follow each other without
// padding. Reading behind its end gives 0, which is also what an absent (optional) column holds in
// every row.
template <class T>
class Column {
  public:
    using Value = T;
    Column() = default;
    Column(std::span<const T> values)
        : data_(reinterpret_cast<const uint8_t*>(values.data())), count_(values.size()) {}
    Column(const std::vector<T>& values) : Column(std::span<const T>(values)) {}
    Column(std::vector<T>&&) = delete;  // a view of a temporary
    static Column from_bytes(std::span<const uint8_t> bytes) {
        Column column;
        column.data_ = bytes.data();
        column.count_ = bytes.size() / sizeof(T);
        return column;
    }
    size_t size() const { return count_; }
    bool empty() const { return count_ == 0; }
    T operator[](size_t row) const {
        T value{};
        if (row < count_) {
            std::memcpy(&value, data_ + row * sizeof(T), sizeof(T));
        }
        return value;
    }
    std::span<const uint8_t> bytes() const { return {data_, count_ * sizeof(T)}; }

    class Iterator {
      public:
        using value_type = T;
        using difference_type = std::ptrdiff_t;
        Iterator() = default;
        Iterator(const Column* column, size_t row) : column_(column), row_(row) {}
        T operator*() const { return (*column_)[row_]; }
        Iterator& operator++() { return ++row_, *this; }
        Iterator operator++(int) { return {column_, row_++}; }
        bool operator==(const Iterator& other) const { return row_ == other.row_; }

      private:
        const Column* column_ = nullptr;
        size_t row_ = 0;
    };
    Iterator begin() const { return {this, 0}; }
    Iterator end() const { return {this, count_}; }

  private:
    const uint8_t* data_ = nullptr;
    size_t count_ = 0;
};
using U64Column = Column<uint64_t>;
using U32Column = Column<uint32_t>;
using I32Column = Column<int32_t>;
using U8Column = Column<uint8_t>;

// A column of short strings (keys, names, endpoints). On the wire:
//
//   count u32, count × end offset u32 (from the start of the text), text
//
// Offsets in place of lengths: any row is found without walking those before it. Views either an
// array of string_views (to encode) or a body (after decoding). Reading behind its end gives an
// empty string.
class KeyList {
  public:
    KeyList() = default;
    KeyList(std::span<const std::string_view> keys) : views_(keys.data()), count_(keys.size()) {}
    KeyList(const std::vector<std::string_view>& keys)
        : KeyList(std::span<const std::string_view>(keys)) {}
    KeyList(std::vector<std::string_view>&&) = delete;  // a view of a temporary
    KeyList(const std::string_view& one) : views_(&one), count_(1) {}
    KeyList(std::string_view&&) = delete;
    // Checks count and every offset against `max_count`, kMaxKeyBytes and the bytes there are.
    static bool from_bytes(std::span<const uint8_t> bytes, size_t max_count, KeyList* out);

    size_t size() const { return count_; }
    bool empty() const { return count_ == 0; }
    std::string_view operator[](size_t row) const;
    // Rows [first, first + count), for splitting a batch.
    KeyList slice(size_t first, size_t count) const;
    size_t encoded_bytes() const;
    void encode_to(uint8_t* out) const;  // exactly encoded_bytes()

    class Iterator {
      public:
        using value_type = std::string_view;
        using difference_type = std::ptrdiff_t;
        Iterator() = default;
        Iterator(const KeyList* list, size_t row) : list_(list), row_(row) {}
        std::string_view operator*() const { return (*list_)[row_]; }
        Iterator& operator++() { return ++row_, *this; }
        Iterator operator++(int) { return {list_, row_++}; }
        bool operator==(const Iterator& other) const { return row_ == other.row_; }

      private:
        const KeyList* list_ = nullptr;
        size_t row_ = 0;
    };
    Iterator begin() const { return {this, 0}; }
    Iterator end() const { return {this, count_}; }

  private:
    uint32_t end_offset(size_t row) const;

    const std::string_view* views_ = nullptr;  // when encoding
    const uint8_t* ends_ = nullptr;            // when decoded: u32 end offsets from first_
    const uint8_t* text_ = nullptr;
    size_t first_ = 0;  // row of ends_ that is row 0
    size_t count_ = 0;
};

// Appends tagged fields. A field that holds its default (0, empty) is left out.
class FieldWriter {
  public:
    explicit FieldWriter(std::vector<uint8_t>& out) : out_(out) {}
    template <class T>
    void number(uint16_t tag, const T& value, [[maybe_unused]] uint64_t max = UINT64_MAX) {
        if (value != T{}) {
            put(tag, &value, sizeof(T));
        }
    }
    void timeout(uint16_t tag, uint32_t ms) { number(tag, ms); }
    void text(uint16_t tag, std::string_view value, size_t) {
        put_if(tag, value.data(), value.size());
    }
    template <size_t N>
    void bytes(uint16_t tag, const std::array<uint8_t, N>& value) {
        if (value != std::array<uint8_t, N>{}) {
            put(tag, value.data(), N);
        }
    }
    template <class T>
    void list(uint16_t tag, const Column<T>& column, size_t) {
        put_if(tag, column.bytes().data(), column.bytes().size());
    }
    void list(uint16_t tag, const KeyList& keys, size_t);
    void rows(uint16_t tag, const auto& column) { list(tag, column, 0); }
    void row(uint16_t tag, const auto& column, uint64_t = 0) { list(tag, column, 0); }

  private:
    void put(uint16_t tag, const void* data, size_t size);
    void put_if(uint16_t tag, const void* data, size_t size) {
        size != 0 ? put(tag, data, size) : void();
    }
    uint8_t* grow(uint16_t tag, size_t size);
    std::vector<uint8_t>& out_;
};

// Splits a body into its fields (once, bounds checked), then hands each to the message.
class FieldReader {
  public:
    // Greater tags are unknown to every message. Low, so that fields_ is a small array.
    static constexpr uint16_t kMaxTag = 47;
    explicit FieldReader(std::span<const uint8_t> body) { split(body); }

    // `max` bounds the value (the last enumerator of an enum).
    template <class T>
    void number(uint16_t tag, T& value, uint64_t max = UINT64_MAX) {
        value = T{};
        if (!present(tag)) {
            return;
        }
        const std::span<const uint8_t> raw = at(tag);
        if (raw.size() != sizeof(T)) {
            return fail(tag, "has a wrong length");
        }
        uint64_t wide = 0;
        std::memcpy(&wide, raw.data(), sizeof(T));
        if (wide > max || (std::is_same_v<T, bool> && wide > 1)) {
            return fail(tag, "is out of range");
        }
        std::memcpy(&value, raw.data(), sizeof(T));
    }
    void timeout(uint16_t tag, uint32_t& ms);  // capped at limits::kMaxTimeoutMs
    void text(uint16_t tag, std::string_view& value, size_t max_bytes);
    template <size_t N>
    void bytes(uint16_t tag, std::array<uint8_t, N>& value) {
        value = {};
        if (present(tag)) {
            at(tag).size() == N ? void(std::memcpy(value.data(), at(tag).data(), N))
                                : fail(tag, "has a wrong length");
        }
    }
    template <class T>
    void list(uint16_t tag, Column<T>& column, size_t max_count) {
        column = {};
        const std::span<const uint8_t> raw = at(tag);
        if (raw.size() % sizeof(T) != 0 || raw.size() / sizeof(T) > max_count) {
            return fail(tag, "has a wrong length");
        }
        column = Column<T>::from_bytes(raw);
    }
    void list(uint16_t tag, KeyList& keys, size_t max_count);
    // The column that says how many rows the message has, at most kMaxBatchKeys …
    void rows(uint16_t tag, auto& column) {
        list(tag, column, limits::kMaxBatchKeys);
        rows_ = column.size();
    }
    // … and a column that has as many rows, or is absent. `max` bounds every value when not 0.
    template <class T>
    void row(uint16_t tag, Column<T>& column, uint64_t max = 0) {
        list(tag, column, limits::kMaxBatchKeys);
        check_rows(tag, column.size());
        if (max != 0) {
            for (const T value : column) {
                if (static_cast<uint64_t>(value) > max) {
                    return fail(tag, "has a value out of range");
                }
            }
        }
    }
    void row(uint16_t tag, KeyList& keys, uint64_t = 0) {
        list(tag, keys, limits::kMaxBatchKeys);
        check_rows(tag, keys.size());
    }
    void fail(uint16_t tag, const char* what);
    Status status() const { return status_; }

  private:
    void split(std::span<const uint8_t> body);
    bool present(uint16_t tag) const { return fields_[tag].data() != nullptr; }
    std::span<const uint8_t> at(uint16_t tag) const { return fields_[tag]; }
    void check_rows(uint16_t tag, size_t count) {
        if (count != 0 && count != rows_) {
            fail(tag, "has another number of rows");
        }
    }
    std::array<std::span<const uint8_t>, kMaxTag + 1> fields_{};
    size_t rows_ = 0;
    Status status_;
};

// Appends the body of `message` to `out` (which the caller clears and reuses).
template <class M>
void encode_message(const M& message, std::vector<uint8_t>& out) {
    FieldWriter writer(out);
    M::fields(message, writer);
}

// Fills `message` with views into `body`. On an error the message must not be used.
template <class M>
Status decode_message(std::span<const uint8_t> body, M* message) {
    FieldReader reader(body);
    if (reader.status().ok()) {
        M::fields(*message, reader);
    }
    if constexpr (requires { message->consistent(); }) {
        if (reader.status().ok() && !message->consistent()) {
            return Status(Code::kProtocolError, "columns disagree");
        }
    }
    return reader.status();
}

}  // namespace kvstore
