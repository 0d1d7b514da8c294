// Names of the client's counters.
#include "base/client_counters.h"

namespace kvstore {

std::string_view client_counter_name(int counter) {
    static constexpr std::array<std::string_view, kClientCounterCount> kNames = {
        "keys_read",
        "misses_absent",
        "misses_evicted",
        "misses_expired",
        "misses_removed",
        "misses_flushed",
        "misses_node_down",
        "misses_version",
        "misses_checksum",
        "misses_rebuilding",
        "misses_io_error",
        "misses_unavailable",
        "hits_shm",
        "hits_socket",
        "bytes_read_shm",
        "bytes_read_socket",
        "puts_ok",
        "puts_existing",
        "puts_failed",
        "bytes_put_shm",
        "bytes_put_socket",
        "wrong_checksums",
        "retries",
        "lookups",
        "master_failures",
        "views",
        "leases",
        "misses_index_full",
        "misses_buffer_too_small",
        "hits_ucx",
        "bytes_read_ucx",
        "bytes_put_ucx",
        "keys_sought",
        "keys_present",
    };
    return counter >= 0 && counter < kClientCounterCount ? kNames[static_cast<size_t>(counter)]
                                                         : std::string_view();
}

}  // namespace kvstore
