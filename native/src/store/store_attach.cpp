// A store that takes over the memory of an earlier life of its node.
//
// The old index does not change before the new one is complete: if anything fails until then, the
// next attempt finds everything as it was. Then the old index is retired, and only after that do
// blocks become free, as fate_of() decides. Damage costs an object; where it could cost a living
// client its block, nothing is taken over at all.
#include <algorithm>

#include "base/fault_point.h"
#include "index/protocol_steps.h"
#include "store/kept_fate.h"
#include "store/store_state.h"

namespace kvstore {
namespace {

// Stands for the sessions of an earlier life, one for each slot; connections count from 1.
constexpr uint64_t kEarlierSession = uint64_t{1} << 63;

}  // namespace

class BlockStore::State::TakeOver {
  public:
    TakeOver(State& state, KeptIndex& kept) : state_(state), kept_(kept) {}
    Status run() KV_EXCLUDES(state_.mutex);

  private:
    // A block of the earlier life.
    struct Block {
        uint64_t offset = 0;
        uint64_t length = 0;
        Generation gen = 0;
        const KeptObject* object = nullptr;  // that the new index has, or is about to get
        int writer = -1;                     // slot of the client that was writing it
        bool placed = true;
    };
    using Named = std::unordered_map<Generation, const Block*>;

    void read_namespaces() KV_REQUIRES(state_.mutex);
    void read_blocks() KV_REQUIRES(state_.mutex);
    void add_block(Block block, std::unordered_map<Generation, size_t>* owners)
        KV_REQUIRES(state_.mutex);
    bool is_valid(const KeptObject& object) const KV_REQUIRES(state_.mutex);
    void drop_overlapping() KV_REQUIRES(state_.mutex);
    Status place_blocks() KV_REQUIRES(state_.mutex);
    void insert_objects() KV_REQUIRES(state_.mutex);
    EntryRef insert(const KeptObject& object, const NamespaceRef& ns) KV_REQUIRES(state_.mutex);
    bool make_room(const Hash128& hash) KV_REQUIRES(state_.mutex);
    void supersede(EntryRef ref) KV_REQUIRES(state_.mutex);
    Status settle_blocks() KV_REQUIRES(state_.mutex);
    Status check_hazards(const Named& named) const KV_REQUIRES(state_.mutex);
    Fate fate(const Block& block, const std::unordered_set<Generation>& held) const
        KV_REQUIRES(state_.mutex);
    Status settle(const Block& block, Fate fate) KV_REQUIRES(state_.mutex);
    void keep_hold(const KeptBlock& hold) KV_REQUIRES(state_.mutex);

