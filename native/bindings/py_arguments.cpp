// Walking Python lists with the C API: one pass, no std::string, no Python call per element.
#include "py_arguments.h"

#include <nanobind/stl/string.h>

#include <climits>
#include <cstring>
#include <string>
#include <utility>

#include "base/limits.h"
#include "bindings.h"

namespace nb = nanobind;

namespace kvstore {
namespace {

[[noreturn]] void invalid(const std::string& sentence) {
    PyErr_Clear();  // the C API's own error, which ours replaces
    raise_status(Status(Code::kInvalidArgument, sentence));
}

std::string at(const char* what, long row) {
    return row < 0 ? std::string(what) : std::string(what) + "[" + std::to_string(row) + "]";
}

std::string_view key_of(nb::handle key, long row) {
    const char* what = row < 0 ? "key" : "keys";
    if (!PyUnicode_Check(key.ptr())) {
        invalid(at(what, row) + " must be str, not " + class_name(key));
    }
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(key.ptr(), &size);
    if (text == nullptr) {
        invalid(at(what, row) + " is not valid UTF-8 (a lone surrogate)");
    }
    if (size == 0) {
        invalid(at(what, row) + " is empty; a key has 1 to 1024 bytes");
    }
    if (static_cast<size_t>(size) > limits::kMaxKeyBytes) {
        invalid(at(what, row) + " has " + std::to_string(size) +
                " bytes of UTF-8; a key has at most 1024");
    }
    return {text, static_cast<size_t>(size)};
}

// A tuple of the sequence's items: another thread may change a list while the GIL is released.
nb::object as_tuple(nb::handle sequence, const char* what) {
    if (PyUnicode_Check(sequence.ptr()) || PyBytes_Check(sequence.ptr()) ||
        PySequence_Check(sequence.ptr()) == 0) {
        invalid(std::string(what) + " must be a list or tuple, not " + class_name(sequence));
    }
    PyObject* tuple = PySequence_Tuple(sequence.ptr());
    if (tuple == nullptr) {
        throw nb::python_error();
    }
    return nb::steal(tuple);
}

void check_count(const char* what, size_t have, size_t expected) {
    if (have != expected) {
        invalid(std::string(what) + " has " + std::to_string(have) + " items for " +
                std::to_string(expected) + " keys");
    }
}

uint64_t number_of(nb::handle value, const char* what, long row) {
    if (!PyLong_Check(value.ptr())) {
        invalid(at(what, row) + " must be int, not " + class_name(value));
    }
    const unsigned long long number = PyLong_AsUnsignedLongLong(value.ptr());
    if (PyErr_Occurred() != nullptr) {
        invalid(at(what, row) + " must be 0 or more and fit 64 bits");
    }
    return number;
}

iovec piece_of(nb::handle address, nb::handle size, long row) {
    const uint64_t where = number_of(address, "pointers", row);
    const uint64_t length = number_of(size, "sizes", row);
    if (where == 0 && length != 0) {
        invalid(at("pointers", row) + " is null");
    }
    return {reinterpret_cast<void*>(where), length};
}

// Whether a format of PEP 3118 describes plain data: no object, pointer, function or C string.
bool is_plain(const char* format) {
    bool in_name = false;  // :of a field:
    for (; *format != 0; ++format) {
        if (*format == ':') {
            in_name = !in_name;
        } else if (!in_name && (std::strchr("O&XPz", *format) != nullptr ||
                                (*format == 'Z' && std::strchr("fdg", format[1]) == nullptr))) {
            return false;
        }
    }
    return true;
}

// An attribute by its interned name; invalid when there is none.
nb::object attribute(nb::handle object, PyObject* name) {
    PyObject* found = PyObject_GetAttr(object.ptr(), name);
    if (found == nullptr) {
        PyErr_Clear();
    }
    return nb::steal(found);
}

bool has_plain_format(nb::handle object) {
    Py_buffer buffer;
    if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_FULL_RO) != 0) {
        PyErr_Clear();
        return true;  // no buffer, or one without a format
    }
    const bool plain = buffer.format == nullptr || is_plain(buffer.format);
    PyBuffer_Release(&buffer);
    return plain;
}

