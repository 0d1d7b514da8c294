// Choosing where the node reads from; asking it; what becomes of each row.
#include "client/ucx_put.h"

#include <algorithm>

#include "base/checksum.h"
#include "client/put_request.h"
#include "client/ucx_transfer.h"

namespace kvstore {

// Where the node finds the bytes of each item.
struct UcxPuts::Sources {
    std::vector<uint64_t> addresses;
    std::vector<uint32_t> crcs;
    std::vector<uint32_t> key_of;
    std::vector<std::string_view> keys;
    std::vector<std::shared_ptr<const UcxMemory>> keep;
    uint64_t bytes = 0;

    bool add(ClientUcx& ucx, UcxLane& lane, const Pieces& data);
};

bool UcxPuts::Sources::add(ClientUcx& ucx, UcxLane& lane, const Pieces& data) {
    const UcxTarget target = choose_target(ucx, lane, data, data.size(), true);
    if (target.pieces.empty()) {
        return false;
    }
    const UcxTarget::Piece& place = target.pieces.front();
    addresses.push_back(reinterpret_cast<uintptr_t>(place.data));
    crcs.push_back(target.is_bounce ? gather_crc32c(place.data, data)
                                    : crc32c(place.data, data.size()));
    const std::string_view key =
        place.memory == nullptr ? lane.bounce().key() : place.memory->key();
    const auto known = std::ranges::find(keys, key);
    key_of.push_back(static_cast<uint32_t>(known - keys.begin()));
    if (known == keys.end()) {
        keys.push_back(key);
    }
    keep.push_back(place.memory);
    bytes += data.size();
    return true;
}

std::vector<PutItem*> UcxPuts::run(PeerNode& peer, std::span<PutItem*> items,
                                   uint64_t patience_ms) {
    uint64_t bytes = 0;
    for (const PutItem* item : items) {
        bytes += item->data.size();
    }
    std::vector<PutItem*> left;
    // A GPU's memory is copied to the host's first.
    if (options_.device == nullptr) {
        ClientUcx::Lease lane = context_.ucx_lane(peer, bytes);
        while (lane && !items.empty()) {
            const size_t sent = send(peer, *lane, items, patience_ms, &left);
            if (sent == 0) {
                break;
            }
            items = items.subspan(sent);
            lane->reset_bounce();
        }
    }
    left.insert(left.end(), items.begin(), items.end());
    return left;
}

size_t UcxPuts::send(PeerNode& peer, UcxLane& lane, std::span<PutItem*> all, uint64_t patience_ms,
                     std::vector<PutItem*>* left) {
    Sources sources;
    size_t count = 0;
    while (count < all.size() && sources.add(context_.ucx(), lane, all[count]->data)) {
        ++count;
    }
    const std::span<PutItem*> items = all.first(count);
    const PutRows rows(items, options_);
    UcxPut message;
    rows.fill(&message);
    message.crcs = sources.crcs;
    message.addresses = sources.addresses;
    message.key_of = sources.key_of;
    message.worker = lane.worker().address();
    message.memory_keys = sources.keys;
    message.fetch_ms = static_cast<uint32_t>(ucx_patience_ms(deadline_, sources.bytes));
    message.timeout_ms = MasterClient::remote_timeout_ms(deadline_);
    std::vector<uint8_t> body;
    encode_message(message, body);
    const PutRequest request{UcxPut::kType, body, {}, deadline_, patience_ms, &lane.worker()};
    PutAnswer answer;
    ChannelPool::Lease channel;
    bool asked = false;
    const Status status =
        peer.sockets().call(&channel, sooner(deadline_, patience_ms), [&](Channel& on) {
            asked = count != 0 && peer.ucx_region(on, deadline_) != nullptr;
            return asked ? ask(on, request, &answer) : Status();
        });
    if (!asked) {
        return 0;
    }
    const auto was_fetched = [&](size_t row) {
        return row < answer.codes.size() && answer.code(row) != Code::kUnavailable;
    };
    bool all_fetched = status.ok();
    for (size_t row = 0; row < count && status.ok(); ++row) {
        PutItem& item = *items[row];
        if (!was_fetched(row)) {
            all_fetched = false;
            left->push_back(&item);
            continue;
        }
        item.result = answer.code(row);
        tally_.add(ClientCounter::kBytesPutUcx, item.result == Code::kOk ? item.data.size() : 0);
    }
    if (all_fetched) {
        peer.ucx_breaker().success();
    } else {
        peer.forget_ucx_region();
        peer.ucx_breaker().failure();
    }
    return status.ok() ? count : 0;
}

}  // namespace kvstore
