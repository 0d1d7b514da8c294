// Fuzzes what a node reads of its clients' slots. The first byte of an input says what the others
// are, patches {offset (2 bytes, little-endian), length (1), bytes}: 0 of the file of a slot that
// is in use, 1 of the `clients` file and 2 of a slot's file that an earlier life of the node has
// left. Whatever stands there, the scans end, and a slot's ring gives no more than it holds.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "index/client_slots.h"
#include "index/slot_registry.h"

namespace kvstore {
namespace {

void patch(int fd, uint64_t file_bytes, std::span<const uint8_t> input) {
    while (input.size() >= 3) {
        const uint64_t offset = (input[0] | uint64_t{input[1]} << 8) % file_bytes;
        const size_t room = std::min<size_t>(input.size() - 3, file_bytes - offset);
        const size_t size = std::min<size_t>(input[2], room);
        KV_ASSERT(pwrite(fd, input.data() + 3, size, static_cast<off_t>(offset)) ==
                  static_cast<ssize_t>(size));
        input = input.subspan(3 + size);
    }
}

void scan(ClientSlots& slots) {
    std::vector<Generation> held;
    slots.collect_hazards(&held);
    KV_ASSERT(std::ranges::is_sorted(held));
    for (const auto& [gen, offset] : slots.hazards()) {
        KV_ASSERT(slots.holds_block(gen, offset) && slots.hazard_present(gen));
    }
    size_t touches = 0;
    slots.drain_touches([&touches](uint32_t) { ++touches; });
    KV_ASSERT(touches <= kSlotTouches * std::max<size_t>(slots.live_slots().size(), 1));
    (void)slots.total_counters();
    (void)slots.collect_lost();
    (void)slots.collect_dead();
}

// A node with one client, both in this process.
class Served {
  public:
    Served() : slots_(std::move(ClientSlots::open("", "clients").value())) {
        number_ = slots_->assign().value();
        client_ = SlotRegistry::instance().acquire(Fd(dup(slots_->fd(number_))), number_).value();
        client_->set_confirmed();
        KV_ASSERT(slots_->confirm(number_).ok());
    }
    void meet(std::span<const uint8_t> input) const {
        const std::vector<uint8_t> empty(kSlotBytes);
        KV_ASSERT(pwrite(slots_->fd(number_), empty.data(), empty.size(), kSlotPageOffset) ==
                  static_cast<ssize_t>(empty.size()));
        patch(slots_->fd(number_), kSlotFileBytes, input);
        scan(*slots_);
        (void)slots_->revoke_spare(number_, 1);
        (void)slots_->counters(number_);
        (void)client_->publish_hazard(64, 7);
        scan(*slots_);
    }

  private:
    std::unique_ptr<ClientSlots> slots_;
    uint32_t number_ = 0;
    std::shared_ptr<ClientSlot> client_;
};

// The files that a node has left, one of them changed, and the next life of the node.
void begin_again(bool in_clients, std::span<const uint8_t> input) {
    char path[] = "/dev/shm/kvstore-fuzz-XXXXXX";
    KV_ASSERT(mkdtemp(path) != nullptr);
    const std::string directory(path);
    {
        const auto earlier = ClientSlots::open(directory, "clients");
        KV_ASSERT(earlier.ok() && (*earlier)->assign().ok());
    }
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
        if ((entry.path().filename() == "clients") == in_clients) {
            const Fd file(open(entry.path().c_str(), O_RDWR | O_CLOEXEC));
            patch(file.get(), std::filesystem::file_size(entry.path()), input);
        }
    }
    for (const bool discard_foreign : {false, true}) {
        auto slots = ClientSlots::open(directory, "clients", discard_foreign);
        KV_ASSERT(slots.ok() || !discard_foreign);
        if (slots.ok()) {
            scan(**slots);
            (void)(*slots)->assign();
        }
    }
    std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const kvstore::Served served;
    if (size == 0) {
        return 0;
    }
    const std::span<const uint8_t> input(data + 1, size - 1);
    if (data[0] % 3 == 0) {
        served.meet(input);
    } else {
        kvstore::begin_again(data[0] % 3 == 1, input);
    }
    return 0;
}
