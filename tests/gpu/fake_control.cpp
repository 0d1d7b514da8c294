// What tests ask of the fake driver, and tell it.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "fake_state.h"

using namespace fake_cuda;

extern "C" {

// Zeroed device memory; 0 when there is none.
uint64_t fake_alloc(size_t size, int device) {
    const int file = memfd_create("fake-cuda", 0);
    if (file < 0 || ftruncate(file, static_cast<off_t>(size)) != 0) {
        return 0;
    }
    void* const bytes = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    void* const address = mmap(nullptr, size, PROT_NONE, MAP_SHARED, file, 0);
    close(file);
    const Lock lock(driver.mutex);
    driver.memory[reinterpret_cast<uint64_t>(address)] = {size, device,
                                                          static_cast<uint8_t*>(bytes), 0};
    return reinterpret_cast<uint64_t>(address);
}

void fake_free(uint64_t address) {
    const Lock lock(driver.mutex);
    const auto it = driver.memory.find(address);
    munmap(it->second.bytes, it->second.size);
    munmap(reinterpret_cast<void*>(address), it->second.size);
    driver.memory.erase(it);
}

// The processor reaches device memory between a call with 1 and one with 0.
void fake_reach(int on) {
    static int reaching = 0;
    const Lock lock(driver.mutex);
    reaching += on != 0 ? 1 : -1;
    if (reaching != (on != 0 ? 1 : 0)) {
        return;
    }
    for (const auto& [address, range] : driver.memory) {
        mprotect(reinterpret_cast<void*>(address), range.size,
                 on != 0 ? PROT_READ | PROT_WRITE : PROT_NONE);
    }
}

// Reads or writes device memory at once, beside every stream.
void fake_read(uint64_t address, void* to, size_t size) {
    const Lock lock(driver.mutex);
    std::memcpy(to, bytes_at(*find(driver.memory, address, size), address), size);
}
void fake_write(uint64_t address, const void* from, size_t size) {
    const Lock lock(driver.mutex);
    std::memcpy(bytes_at(*find(driver.memory, address, size), address), from, size);
}

uint64_t fake_stream(int device) {
    const Lock lock(driver.mutex);
    const uint64_t handle = driver.next_handle++;
    driver.streams[handle].device = device;
    return handle;
}

// As the driver does it: what is queued still runs.
void fake_destroy_stream(uint64_t handle) {
    const Lock lock(driver.mutex);
    Stream rest = driver.streams[handle];
    driver.streams.erase(handle);
    for (const Op& op : rest.ops) {
        driver.streams[1 + static_cast<uint64_t>(rest.device)].ops.push_back(op);
    }
}

void fake_capture(uint64_t handle, int on) {
    const Lock lock(driver.mutex);
    driver.streams[handle].is_capturing = on != 0;
}

// Nothing that is queued runs while the driver is paused.
void fake_pause(int on) {
    const Lock lock(driver.mutex);
    driver.is_paused = on != 0;
    driver.changed.notify_all();
}

void fake_destroy_context(int device) {
    const Lock lock(driver.mutex);
    driver.contexts[device].is_destroyed = true;
    const auto is_its = [device](const auto& range) { return range.second.device == device; };
    for (const auto& range : driver.pinned) {
        driver.counts["pinned_bytes"] -= is_its(range) ? static_cast<long>(range.second.size) : 0;
    }
    std::erase_if(driver.registered, is_its);
    std::erase_if(driver.pinned, is_its);
    std::erase_if(driver.modules, is_its);
    for (auto& [handle, stream] : driver.streams) {
        if (stream.device == device) {
            driver.counts["pending"] -= static_cast<long>(stream.ops.size());
            stream.ops.clear();
        }
    }
}

void fake_set_read_only(int on) {
    const Lock lock(driver.mutex);
    driver.has_read_only = on != 0;
}

// Whether kernels reach registered host memory.
void fake_set_mapping(int on) {
    const Lock lock(driver.mutex);
    driver.has_mapping = on != 0;
}

// The copy after `after` further ones arrives with a bit that is wrong.
void fake_flip(long after) {
    const Lock lock(driver.mutex);
    driver.flip_copy = after;
}

void fake_seed(unsigned seed) {
    const Lock lock(driver.mutex);
    driver.random.seed(seed);
}

// The call of this name after `after` further ones answers `code`, once.
void fake_fail(const char* name, int after, int code) {
    const Lock lock(driver.mutex);
    driver.failures[name] = {after, code};
}

long fake_count(const char* name) {
    const Lock lock(driver.mutex);
    const std::string what = name;
    if (what == "registered") {
        return static_cast<long>(driver.registered.size());
    }
    if (what == "pinned") {
        return static_cast<long>(driver.pinned.size());
    }
    if (what == "modules") {
        return static_cast<long>(driver.modules.size());
    }
    if (what == "events") {
        return static_cast<long>(driver.events.size());
    }
    if (what == "contexts") {
        long retained = 0;
        for (const Context& context : driver.contexts) {
            retained += context.retained;
        }
        return retained;
    }
    return driver.counts[what];
}

const char* fake_last_violation() {
    const Lock lock(driver.mutex);
    static char text[200];
    std::snprintf(text, sizeof text, "%s", driver.last_violation.c_str());
    return text;
}

// Ends failures and sticky errors, and counts from zero.
void fake_reset() {
    const Lock lock(driver.mutex);
    driver.failures.clear();
    driver.is_paused = false;
    driver.has_read_only = true;
    driver.has_mapping = true;
    driver.flip_copy = -1;
    for (auto& [handle, stream] : driver.streams) {
        stream.is_capturing = false;
    }
    const long pending = driver.counts["pending"];
    const long pinned = driver.counts["pinned_bytes"];
    driver.counts.clear();
    driver.counts["pending"] = pending;
    driver.counts["pinned_bytes"] = pinned;
    driver.last_violation.clear();
    for (Context& context : driver.contexts) {
        context.is_destroyed = false;
        context.sticky = kOk;
    }
    driver.changed.notify_all();
}

}  // extern "C"
