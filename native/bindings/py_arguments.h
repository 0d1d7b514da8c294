// Python arguments as the client core takes them, without a copy: keys as UTF-8 inside the str
// objects, buffers through the buffer protocol, pointers as integers. Everything here needs the
// GIL, and keeps what it points into alive until it goes.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/pieces.h"
#include "gpu/page_moves.h"

namespace kvstore {

// One or many keys. Raises InvalidArgumentError unless each is a str of 1 to 1,024 bytes of UTF-8.
class KeyArguments {
  public:
    static KeyArguments one(nanobind::handle key);
    static KeyArguments many(nanobind::handle keys);  // a list, tuple or other sequence of str
    size_t size() const { return keys_.size(); }
    const std::vector<std::string_view>& keys() const { return keys_; }

  private:
    KeyArguments() = default;
    nanobind::object owner_;  // a str, or a tuple that nobody can shorten meanwhile
    std::vector<std::string_view> keys_;
};

// The name of an object's class, for errors.
std::string class_name(nanobind::handle object);

// A str as UTF-8; `what` names the argument in the error.
std::string_view utf8_of(nanobind::handle text, const char* what);

// C-contiguous buffers, locked for as long as this lives.
class BufferArguments {
  public:
    BufferArguments(nanobind::handle one, bool writable);
    BufferArguments(nanobind::handle many, bool writable, size_t expected);
    ~BufferArguments();
    BufferArguments(const BufferArguments&) = delete;
    BufferArguments& operator=(const BufferArguments&) = delete;
    const std::vector<Pieces>& pieces() const { return pieces_; }

  private:
    void add(nanobind::handle object, bool writable, const char* what, long row);

    std::vector<Py_buffer> buffers_;
    std::vector<Pieces> pieces_;
};

// Two lists that belong to `expected` keys: of an address and a size each, or, for an object in
// several pieces, of a list of addresses and a list of as many sizes.
class PointerArguments {
  public:
    PointerArguments(nanobind::handle pointers, nanobind::handle sizes, size_t expected);
    const std::vector<Pieces>& pieces() const { return pieces_; }

  private:
    std::vector<std::vector<iovec>> lists_;  // of the objects in several pieces
    std::vector<Pieces> pieces_;
};

// Pages of a pool: where each page's pieces lie. `pool` is what PagePool.grid() gives: buffers,
// bytes between pages, bytes of a piece, layers and tokens of a buffer, pages.
class PageArguments {
  public:
    PageArguments(nanobind::handle pool, nanobind::handle page_ids, size_t expected);
    const std::vector<Pieces>& pieces() const { return pieces_; }
    const std::shared_ptr<const PageGrid>& grid() const { return grid_; }

  private:
    std::shared_ptr<const PageGrid> grid_;
    std::vector<iovec> list_;  // of all pages
    std::vector<Pieces> pieces_;
};

}  // namespace kvstore