// Bytes of an address would be kept as if they were data, and a get would write over addresses.
bool holds_plain_data(nb::handle object) {
    if (PyBytes_Check(object.ptr()) || PyByteArray_Check(object.ptr())) {
        return true;
    }
    if (PyMemoryView_Check(object.ptr())) {
        return has_plain_format(object);
    }
    // NumPy's own answer first: a format cannot tell of all its types (bfloat16, datetime64).
    static PyObject* const kDtype = PyUnicode_InternFromString("dtype");
    static PyObject* const kHasObject = PyUnicode_InternFromString("hasobject");
    static PyObject* last_plain = nullptr;  // a type of arrays, which never changes; kept
    if (const nb::object dtype = attribute(object, kDtype); dtype.is_valid()) {
        if (dtype.ptr() == last_plain) {
            return true;
        }
        if (const nb::object objects = attribute(dtype, kHasObject); objects.is_valid()) {
            if (objects.ptr() != Py_False) {
                return false;
            }
            Py_XDECREF(std::exchange(last_plain, nb::object(dtype).release().ptr()));
            return true;
        }
    }
    return has_plain_format(object);
}

}  // namespace

std::string class_name(nb::handle object) {
    return nb::cast<std::string>(object.type().attr("__name__"));
}

KeyArguments KeyArguments::one(nb::handle key) {
    KeyArguments arguments;
    arguments.keys_.push_back(key_of(key, -1));
    arguments.owner_ = nb::borrow(key);
    return arguments;
}

KeyArguments KeyArguments::many(nb::handle keys) {
    KeyArguments arguments;
    arguments.owner_ = as_tuple(keys, "keys");
    PyObject* tuple = arguments.owner_.ptr();
    const Py_ssize_t count = NB_TUPLE_GET_SIZE(tuple);
    arguments.keys_.reserve(static_cast<size_t>(count));
    for (Py_ssize_t row = 0; row < count; ++row) {
        arguments.keys_.push_back(key_of(NB_TUPLE_GET_ITEM(tuple, row), row));
    }
    return arguments;
}

std::string_view utf8_of(nb::handle text, const char* what) {
    if (!PyUnicode_Check(text.ptr())) {
        invalid(std::string(what) + " must be str, not " + class_name(text));
    }
    Py_ssize_t size = 0;
    const char* bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (bytes == nullptr) {
        invalid(std::string(what) + " is not valid UTF-8 (a lone surrogate)");
    }
    return {bytes, static_cast<size_t>(size)};
}

BufferArguments::BufferArguments(nb::handle one, bool writable) {
    buffers_.reserve(1);
    add(one, writable, "buffer", -1);
}

BufferArguments::BufferArguments(nb::handle many, bool writable, size_t expected) {
    const nb::object tuple = as_tuple(many, "buffers");
    const Py_ssize_t count = NB_TUPLE_GET_SIZE(tuple.ptr());
    check_count("buffers", static_cast<size_t>(count), expected);
    buffers_.reserve(expected);
    pieces_.reserve(expected);
    try {
        for (Py_ssize_t row = 0; row < count; ++row) {
            add(NB_TUPLE_GET_ITEM(tuple.ptr(), row), writable, "buffers", row);
        }
    } catch (...) {  // a destructor does not run after its constructor has thrown
        for (Py_buffer& buffer : buffers_) {
            PyBuffer_Release(&buffer);
        }
        throw;
    }
}

BufferArguments::~BufferArguments() {
    for (Py_buffer& buffer : buffers_) {
        PyBuffer_Release(&buffer);
    }
}

void BufferArguments::add(nb::handle object, bool writable, const char* what, long row) {
    if (!holds_plain_data(object)) {
        invalid(at(what, row) +
                " holds Python objects or pointers, which mean nothing elsewhere; "
                "this " +
                class_name(object) + " must be converted to bytes first");
    }
    Py_buffer buffer;
    const int flags = writable ? PyBUF_WRITABLE : PyBUF_SIMPLE;
    if (PyObject_GetBuffer(object.ptr(), &buffer, flags) != 0) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            invalid(at(what, row) + " must offer the buffer protocol; " + class_name(object) +
                    " does not");
        }
        invalid(at(what, row) + " must be C-contiguous" + (writable ? " and writable" : "") +
                "; this " + class_name(object) + " is not");
    }
    buffers_.push_back(buffer);
    pieces_.emplace_back(buffer.buf, static_cast<uint64_t>(buffer.len));
}

