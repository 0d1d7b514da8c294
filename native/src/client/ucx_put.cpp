// Choosing where the node reads from; asking it; what becomes of each row.
#include "client/ucx_put.h"

#include <algorithm>
#include <optional>

#include "base/checksum.h"
#include "client/device_source.h"
#include "client/put_request.h"
#include "client/ucx_transfer.h"
#include "wire/ucx_places.h"

namespace kvstore {

// Where the node finds the bytes of each item.
class UcxPuts::Sources {
  public:
    // The first items, as many as there is room for and UCX reaches: their number.
    size_t fill(ClientUcx& ucx, UcxLane& lane, std::span<PutItem* const> items,
                DirectMemory* direct, Deadline deadline);
    const UcxPlaces& places() const { return places_; }
    std::vector<uint32_t> crcs() const;
    const std::vector<std::string_view>& keys() const { return keys_; }  // of the memory
    uint64_t bytes() const { return bytes_; }

  private:
    bool add(ClientUcx& ucx, UcxLane& lane, const Pieces& data, const DirectMemory* direct);
    uint32_t number_of(std::string_view key);

    UcxPlaces places_;
    std::vector<DirectMemory::Object> objects_;  // with their checksums
    std::vector<std::string_view> keys_;
    std::vector<UcxTarget> kept_;
    uint64_t bytes_ = 0;
};

size_t UcxPuts::Sources::fill(ClientUcx& ucx, UcxLane& lane, std::span<PutItem* const> items,
                              DirectMemory* direct, Deadline deadline) {
    const auto is_added = [&](const PutItem* item) {
        return (direct == nullptr || direct->reaches(item->data)) &&
               add(ucx, lane, item->data, direct);
    };
    const auto end = std::ranges::find_if_not(items, is_added);
    const bool is_summed = direct == nullptr || direct->sum(objects_, deadline).ok();
    return is_summed ? static_cast<size_t>(end - items.begin()) : 0;
}

std::vector<uint32_t> UcxPuts::Sources::crcs() const {
    std::vector<uint32_t> crcs;
    for (const DirectMemory::Object& object : objects_) {
        crcs.push_back(object.crc);
    }
    return crcs;
}

// False: there is no room for it, or UCX does not reach it.
bool UcxPuts::Sources::add(ClientUcx& ucx, UcxLane& lane, const Pieces& data,
                           const DirectMemory* direct) {
    UcxTarget target = choose_target(ucx, lane, data, data.size(), direct);
    const bool has_room =
        target.has_room && places_.pieces() + target.pieces.size() <= kMaxUcxPieces;
    if (!target.is_reachable || !has_room) {
        return false;
    }
    places_.begin_row();
    for_each_place(target, lane, [&](const uint8_t* at, uint64_t count, const UcxMemory& memory) {
        places_.add({reinterpret_cast<uintptr_t>(at), count, number_of(memory.key())});
    });
    if (target.pieces.empty()) {
        places_.add({0, 0, number_of(lane.bounce().key())});
    }
    objects_.push_back({&data, data.size(), copy_lane(target, LaneCopy::kFromHome)});
    kept_.push_back(std::move(target));
    bytes_ += data.size();
    return true;
}

uint32_t UcxPuts::Sources::number_of(std::string_view key) {
    const auto known = std::ranges::find(keys_, key);
    const auto number = static_cast<uint32_t>(known - keys_.begin());
    if (known == keys_.end()) {
        keys_.push_back(key);
    }
    return number;
}

std::vector<PutItem*> UcxPuts::run(PeerNode& peer, std::span<PutItem*> items,
                                   uint64_t patience_ms) {
    uint64_t bytes = 0;
    for (const PutItem* item : items) {
        bytes += item->data.size();
    }
    std::optional<DirectMemory> direct;
    std::optional<CudaContext::Scope> current;  // UCX looks for one
    if (options_.device != nullptr) {
        direct.emplace(options_.device->direct());
        current.emplace(direct->context());
        direct_ = &*direct;
    }
    std::vector<PutItem*> left;
    ClientUcx::Lease lane = context_.ucx_lane(peer, bytes);
    while (lane && !items.empty()) {
        const size_t sent = send(peer, *lane, items, patience_ms, &left);
        if (sent == 0) {
            break;
        }
        items = items.subspan(sent);
        lane->reset_bounce();
    }
    left.insert(left.end(), items.begin(), items.end());
    return left;
}

size_t UcxPuts::send(PeerNode& peer, UcxLane& lane, std::span<PutItem*> all, uint64_t patience_ms,
                     std::vector<PutItem*>* left) {
    Sources sources;
    const size_t count = sources.fill(context_.ucx(), lane, all, direct_, deadline_);
    const std::span<PutItem*> items = all.first(count);
    const PutRows rows(items, options_);
    UcxPut message;
    rows.fill(&message);
    const std::vector<uint32_t> crcs = sources.crcs();
    const UcxPlaceColumns places(sources.places());
    message.crcs = crcs;
    places.fill(&message);
    message.worker = lane.worker().address();
    message.memory_keys = sources.keys();
    message.fetch_ms = static_cast<uint32_t>(ucx_patience_ms(deadline_, sources.bytes()));
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
