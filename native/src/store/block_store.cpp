// The life of a block store: options, creation, files, end.
#include "store/block_store.h"

#include <unistd.h>

#include <algorithm>

#include "base/clock.h"
#include "base/hmac.h"
#include "base/mutex.h"
#include "store/store_state.h"

namespace kvstore {
namespace {

constexpr uint64_t kDefaultObjectBytes = 4096;  // sizes the index when the operator does not
constexpr uint32_t kMinIndexEntries = 1024;
constexpr uint64_t kMinBlockBytes = 64;              // what the smallest object takes
constexpr uint64_t kRoomForSlots = 64 * kSlotBytes;  // clients of a host, usually

// A quarter more than the smallest usual objects: two-choice buckets fill evenly up to there.
uint32_t index_entries_for(uint64_t size_bytes) {
    const uint64_t entries = size_bytes / kDefaultObjectBytes * 5 / 4;
    return static_cast<uint32_t>(std::clamp<uint64_t>(entries, kMinIndexEntries, kMaxIndexEntries));
}

BlockStore::Options with_defaults(BlockStore::Options options) {
    if (options.index_entries == 0) {
        options.index_entries = index_entries_for(options.size_bytes);
    }
    if (options.max_index_entries == 0) {
        options.max_index_entries =
            static_cast<uint32_t>(std::min(options.size_bytes / kMinBlockBytes, kMaxIndexEntries));
    }
    if (options.client_cap_bytes == 0) {
        options.client_cap_bytes = options.size_bytes / 2;
    }
    if (options.lease_cap_bytes == 0) {
        options.lease_cap_bytes = options.size_bytes / 2;
    }
    if (options.pin_cap_bytes == 0) {
        options.pin_cap_bytes = options.size_bytes / 2;
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
    const Status own =
        files->check_owner({options.node_id, options.node_epoch, cluster_check(options.secret)});
    if (!own.ok()) {
        return own;
    }
    std::shared_ptr<State> state;
    if (files->kept() != nullptr) {
        auto attached = State::attach(options, *files);
        if (!attached.ok() && attached.code() == Code::kNoSpace && !options.allow_cold_restart) {
            return Status(Code::kNoSpace, attached.status().message() +
                                              ". Or set allow_cold_restart, to start empty");
        }
        if (attached.ok()) {
            state = std::move(*attached);
        } else {
            files->start_cold(attached.status().message());
        }
    }
    if (state == nullptr) {
        auto created = State::create(options, *files);
        if (created.code() == Code::kNoSpace && !files->why_cold().empty()) {
            return Status(Code::kNoSpace, created.status().message() +
                                              ". Clients that still map the memory of the earlier "
                                              "process keep it until they are closed");
        }
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
    Segment::Options wanted = segment_options(options, files);
    std::string restart_loses;
    if (!wanted.directory.empty()) {
        const Status fits = choose_room(options, files, &wanted.beside_bytes);
        if (!fits.ok() && !options.allow_cold_restart) {
            return fits;
        }
        restart_loses = fits.message();
    }
    auto segment = Segment::create(wanted);
    if (!segment.ok()) {
        return segment.status();
    }
    auto index = Index::create(index_options(options, files));
    Status status = index.ok() ? (*index)->install() : index.status();
    if (!status.ok()) {
        return (*segment)->remove_file(), status;
    }
    auto state = std::make_shared<State>(options, files.options().directory, std::move(*segment),
                                         std::move(*index), files.take_slots());
    state->beginning.restart_loses = restart_loses;
    return state;
}

// A start is judged by what its restart needs: a second index, while the first one is read. Not Ok
// when there is no room for that one alone.
Status BlockStore::State::choose_room(const Options& options, const StoreFiles& files,
                                      uint64_t* beside_bytes) {
    const uint64_t index_bytes = Index::memory_bytes(index_options(options, files));
    Segment::Options segment = segment_options(options, files);
    segment.beside_bytes = *beside_bytes = 2 * index_bytes + kRoomForSlots;
    const Status fits = Segment::has_room(segment);
    if (fits.code() != Code::kNoSpace) {
        return {};  // what else is wrong is said by who creates it
    }
    segment.beside_bytes = index_bytes + kRoomForSlots;
    if (!Segment::has_room(segment).ok()) {
        return {};
    }
    *beside_bytes = segment.beside_bytes;
    return {Code::kNoSpace,
            fits.message() +
                ". Or set allow_cold_restart: then it starts, and a restart loses its objects"};
}

Segment::Options BlockStore::State::segment_options(const Options& options,
                                                    const StoreFiles& files) {
    Segment::Options segment;
    segment.directory = files.options().directory;
    segment.name = files.segment_name();
    segment.size_bytes = options.size_bytes;
    return segment;
}

Index::Options BlockStore::State::index_options(const Options& options, const StoreFiles& files) {
    Index::Options index;
    index.directory = files.options().directory;
    index.name = files.index_name();
    index.entries = options.index_entries;
    index.max_entries = options.max_index_entries;
    index.node_epoch = options.node_epoch;
    index.node_id = options.node_id;
    index.segment_bytes = options.size_bytes;
    index.cluster_check = cluster_check(options.secret);
    return index;
}

BlockStore::State::State(const Options& given, const std::string& directory_in,
                         std::unique_ptr<Segment> segment_in, std::unique_ptr<Index> index_in,
                         std::unique_ptr<ClientSlots> slots_in)
    : directory(directory_in),
      segment(std::move(segment_in)),
      slots(std::move(slots_in)),
      options(given),
      index(std::move(index_in)),
      allocator(segment->size()),
      sampler(given.sampler ? given.sampler : std::make_shared<UseSampler>()),
      objects(index->max_capacity()),
      by_generation(GenerationOf{&objects}),
      by_offset(OffsetOf{&objects}),
      evictor(index->recency(), options.seed),
      leases(options.lease_cap_bytes),
      reservations(options.client_cap_bytes),
      tombstones(options.tombstone_ms),
      socket_holds(index->ledger()),
      deferred(index->ledger(), allocator,
               [this](std::vector<Generation>* out) { slots->collect_hazards(out); }) {
    if (!grow_tables(index->capacity())) {
        throw std::bad_alloc();
    }
    use_ready_memory();
}

Status BlockStore::State::install() {
    const MutexLock guard(mutex);
    return index->install();
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
    slots->remove_files();
}

BlockStore::BlockStore(std::shared_ptr<State> state) : state_(std::move(state)) {}
BlockStore::~BlockStore() { state_->close(); }
void BlockStore::remove_files() { state_->remove_files(); }

std::string BlockStore::damage() {
    const MutexLock guard(state_->mutex);
    if (std::string why = state_->segment->damage(); !why.empty()) {
        return why;
    }
    return state_->index->torn() ? "the index has lost pages" : std::string();
}

const BlockStore::Beginning& BlockStore::beginning() const { return state_->beginning; }

void BlockStore::note_applied(uint64_t seq) {
    const MutexLock guard(state_->mutex);
    state_->index->ledger().note_applied(seq);
}

int BlockStore::segment_fd(bool writable) const {
    return writable ? state_->segment->fd() : state_->segment->read_only_fd();
}
int BlockStore::index_fd() const {
    const MutexLock guard(state_->mutex);
    return state_->index->client_fd();
}
uint64_t BlockStore::segment_bytes() const { return state_->segment->size(); }
const uint8_t* BlockStore::segment_data() const { return state_->segment->data(); }
uint64_t BlockStore::ready_bytes() const { return state_->segment->ready_bytes(); }
Status BlockStore::prefault_status() const { return state_->segment->prefault_status(); }
ClientSlots& BlockStore::client_slots() { return *state_->slots; }

uint64_t BlockStore::flush_counter() const {
    const MutexLock guard(state_->mutex);
    return state_->flush_counter;
}

}  // namespace kvstore
