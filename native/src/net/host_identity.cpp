// Reading the kernel's boot id.
#include "net/host_identity.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>

#include "base/hmac.h"

namespace kvstore {
namespace {

uint64_t read_identity() {
    std::ifstream file("/proc/sys/kernel/random/boot_id");
    std::string boot_id;
    if (!(file >> boot_id)) {
        return 0;
    }
    // A digest, because it is told to peers on other machines.
    const std::string text = "kvstore host " + boot_id;
    const Digest digest = sha256({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
    uint64_t identity = 0;
    std::memcpy(&identity, digest.data(), sizeof identity);
    return std::max<uint64_t>(identity, 1);
}

}  // namespace

uint64_t host_identity() {
    static const uint64_t identity = read_identity();
    return identity;
}

}  // namespace kvstore
