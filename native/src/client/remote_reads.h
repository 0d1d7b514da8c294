// Reading what this host's indexes did not have: where it was found lately, else one lookup at the
// master; then replica by replica.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "client/client_context.h"
#include "client/get_item.h"
#include "client/get_request.h"
#include "client/read_job.h"

namespace kvstore {

class RemoteReads {
  public:
    // `direct`: all destinations are a GPU's memory, and only UCX reads into it: what another way
    // would bring counts as missing. Null: they are the host's.
    RemoteReads(ClientContext& context, GetMemory* memory, CallTally* tally,
                DirectMemory* direct = nullptr)
        : context_(context), memory_(memory), tally_(*tally), direct_(direct) {}
    // Reads items[i] for every i of `pending`. An item whose reason is kChecksum already was
    // refused at a node of this host.
    void run(std::span<GetItem> items, std::span<HashedKey> keys, std::span<const size_t> pending,
             Deadline deadline);

  private:
    // To be looked up, where `refused` (0: none) is not what it was said to be.
    struct Again {
        size_t item;
        Version refused;
    };
    enum class Verdict : uint8_t { kRight, kWrong, kFlushed, kUnknown };
    // What is asked of one node in one round.
    struct Slice {
        std::shared_ptr<PeerNode> peer;
        std::vector<ReadJob*> jobs;
        GetRequest request;
        bool under_way = false;
        uint64_t asked_bytes = 0;  // of the node in this round, by this slice and its stripes

        uint64_t bytes() const;  // of all its objects
    };

    void take_known(std::vector<Again>* pending);
    void lookup(std::span<const Again> pending);
    void take_lookup(const LookupReply& reply, std::span<const Again> pending);
    void use_known_placements(std::span<const Again> pending, Code why);
    void miss(ReadJob& job, MissReason reason);
    void ask_again(ReadJob& job);
    void provide_memory();
    void read_all_replicas();
    std::shared_ptr<PeerNode> choose_replica(ReadJob& job);
    void read_shared(Slice& slice);
    void read_kept(Slice& slice);
    void limit(Slice& slice) const;
    void stripe(std::vector<Slice>* slices) const;
    void send(Slice& slice);
    std::unique_ptr<UcxTransfer> transfer(Slice& slice, Channel& channel);
    void receive_all(std::span<Slice> slices);
    void take_answers(Slice& slice);
    void note_transfer(Slice& slice);
    Verdict verify(HashedKey& key, Slice& slice, const GetRequest::Answer& answer);
    void give_up(Slice& slice, const Status& why);
    void refuse(ReadJob& job, MissReason reason);
    void refuse_all(Slice& slice, MissReason reason);
    Deadline attempt_deadline(const Slice& slice) const;

    ClientContext& context_;
    GetMemory* memory_;
    CallTally& tally_;
    DirectMemory* const direct_;
    std::span<GetItem> items_;
    std::span<HashedKey> keys_;
    Deadline deadline_ = Deadline::never();
    std::vector<ReadJob> jobs_;
    std::vector<Again> again_;
    ClientUcx::Lease lane_;
};

}  // namespace kvstore
