// The life of a block store, and of a write: reserve, grant, publish, abort, quarantine.
#include "store/block_store.h"

#include <unistd.h>

#include <algorithm>

#include "base/checksum.h"
#include "base/clock.h"
#include "base/fault_point.h"
#include "base/hmac.h"
#include "base/mutex.h"
#include "index/protocol_steps.h"
#include "store/store_state.h"

namespace kvstore {
namespace {

constexpr size_t kReservesPerLock = 64;  // others wait for no more than these

constexpr uint64_t kDefaultObjectBytes = 4096;  // sizes the index when the operator does not
constexpr uint32_t kMinIndexEntries = 1024;
constexpr uint64_t kMaxTtlMs = uint64_t{1} << 52;

// A quarter more than the smallest usual objects: two-choice buckets fill evenly up to there.
uint32_t index_entries_for(uint64_t size_bytes) {
    const uint64_t entries = size_bytes / kDefaultObjectBytes * 5 / 4;
    return static_cast<uint32_t>(std::clamp<uint64_t>(entries, kMinIndexEntries, kMaxIndexEntries));
}

BlockStore::Options with_defaults(BlockStore::Options options) {
    if (options.index_entries == 0) {
        options.index_entries = index_entries_for(options.size_bytes);
    }
    if (options.client_cap_bytes == 0) {
        options.client_cap_bytes = options.size_bytes / 2;
    }
    if (options.lease_cap_bytes == 0) {
        options.lease_cap_bytes = options.size_bytes / 2;
    }
    // A claim granted before a remove must not outlive the tombstone.
    options.tombstone_ms = std::max(options.tombstone_ms, 2 * options.reservation_ms);
    if (!options.now_ms) {
        options.now_ms = boottime_ms;
    }
    if (options.seed == 0) {
        random_bytes({reinterpret_cast<uint8_t*>(&options.seed), sizeof options.seed});
    }
    return options;
}

}  // namespace

NamespaceRef make_namespace(const HashSecret& secret, std::string_view tenant,
                            std::string_view name, uint32_t epoch) {
    return std::make_shared<const NamespaceEpoch>(
        NamespaceEpoch{std::string(tenant), std::string(name), epoch, tenant_id(secret, tenant),
                       namespace_id(secret, tenant, name, epoch)});
}

Result<std::unique_ptr<BlockStore>> BlockStore::create(const Options& options) {
    auto files = StoreFiles::open({});
    if (!files.ok()) {
        return files.status();
    }
    return create(options, std::move(*files));
}

Result<std::unique_ptr<BlockStore>> BlockStore::create(const Options& given,
                                                       std::unique_ptr<StoreFiles> files) {
    if (given.size_bytes == 0) {
        return {Code::kInvalidArgument, "segment_size is 0"};
    }
    if (given.node_epoch == 0 || given.node_epoch > kMaxEpoch) {
        return {Code::kInvalidArgument, "node epoch is out of range"};
    }
    const Options options = with_defaults(given);
    const uint64_t begun_us = boottime_us();
    const Status own = files->check_owner(
        {options.node_id, options.node_epoch, cluster_check(options.secret), options.size_bytes});
    if (!own.ok()) {
        return own;
    }
    std::shared_ptr<State> state;
    if (files->kept() != nullptr) {
        auto attached = State::attach(options, *files);
        if (!attached.ok() && attached.code() == Code::kNoSpace) {
            return attached.status();
        }
        if (attached.ok()) {
            state = std::move(*attached);
        } else {
            files->start_cold(attached.status().message());
        }
    }
    if (state == nullptr) {
        auto created = State::create(options, *files);
        if (!created.ok()) {
            return created.status();
        }
        state = std::move(*created);
        state->beginning.why_cold = files->why_cold();
    }
    state->beginning.took_us = boottime_us() - begun_us;
    return std::unique_ptr<BlockStore>(new BlockStore(std::move(state)));
}

Result<std::shared_ptr<BlockStore::State>> BlockStore::State::create(const Options& options,
                                                                     StoreFiles& files) {
    auto segment = Segment::create(segment_options(options, files));
    if (!segment.ok()) {
        return segment.status();
    }
    auto index = Index::create(index_options(options, files));
    Status status = index.ok() ? (*index)->install() : index.status();
    if (!status.ok()) {
        return (*segment)->remove_file(), status;
    }
    return std::make_shared<State>(options, files.options().directory, std::move(*segment),
                                   std::move(*index), files.take_slots());
}

Segment::Options BlockStore::State::segment_options(const Options& options,
                                                    const StoreFiles& files) {
    Segment::Options segment;
    segment.directory = files.options().directory;
    segment.name = files.options().segment_name;
    segment.size_bytes = options.size_bytes;
    return segment;
}

Index::Options BlockStore::State::index_options(const Options& options, const StoreFiles& files) {
    Index::Options index;
    index.directory = files.options().directory;
    index.name = files.options().index_name;
    index.entries = options.index_entries;
    index.node_epoch = options.node_epoch;
    index.node_id = options.node_id;
    index.segment_bytes = options.size_bytes;
    index.cluster_check = cluster_check(options.secret);
    return index;
}

BlockStore::State::State(const Options& given, const std::string& directory_in,
                         std::unique_ptr<Segment> segment_in, std::unique_ptr<Index> index_in,
                         std::unique_ptr<ClientSlots> slots_in)
    : options(given),
      directory(directory_in),
      segment(std::move(segment_in)),
      index(std::move(index_in)),
      slots(std::move(slots_in)),
      allocator(segment->size()),
      objects(index->capacity()),
      by_generation(static_cast<uint32_t>(index->capacity()), GenerationOf{&objects}),
      by_offset(static_cast<uint32_t>(index->capacity()), OffsetOf{&objects}),
      evictor(index->ledger().recency(), options.seed),
      leases(options.lease_cap_bytes),
      reservations(options.client_cap_bytes),
      tombstones(options.tombstone_ms) {
    use_ready_memory();
}

void BlockStore::State::close() {
    const MutexLock guard(mutex);
    on_withdraw = nullptr;
    // In a folder the released owner's lock says that nobody is here; the index stays good.
    if (directory.empty()) {
        index->retire();
    }
}

void BlockStore::State::remove_files() {
    const MutexLock guard(mutex);
    index->retire();
    if (directory.empty()) {
        return;
    }
    segment->remove_file();
    const auto remove = [this](const std::string& name, int fd) {
        if (is_named(fd, directory, name)) {
            unlink((directory + "/" + name).c_str());
        }
    };
    remove(index->name(), index->fd());
    remove(slots->name(), slots->fd());
}

BlockStore::BlockStore(std::shared_ptr<State> state) : state_(std::move(state)) {}
BlockStore::~BlockStore() { state_->close(); }
void BlockStore::remove_files() { state_->remove_files(); }
const BlockStore::Beginning& BlockStore::beginning() const { return state_->beginning; }

void BlockStore::note_applied(uint64_t seq) {
    const MutexLock guard(state_->mutex);
    state_->index->ledger().note_applied(seq);
}

BlockStore::Reserved BlockStore::reserve(const Owner& owner, const NamespaceRef& ns,
                                         const ReserveItem& item) {
    State::Lock lock(*state_);
    return state_->reserve(lock.held, owner, ns, item);
}

std::vector<BlockStore::Reserved> BlockStore::reserve_all(const Owner& owner,
                                                          const NamespaceRef& ns,
                                                          std::span<const ReserveItem> items) {
    std::vector<Reserved> all;
    all.reserve(items.size());
    while (all.size() < items.size()) {
        State::Lock lock(*state_);
        const size_t end = std::min(items.size(), all.size() + kReservesPerLock);
        while (all.size() < end) {
            all.push_back(state_->reserve(lock.held, owner, ns, items[all.size()]));
        }
    }
    return all;
}

BlockStore::Reserved BlockStore::State::reserve(MutexLock& lock, const Owner& owner,
                                                const NamespaceRef& ns, const ReserveItem& item) {
    Reserved reply;
    const auto refuse = [&reply](Code code, std::string message = {}) {
        reply.code = code;
        reply.message = std::move(message);
        return reply;
    };
    ++totals.reserves;
    const auto size = [&item] { return std::to_string(item.size_bytes) + " bytes"; };
    if (!is_valid_key(item.key) || item.parent.size() > limits::kMaxKeyBytes) {
        return refuse(Code::kInvalidArgument, "not a key");
    }
    if (is_flushed(ns->id)) {
        return refuse(Code::kRemoved);
    }
    if (item.size_bytes > segment->size() || item.size_bytes > limits::kMaxObjectBytes) {
        return refuse(Code::kTooLarge,
                      size() + " do not fit segment_size " + std::to_string(segment->size()));
    }
    if (const EntryRef here = find_valid(ns, item.key, item.hash);
        here != kNoEntry && !item.force) {
        note_exists(owner.session, here);
        return refuse(Code::kAlreadyExists);
    }
    if (item.spare != 0) {
        return assign_spare(owner, ns, item);
    }
    if (!reservations.has_room(owner, item.size_bytes)) {
        ++totals.no_space;
        return refuse(Code::kNoSpace, size() + " more would exceed client_cap_bytes " +
                                          std::to_string(options.client_cap_bytes) +
                                          " of unpublished data");
    }
    const auto offset = obtain_block(lock, item.size_bytes, item.lossless);
    if (!offset) {
        ++totals.no_space;
        return refuse(Code::kNoSpace, "nothing evictable makes room for " + size() +
                                          " in segment_size " + std::to_string(segment->size()));
    }
    const Generation generation = draw_generation();
    if (!add_reservation(generation, reservation_of(owner, ns, item, *offset))) {
        return refuse(Code::kNoSpace, "too many writes are under way");
    }
    return block_of(generation, *offset);
}

// Written down before its writer hears of it: a later life must not give the block to another one.
bool BlockStore::State::add_reservation(Generation generation, Reservation reservation) {
    Ledger& ledger = index->ledger();
    if (ledger.has_room_for_writes()) {
        reservation.line = ledger.add_block(BlockUse::kReserved, generation, reservation.offset,
                                            reservation.size_bytes, reservation.owner.slot);
    }
    if (reservation.line == Ledger::kNoLine) {
        allocator.free(reservation.offset);
        ++totals.no_space;
        return false;
    }
    reservations.add(generation, std::move(reservation));
    return true;
}

Generation BlockStore::State::draw_generation() {
    KV_ASSERT(generation_counter < kMaxCounter);
    return steps::draw_generation(steps::RealMemory{}, options.node_epoch, generation_counter);
}

BlockStore::Reserved BlockStore::State::block_of(Generation generation, uint64_t offset) const {
    return {Code::kOk, generation, offset, segment->data() + offset, {}};
}

Reservation BlockStore::State::reservation_of(const Owner& owner, const NamespaceRef& ns,
                                              const ReserveItem& item, uint64_t offset) const {
    Reservation reservation;
    reservation.owner = owner;
    reservation.ns = ns;
    reservation.key = item.key;
    reservation.hash = item.hash;
    reservation.parent =
        item.parent.empty() ? item.parent_hash : key_hash(options.secret, ns->id, item.parent);
    reservation.put_wall_ms = item.put_wall_ms;
    reservation.offset = offset;
    reservation.size_bytes = item.size_bytes;
    reservation.ttl_ms = std::min(item.ttl_ms, kMaxTtlMs);
    reservation.deadline_ms = now() + options.reservation_ms;
    reservation.pin = item.pin;
    return reservation;
}

BlockStore::Reserved BlockStore::reserve_spare(const Owner& owner, uint64_t size_bytes) {
    State::Lock lock(*state_);
    return state_->reserve_spare(lock.held, owner, size_bytes);
}

BlockStore::Reserved BlockStore::State::reserve_spare(MutexLock& lock, const Owner& owner,
                                                      uint64_t size_bytes) {
    Reserved none;
    none.code = Code::kNoSpace;
    const uint64_t cap = segment->size() / kSpareShare;
    const uint64_t used = reservations.spare_bytes();
    if (owner.slot < 0 || used > cap || size_bytes > cap - used ||
        !reservations.has_room(owner, size_bytes)) {
        return none;
    }
    const auto offset = obtain_block(lock, size_bytes, false);
    if (!offset) {
        return none;
    }
    ReserveItem nothing;
    nothing.size_bytes = size_bytes;
    Reservation reservation = reservation_of(owner, nullptr, nothing, *offset);
    reservation.spare = true;
    const Generation generation = draw_generation();
    if (!add_reservation(generation, std::move(reservation))) {
        return none;
    }
    return block_of(generation, *offset);
}

// Whoever names a spare has to be the process that it was given to, on whatever session.
BlockStore::Reserved BlockStore::State::assign_spare(const Owner& owner, const NamespaceRef& ns,
                                                     const ReserveItem& item) {
    reservations.quarantine_expired(now());
    const Reservation* spare = reservations.find(item.spare);
    if (spare == nullptr || !spare->spare || spare->quarantined ||
        spare->owner.slot != owner.slot || spare->size_bytes != item.size_bytes) {
        Reserved expired;
        expired.code = Code::kExpired;
        return expired;
    }
    const uint64_t offset = spare->offset;
    reservations.assign(item.spare, reservation_of(owner, ns, item, offset));
    return block_of(item.spare, offset);
}

Code BlockStore::grant(Generation generation, Version version) {
    State::Lock lock(*state_);
    return state_->grant(generation, version);
}

Code BlockStore::State::grant(Generation generation, Version version) {
    reservations.quarantine_expired(now());
    Reservation* reservation = reservations.find(generation);
    if (reservation == nullptr || reservation->spare || version == 0) {
        return Code::kInvalidArgument;
    }
    reservation->version = version;
    if (reservation->quarantined) {
        return Code::kExpired;
    }
    return check_version(*reservation, version);
}

Code BlockStore::State::check_version(const Reservation& reservation, Version version) const {
    const bool removed =
        is_flushed(reservation.ns->id) || tombstones.removed_upto(reservation.hash) >= version;
    return removed ? Code::kRemoved : Code::kOk;
}

std::vector<BlockStore::Published> BlockStore::publish(const Owner& owner,
                                                       std::span<const PublishItem> items) {
    std::vector<Published> results;
    results.reserve(items.size());
    std::vector<EntryRef> published;
    State::Lock lock(*state_);
    state_->apply_exists();
    for (const PublishItem& item : items) {
        EntryRef ref = kNoEntry;
        results.push_back(state_->publish(owner, item, &ref));
        if (ref != kNoEntry) {
            published.push_back(ref);
        }
    }
    state_->stamp_batch(published);
    return results;
}

BlockStore::Published BlockStore::State::publish(const Owner& owner, const PublishItem& item,
                                                 EntryRef* published) {
    reservations.quarantine_expired(now());
    const Reservation* reservation = reservations.find(item.generation);
    if (reservation == nullptr || reservation->spare ||
        reservation->owner.session != owner.session || reservation->owner.slot != owner.slot) {
        return {Code::kInvalidArgument, 0, nullptr};
    }
    if (!steps::may_publish(steps::RealMemory{}, !reservation->quarantined)) {
        return {Code::kExpired, 0, nullptr};
    }
    const Version version = item.version != 0 ? item.version : reservation->version;
    if (version == 0) {
        return {Code::kInvalidArgument, 0, nullptr};
    }

    const auto refuse = [&](Code code) {
        drop_reservation(item.generation);
        return Published{code, 0, nullptr};
    };
    const Code removed = check_version(*reservation, version);
    if (removed != Code::kOk) {
        return refuse(removed);
    }
    const EntryRef old = index->find(reservation->ns->id, reservation->hash, reservation->key);
    if (old != kNoEntry && index->entry(old).version >= version) {
        return refuse(Code::kAlreadyExists);
    }
    const Identity identity{reservation->ns->tenant_id, reservation->ns->id, reservation->hash,
                            version, reservation->size_bytes};
    const uint32_t sealed_crc = seal_checksum(item.data_crc, identity);
    const auto inserted = insert(*reservation, item.generation, version, sealed_crc, old);
    if (!inserted.ok()) {
        return refuse(Code::kNoSpace);
    }
    *published = *inserted;
    fault_point("entry_inserted");  // two records own the block
    index->ledger().drop_block(reservations.take(item.generation).line);
    ++totals.publishes;
    return {Code::kOk, sealed_crc, make_hold(*inserted)};
}

// The new entry goes in before the old one goes out, so that a reader meets one or the other; only
// when the index is full does the old one make the room.
Result<EntryRef> BlockStore::State::insert(const Reservation& reservation, Generation generation,
                                           Version version, uint32_t sealed_crc, EntryRef old) {
    Index::NewEntry entry;
    entry.identity = {reservation.ns->tenant_id, reservation.ns->id, reservation.hash, version,
                      reservation.size_bytes};
    entry.offset = reservation.offset;
    entry.crc = sealed_crc;
    entry.expires_at_ms = reservation.ttl_ms == 0 ? 0 : now() + reservation.ttl_ms;
    entry.gen = generation;
    entry.key = reservation.key;
    entry.parent = reservation.parent;
    entry.put_wall_ms = reservation.put_wall_ms != 0 ? reservation.put_wall_ms : wall_ms();
    // A pin is durable policy: a new version does not take it away.
    entry.pin = old == kNoEntry ? reservation.pin : std::max(reservation.pin, objects[old].pin);
    Result<EntryRef> inserted = index->insert(entry);
    while (!inserted.ok()) {
        if (old != kNoEntry) {
            withdraw(std::exchange(old, kNoEntry), MissReason::kVersion);
            ++totals.replaced;
        } else if (!evict_for_index(reservation.hash)) {
            return Code::kNoSpace;
        }
        inserted = index->insert(entry);
    }
    fault_point("entry_replacing");  // two entries of one key
    adopt(*inserted, reservation, generation, entry.expires_at_ms);
    set_pin(*inserted, entry.pin);
    if (old != kNoEntry) {
        withdraw(old, MissReason::kVersion);
        ++totals.replaced;
    }
    return *inserted;
}

void BlockStore::State::adopt(EntryRef ref, const Reservation& reservation, Generation generation,
                              uint64_t expires_at_ms) {
    StoredObject object;
    object.generation = generation;
    object.offset = reservation.offset;
    object.length = reservation.size_bytes;
    object.expires_at_ms = expires_at_ms;
    object.ns = use_namespace(reservation.ns);
    if (!(reservation.parent == Hash128{})) {
        link_parent(&object, index->find_hash(reservation.ns->id, reservation.parent));
    }
    enter(ref, object);
}

void BlockStore::State::link_parent(StoredObject* object, EntryRef parent) const {
    object->parent = parent;
    if (parent == kNoEntry) {
        return;
    }
    object->parent_generation = static_cast<uint32_t>(objects[parent].generation);
}

// Into all tables; the entry is in the index already.
void BlockStore::State::enter(EntryRef ref, const StoredObject& object) {
    KV_ASSERT(objects[ref].generation == 0);
    objects[ref] = object;
    by_generation.insert(object.generation, ref);
    by_offset.insert(object.offset, ref);
    evictor.add(ref, allocator.block_bytes(object.offset), false);
    evictor.touch(ref);
    ++totals.objects;
    totals.object_bytes += object.length;
    if (options.tiered) {
        ++totals.unwritten;
        totals.unwritten_bytes += object.length;
        to_write.push_back(object.generation);
    }
    if (object.expires_at_ms != 0) {
        expiries.push_back({object.expires_at_ms, object.generation});
        std::push_heap(expiries.begin(), expiries.end(), std::greater<>());
    }
}

// A chain must lose its tail before its head, so stamps are written from the last item to the
// first, and from each item on to its ancestors, which are then all newer than what follows them.
void BlockStore::State::stamp_batch(std::span<const EntryRef> published) {
    const uint64_t begin = evictor.clock();
    for (size_t i = published.size(); i-- > 0;) {
        EntryRef ref = published[i];
        // A later item of the batch may have replaced this one.
        if (objects[ref].generation == 0) {
            continue;
        }
        for (size_t depth = 0; depth < limits::kMaxBatchKeys; ++depth) {
            if (evictor.stamp(ref) > begin) {
                break;  // its ancestors were stamped too
            }
            evictor.touch(ref);
            ref = parent_of(ref);
            if (ref == kNoEntry) {
                break;
            }
        }
    }
}

Code BlockStore::abort(const Owner& owner, Generation generation) {
    State::Lock lock(*state_);
    return state_->abort(owner, generation);
}

Code BlockStore::State::abort(const Owner& owner, Generation generation) {
    const Reservation* reservation = reservations.find(generation);
    if (reservation == nullptr) {
        return Code::kInvalidArgument;
    }
    // A slot is one process, and a process knows of all its copies; without one the session is all.
    const bool own = reservation->owner.slot == owner.slot &&
                     (owner.slot >= 0 || reservation->owner.session == owner.session);
    if (!own) {
        return Code::kInvalidArgument;
    }
    end_reservation(generation, true, true);
    ++totals.aborts;
    return Code::kOk;
}

void BlockStore::end_earlier_writes(int slot, uint32_t node_epoch) {
    State::Lock lock(*state_);
    for (const Generation generation : state_->reservations.of_slot(slot)) {
        if (epoch_of(generation) < std::min(node_epoch, state_->options.node_epoch)) {
            state_->end_reservation(generation, true, true);
        }
    }
}

// The block was never readable, so no hazard can rightly name it: it is free at once.
void BlockStore::State::drop_reservation(Generation generation) {
    const Reservation over = reservations.take(generation);
    index->ledger().drop_block(over.line);
    allocator.free(over.offset);
}

void BlockStore::State::end_reservation(Generation generation, bool writer_said_stopped,
                                        bool writer_lock_held) {
    if (steps::may_reuse_reservation(steps::RealMemory{}, writer_said_stopped, writer_lock_held,
                                     false)) {
        drop_reservation(generation);
    } else {
        reservations.quarantine(generation);
    }
}

void BlockStore::on_session_closed(uint64_t session) {
    State::Lock lock(*state_);
    state_->session_closed(session);
}

void BlockStore::State::session_closed(uint64_t session) {
    for (const Generation generation : reservations.of_session(session)) {
        // Without a slot the node itself was the writer, and it has stopped.
        const bool node_writes = reservations.find(generation)->owner.slot < 0;
        end_reservation(generation, node_writes, true);
    }
    end_leases(leases.take_session(session));
    for (auto it = socket_holds.lower_bound({session, 0});
         it != socket_holds.end() && it->first.first == session;) {
        // A process that lives may still read what it holds.
        if (it->second.owner.slot >= 0) {
            ++it;
            continue;
        }
        it = end_socket_hold(it);
    }
}

void BlockStore::on_slot_dead(int slot) {
    State::Lock lock(*state_);
    state_->slot_dead(slot);
}

void BlockStore::State::slot_dead(int slot) {
    if (slot < 0) {
        return;
    }
    for (const Generation generation : reservations.of_slot(slot)) {
        end_reservation(generation, false, false);
    }
    for (auto it = socket_holds.begin(); it != socket_holds.end();) {
        if (it->second.owner.slot != slot) {
            ++it;
            continue;
        }
        it = end_socket_hold(it);
    }
}

int BlockStore::segment_fd() const { return state_->segment->fd(); }
int BlockStore::index_fd() const { return state_->index->client_fd(); }
int BlockStore::clients_fd() const { return state_->slots->fd(); }
uint64_t BlockStore::segment_bytes() const { return state_->segment->size(); }
Status BlockStore::prefault_status() const { return state_->segment->prefault_status(); }
ClientSlots& BlockStore::client_slots() { return *state_->slots; }

uint64_t BlockStore::flush_counter() const {
    const MutexLock guard(state_->mutex);
    return state_->flush_counter;
}

}  // namespace kvstore
