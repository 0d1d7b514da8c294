// Filling a spare or sending the bytes along, and what the answer brings.
#include "client/short_put.h"

#include "base/fault_point.h"
#include "client/device_source.h"
#include "index/protocol_steps.h"

namespace kvstore {

bool ShortPut::takes(std::span<PutItem* const> items) {
    uint64_t bytes = 0;
    for (const PutItem* item : items) {
        bytes += item->data.size();
    }
    if (bytes > kMaxBytes || items.size() > limits::kMaxBatchKeys) {
        return false;
    }
    if (items.size() == 1) {
        spare_ = node_.spares().take(node_.slot(), bytes, boottime_ms());
    }
    return spare_ || options_.device == nullptr;
}

Status ShortPut::run(Channel& channel, std::span<PutItem* const> items) {
    const PutRows rows(items, options_);
    Put request;
    rows.fill(&request);
    if (items.size() == 1) {
        const uint64_t size_bytes = items[0]->data.size();
        const bool wanted = node_.spares().wants(node_.slot(), size_bytes, boottime_ms());
        request.spare_size = wanted ? size_bytes : 0;
    }
    request.trace = current_trace();
    Status status = spare_ ? fill_spare(*items[0], &request) : Status();
    if (status.ok()) {
        status = send(channel, items, request);
    }
    if (!status.ok() && spare_ && spare_->generation != 0) {
        node_.abandon({&spare_->generation, 1});
    }
    return status;
}

Status ShortPut::fill_spare(PutItem& item, Put* request) {
    fault_point("client_reserved");
    uint8_t* const block = node_.block(spare_->offset, item.data.size());
    if (block == nullptr) {
        return {Code::kProtocolError, "a spare outside of the segment"};
    }
    if (options_.device == nullptr) {
        crc_ = gather_crc32c(block, item.data);
        fault_point("client_copying");
    } else {
        DeviceSource::Block copied{&item.data, block, spare_->offset, spare_->generation, 0};
        const Status status = options_.device->fill(node_, {&copied, 1}, deadline_);
        spare_->generation = copied.generation;  // 0: the copy goes on, and gives it back itself
        crc_ = copied.crc;
        if (!status.ok()) {
            return status;
        }
    }
    steps::finish_writing(steps::RealMemory{});
    if (node_.torn()) {
        // The node forgets the block; the object is put by socket.
        return {Code::kUnavailable, "the node's memory has lost pages"};
    }
    request->spares = std::span<const uint64_t>(&spare_->generation, 1);
    request->crcs = std::span<const uint32_t>(&crc_, 1);
    return {};
}

Status ShortPut::send(Channel& channel, std::span<PutItem* const> items, Put& request) {
    PutPayload bytes;
    for (const PutItem* item : items) {
        if (!spare_) {
            bytes.add(item->data);
        }
    }
    request.crcs_behind = !spare_;
    request.timeout_ms = MasterClient::remote_timeout_ms(deadline_);
    std::vector<uint8_t> body;
    encode_message(request, body);
    fault_point("client_commit");
    PutAnswer answer;
    const Status status =
        ask(channel, {Put::kType, body, bytes.payload(), deadline_, patience_ms_}, &answer);
    if (status.ok()) {
        take_answer(items, answer);
    }
    return status;
}

void ShortPut::take_answer(std::span<PutItem* const> items, const PutAnswer& answer) {
    node_.keep_spare(items[0]->data.size(), answer.spare_generation, answer.spare_offset,
                     answer.spare_ms);
    for (size_t row = 0; row < items.size(); ++row) {
        const Code code = answer.code(row);
        if (spare_ && code == Code::kExpired) {
            continue;  // the node has taken the spare back: tried again
        }
        items[row]->result = code;
        if (code == Code::kOk) {
            tally_.add(ClientCounter::kBytesPutShm, items[row]->data.size());
        }
    }
}

}  // namespace kvstore