PointerArguments::PointerArguments(nb::handle pointers, nb::handle sizes, size_t expected) {
    const nb::object addresses = as_tuple(pointers, "pointers");
    const nb::object lengths = as_tuple(sizes, "sizes");
    check_count("pointers", static_cast<size_t>(NB_TUPLE_GET_SIZE(addresses.ptr())), expected);
    check_count("sizes", static_cast<size_t>(NB_TUPLE_GET_SIZE(lengths.ptr())), expected);
    pieces_.reserve(expected);
    for (size_t i = 0; i < expected; ++i) {
        const auto row = static_cast<long>(i);
        const nb::handle address = NB_TUPLE_GET_ITEM(addresses.ptr(), static_cast<Py_ssize_t>(i));
        const nb::handle size = NB_TUPLE_GET_ITEM(lengths.ptr(), static_cast<Py_ssize_t>(i));
        if (PyLong_Check(address.ptr())) {
            const iovec one = piece_of(address, size, row);
            pieces_.emplace_back(one.iov_base, one.iov_len);
            continue;
        }
        const nb::object parts = as_tuple(address, at("pointers", row).c_str());
        const nb::object part_sizes = as_tuple(size, at("sizes", row).c_str());
        const auto count = static_cast<size_t>(NB_TUPLE_GET_SIZE(parts.ptr()));
        if (count == 0 || count != static_cast<size_t>(NB_TUPLE_GET_SIZE(part_sizes.ptr()))) {
            invalid(at("pointers", row) + " and " + at("sizes", row) +
                    " must be lists of the same length, 1 or more");
        }
        std::vector<iovec>& list = lists_.emplace_back();
        uint64_t room = UINT64_MAX;
        for (Py_ssize_t part = 0; part < static_cast<Py_ssize_t>(count); ++part) {
            list.push_back(piece_of(NB_TUPLE_GET_ITEM(parts.ptr(), part),
                                    NB_TUPLE_GET_ITEM(part_sizes.ptr(), part), row));
            if (list.back().iov_len > room) {
                invalid(at("sizes", row) + " sum up to more than 64 bits");
            }
            room -= list.back().iov_len;
        }
        pieces_.emplace_back(std::span<const iovec>(list));
    }
}

PageArguments::PageArguments(nb::handle pool, nb::handle page_ids, size_t expected) {
    constexpr uint64_t kMostPieces = 1u << 26;  // 1 GiB of addresses
    auto grid = std::make_shared<PageGrid>();
    const auto number = [&](size_t i) { return nb::cast<uint64_t>(pool[i]); };
    for (const nb::handle buffer : pool[0]) {
        grid->buffers.push_back(nb::cast<uint64_t>(buffer));
    }
    grid->page_stride = number(1);
    grid->piece_bytes = number(2);
    grid->layers = static_cast<uint32_t>(number(3));
    grid->tokens = static_cast<uint32_t>(number(4));
    const uint64_t pages = number(5);
    const nb::object ids = as_tuple(page_ids, "page_ids");
    check_count("page_ids", static_cast<size_t>(NB_TUPLE_GET_SIZE(ids.ptr())), expected);
    const uint64_t each = grid->pieces();
    // PagePool has checked that no address overflows.
    if (expected > 0 && each > kMostPieces / expected) {
        invalid("page_ids names pages with more than " + std::to_string(kMostPieces) +
                " pieces in one call");
    }
    list_.reserve(expected * each);
    for (size_t row = 0; row < expected; ++row) {
        const nb::handle id = NB_TUPLE_GET_ITEM(ids.ptr(), static_cast<Py_ssize_t>(row));
        PyObject* const index = PyNumber_Index(id.ptr());
        const unsigned long long page =
            index == nullptr ? ULLONG_MAX : PyLong_AsUnsignedLongLong(index);
        Py_XDECREF(index);
        PyErr_Clear();
        if (page >= pages) {
            invalid(at("page_ids", static_cast<long>(row)) + " must be a whole number from 0 to " +
                    std::to_string(pages - 1));
        }
        grid->add_pieces(page, &list_);
    }
    for (size_t row = 0; row < expected; ++row) {
        pieces_.emplace_back(std::span(list_).subspan(row * each, each));
    }
    grid_ = std::move(grid);
}

}  // namespace kvstore