    State& state_;
    KeptIndex& kept_;
    uint64_t damaged_objects_ = 0;
    uint64_t damaged_records_ = 0;
    std::vector<KeptObject> objects_;
    std::vector<Block> blocks_;  // ascending offsets
    std::vector<KeptBlock> holds_;
    std::unordered_map<NamespaceId, NamespaceRef> namespaces_;
};

Status BlockStore::State::TakeOver::run() {
    const MutexLock lock(state_.mutex);
    read_namespaces();
    read_blocks();
    if (damaged_records_ > 0 && !state_.slots->live_slots().empty()) {
        return {Code::kIoError, "the ledger is damaged, and clients may be writing"};
    }
    fault_point("attach_read");
    drop_overlapping();
    if (Status status = place_blocks(); !status.ok()) {
        return status;
    }
    insert_objects();
    fault_point("attach_inserted");
    Status status;
    steps::take_over(steps::RealMemory{}, kept_.retired_flag(), [&] {
        state_.mutex.assert_held();
        status = settle_blocks();
    });
    state_.beginning.warm = true;
    state_.beginning.objects = state_.totals.objects;
    state_.beginning.object_bytes = state_.totals.object_bytes;
    state_.beginning.quarantined = state_.reservations.quarantined();
    state_.beginning.deferred = state_.deferred.size();
    state_.beginning.dropped = damaged_objects_ + objects_.size() -
                               std::min<size_t>(objects_.size(), state_.totals.objects);
    state_.beginning.applied_seq = kept_.applied_seq();
    state_.index->ledger().note_applied(kept_.applied_seq());
    return status;
}

// Only the last incarnation of a namespace still has objects: a flush ended the others.
void BlockStore::State::TakeOver::read_namespaces() {
    std::map<std::pair<std::string, std::string>, uint32_t> epochs;
    for (const NamespaceEpoch& ns : kept_.namespaces()) {
        uint32_t& epoch = epochs[{ns.tenant, ns.name}];
        epoch = std::max(epoch, ns.epoch);
    }
    for (const auto& [name, epoch] : epochs) {
        NamespaceRef ns = make_namespace(state_.options.secret, name.first, name.second, epoch);
        (void)state_.note_namespace(*ns);
        state_.beginning.namespaces.push_back(ns);
        if (!state_.options.keeps || state_.options.keeps(name.first)) {
            namespaces_.emplace(ns->id, std::move(ns));
        }
    }
}

void BlockStore::State::TakeOver::read_blocks() {
    objects_ = kept_.objects(&damaged_objects_);
    std::unordered_map<Generation, size_t> owners;
    for (const KeptObject& object : objects_) {
        add_block({object.offset, object.identity.length, object.gen,
                   is_valid(object) ? &object : nullptr},
                  &owners);
    }
    for (const KeptBlock& block : kept_.blocks(&damaged_records_)) {
        if (block.use == BlockUse::kHeld) {
            holds_.push_back(block);
            continue;
        }
        // Its entry had taken over, or had not been invalidated yet.
        const auto owner = owners.find(block.gen);
        if (owner != owners.end() && blocks_[owner->second].offset == block.offset) {
            continue;
        }
        const int writer = block.use == BlockUse::kReserved ? block.slot : -1;
        add_block({block.offset, block.length, block.gen, nullptr, writer}, &owners);
    }
    std::ranges::sort(blocks_, {}, &Block::offset);
}

// A generation is drawn for one block: where two claim it, at least one is not what it says, and
// nobody knows which.
void BlockStore::State::TakeOver::add_block(Block block,
                                            std::unordered_map<Generation, size_t>* owners) {
    const auto [first, added] = owners->emplace(block.gen, blocks_.size());
    if (!added) {
        blocks_[first->second].placed = block.placed = false;
    }
    blocks_.push_back(block);
}

bool BlockStore::State::TakeOver::is_valid(const KeptObject& object) const {
    if (!object.whole) {
        return false;
    }
    const auto ns = namespaces_.find(object.identity.ns);
    if (ns == namespaces_.end() || ns->second->tenant_id != object.identity.tenant) {
        return false;
    }
    if (object.expires_at_ms != 0 && object.expires_at_ms <= state_.now()) {
        return false;
    }
    return key_hash(state_.options.secret, object.identity.ns, object.key) == object.identity.hash;
}

// Of blocks that overlap at least one is not what it says, and nobody knows which.
void BlockStore::State::TakeOver::drop_overlapping() {
    Block* before = nullptr;
    uint64_t end = 0;
    for (Block& block : blocks_) {
        if (before != nullptr && block.offset < end) {
            before->placed = block.placed = false;
        }
        if (block.offset + block.length >= end) {
            end = block.offset + std::max<uint64_t>(block.length, 1);
            before = &block;
        }
    }
}

Status BlockStore::State::TakeOver::place_blocks() {
    std::vector<ChunkAllocator::Block> wanted;
    std::vector<Block*> whose;
    for (Block& block : blocks_) {
        if (!block.placed) {
            continue;
        }
        wanted.push_back({block.offset, block.length});
        whose.push_back(&block);
    }
    const std::vector<bool> adopted = state_.allocator.adopt(wanted);
    for (size_t i = 0; i < whose.size(); ++i) {
        whose[i]->placed = adopted[i];
    }
    for (const Block& block : blocks_) {
        if (block.placed) {
            continue;
        }
        ++damaged_objects_;
        if (state_.is_alive(block.writer)) {
            return {Code::kIoError, "a block that a client may be writing cannot be told apart"};
        }
    }
    return {};
}

// The coldest first, so that the order of their last uses is the same as before.
void BlockStore::State::TakeOver::insert_objects() {
    std::vector<Block*> carried;
    for (Block& block : blocks_) {
        if (block.placed && block.object != nullptr) {
            carried.push_back(&block);
        }
    }
    std::ranges::sort(carried, {}, [](const Block* block) { return block->object->recency; });
    for (Block* block : carried) {
        const KeptObject& object = *block->object;
        if (insert(object, namespaces_.at(object.identity.ns)) == kNoEntry) {
            block->object = nullptr;
        }
    }
    for (const Block* block : carried) {
        if (block->object == nullptr || block->object->parent == Hash128{}) {
            continue;
        }
        const KeptObject& object = *block->object;
        const EntryRef ref = state_.by_generation.find(object.gen);
        state_.link_parent(&state_.objects[ref],
                           state_.index->find_hash(object.identity.ns, object.parent));
    }
}

EntryRef BlockStore::State::TakeOver::insert(const KeptObject& object, const NamespaceRef& ns) {
    Index::NewEntry entry;
    entry.identity = object.identity;
    entry.offset = object.offset;
    entry.crc = object.crc;
    entry.expires_at_ms = object.expires_at_ms;
    entry.gen = object.gen;
    entry.key = object.key;
    entry.parent = object.parent;
    entry.put_wall_ms = object.put_wall_ms;
    entry.pin = object.pin;
    // Two entries of one key: the earlier life ended in the middle of a replacement.
    const EntryRef other = state_.index->find(ns->id, object.identity.hash, object.key);
    if (other != kNoEntry) {
        if (state_.index->entry(other).version >= object.identity.version) {
            return kNoEntry;
        }
        supersede(other);
    }
    Result<EntryRef> ref = state_.index->insert(entry);
    for (int tries = 0; tries < 2 && !ref.ok() && make_room(object.identity.hash); ++tries) {
        ref = state_.index->insert(entry);
    }
    if (!ref.ok()) {
        return kNoEntry;
    }
    StoredObject stored;
    stored.generation = object.gen;
    stored.offset = object.offset;
    stored.length = object.identity.length;
    stored.expires_at_ms = object.expires_at_ms;
    stored.ns = state_.use_namespace(ns);
    state_.enter(*ref, stored);
    state_.set_pin(*ref, object.pin);
    return *ref;
}

// The new index may have less room than the old one had: then the coldest are lost.
bool BlockStore::State::TakeOver::make_room(const Hash128& hash) {
    if (state_.grow_index(hash, true)) {
        return true;
    }
    std::vector<EntryRef> refs;
    state_.index->candidates(hash, &refs);
    if (refs.empty()) {
        return false;
    }
    supersede(*std::ranges::min_element(refs, {}, [this](EntryRef ref) KV_REQUIRES(state_.mutex) {
        return state_.evictor.stamp(ref);
    }));
    return true;
}

// Out of the new index again, which nobody reads yet. Its block waits for its fate like the others.
void BlockStore::State::TakeOver::supersede(EntryRef ref) {
    const StoredObject& object = state_.objects[ref];
    auto block = std::ranges::lower_bound(blocks_, object.offset, {}, &Block::offset);
    while (block->gen != object.generation) {
        ++block;
    }
    block->object = nullptr;
    state_.index->invalidate(ref);
    state_.index->release(ref);
    state_.leave(ref);
}

// The old index is retired: each holder of a block says so in its slot, and nobody begins to hold.
Status BlockStore::State::TakeOver::settle_blocks() {
    fault_point("attach_retired");
    Named named;
    for (const Block& block : blocks_) {
        if (block.placed) {
            named.emplace(block.gen, &block);
        }
    }
    if (Status status = check_hazards(named); !status.ok()) {
        return status;
    }
    std::unordered_set<Generation> held;
    std::erase_if(holds_, [&](const KeptBlock& hold) KV_REQUIRES(state_.mutex) {
        return !state_.is_alive(hold.slot) || !named.contains(hold.gen);
    });
    for (const KeptBlock& hold : holds_) {
        held.insert(hold.gen);
    }
    for (const Block& block : blocks_) {
        if (Status status = settle(block, fate(block, held)); !status.ok()) {
            return status;
        }
    }
    for (const KeptBlock& hold : holds_) {
        keep_hold(hold);
    }
    return {};
}

// Every block that a living client holds has to be one of ours. With a damaged index that is not
// certain.
Status BlockStore::State::TakeOver::check_hazards(const Named& named) const {
    for (const auto& [gen, offset] : state_.slots->hazards()) {
        const auto found = named.find(gen);
        const bool here = found != named.end() && found->second->offset == offset;
        // In a whole index a hazard that names no block was published too late, and its client has
        // noticed; or its client has made it up.
        if (!here && damaged_objects_ > 0) {
            return {Code::kIoError, "the index is damaged, and a client holds a block of it"};
        }
    }
    return {};
}

Fate BlockStore::State::TakeOver::fate(const Block& block,
                                       const std::unordered_set<Generation>& held) const {
    KeptFacts facts;
    facts.is_placed = block.placed;
    facts.is_carried = block.object != nullptr;
    if (facts.is_placed && !facts.is_carried) {
        facts.writer_lives = state_.is_alive(block.writer);
        facts.is_held = held.contains(block.gen);
        facts.hazard_names_it = state_.slots->holds_block(block.gen, block.offset);
    }
    return fate_of(facts);
}

Status BlockStore::State::TakeOver::settle(const Block& block, Fate fate) {
    if (fate == Fate::kQuarantine) {
        Reservation reservation;
        reservation.owner = {0, block.writer};
        reservation.offset = block.offset;
        reservation.size_bytes = block.length;
        reservation.deadline_ms = state_.now();
        if (!state_.add_reservation(block.gen, std::move(reservation))) {
            return {Code::kIoError, "the ledger has no room for the writes in progress"};
        }
        state_.reservations.quarantine(block.gen);
    } else if (fate == Fate::kDefer) {
        const Ledger::Line line = state_.index->ledger().add_block(BlockUse::kDeferred, block.gen,
                                                                   block.offset, block.length, -1);
        state_.deferred.defer(block.gen, {block.offset, block.length, 0, line});
    } else if (fate == Fate::kDrop && block.placed) {
        state_.allocator.free(block.offset);
    }
    return {};
}

// A hold by socket of a living process. It ends with its process: the session that could give it
// back is gone.
void BlockStore::State::TakeOver::keep_hold(const KeptBlock& hold) {
    const uint64_t session = kEarlierSession | static_cast<uint64_t>(hold.slot);
    if (state_.socket_holds.contains(session, hold.gen)) {
        return;
    }
    EntryRef ref = state_.by_generation.find(hold.gen);
    if (ref != kNoEntry) {
        ++state_.objects[ref].holds;
    } else if (state_.deferred.add_hold(hold.gen)) {
        ref = 0;  // another generation's entry: so the hold is looked for among the deferred
    } else {
        return;
    }
    state_.socket_holds.keep({session, hold.slot}, {hold.gen, ref, hold.offset, hold.length});
}

Result<std::shared_ptr<BlockStore::State>> BlockStore::State::attach(const Options& options,
                                                                     StoreFiles& files) {
    KeptIndex& kept = *files.kept();
    Segment::Options wanted = segment_options(options, files);
    wanted.beside_bytes = Index::memory_bytes(index_options(options, files));
    wanted.drop_end = !files.has_clients();
    auto segment = Segment::attach(wanted, kept.ready_bytes());
    if (!segment.ok()) {
        return segment.status();
    }
    kept.cut((*segment)->ready_bytes());
    auto index = Index::create(index_options(options, files));
    if (!index.ok()) {
        return {index.code(), "segment_dir needs room for a second index while one takes over: " +
                                  index.status().message()};
    }
    auto state = std::make_shared<State>(options, files.options().directory, std::move(*segment),
                                         std::move(*index), files.take_slots());
    Status status = TakeOver(*state, kept).run();
    fault_point("attach_settled");
    if (status.ok()) {
        status = state->install();
    }
    fault_point("attach_installed");
    if (!status.ok()) {
        files.give_back(std::move(state->slots));
        return status;
    }
    files.drop_kept();
    fault_point("attach_done");
    return state;
}

}  // namespace kvstore
