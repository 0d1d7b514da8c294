// The history's rules, and those of the processes' state.
#include "checker.h"

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstring>

namespace kvstore::sim {
namespace {

constexpr const char* kTenant = "default";
constexpr uint64_t kSlackNs =
    100 * kMs;  // a call may need this much to notice that its time has passed

std::string show(const KeyName& name) { return name.ns + "/" + name.key; }
std::string show(const Removal& removal) {
    return std::string(removal.is_flush ? "flush " : "remove ") + std::to_string(removal.id) +
           " of " + show(removal.name);
}
std::string hex(uint64_t number) {
    char text[32];
    snprintf(text, sizeof text, "%" PRIx64, number);
    return text;
}

// The reasons that say "it is not there", as opposed to "it cannot be told or reached now".
bool is_absence(MissReason reason) {
    return reason == MissReason::kNone || reason == MissReason::kAbsent ||
           reason == MissReason::kEvicted || reason == MissReason::kRemoved ||
           reason == MissReason::kFlushed || reason == MissReason::kVersion;
}

}  // namespace

Checker::Checker(Cluster& cluster, bool evictions, bool fault_free)
    : cluster_(cluster),
      runtime_(cluster.runtime()),
      evictions_(evictions),
      fault_free_(fault_free) {
    cluster.on_durable = [this](const Op& op) { on_durable(op); };
}

void Checker::fail(const std::string& invariant, const std::string& what) const {
    runtime_.fail(invariant, what);
}

void Checker::check_deadline(const char* what, const KeyName& name, uint64_t deadline_ns) const {
    if (runtime_.now_ns() > deadline_ns + kSlackNs) {
        fail("deadline", std::string(what) + " of " + show(name) + " ended " +
                             std::to_string((runtime_.now_ns() - deadline_ns) / kMs) +
                             " ms after its time");
    }
}

uint64_t& Checker::removal_count(const std::string& ns, const std::string& key) {
    return removal_counts_[{ns, key}];
}

Moment Checker::moment(const KeyName& name) {
    Moment now;
    now.at_ns = runtime_.now_ns();
    now.disturbances = cluster_.network().disturbances();
    now.removals = removal_count(name.ns, name.key) + removal_count(name.ns, "");
    const KeyName all{name.ns, ""};
    now.removing = removing_[name] != 0 || removing_[all] != 0 || half_removed_.contains(name) ||
                   half_removed_.contains(all);
    if (MasterLife* const master = cluster_.master();
        master != nullptr && !master->core->rebuilding()) {
        ++master->threads;  // it is not buried while this one may wait for a mutex
        const std::vector<MasterCore::NodeView> nodes = master->core->nodes();
        if (std::all_of(nodes.begin(), nodes.end(), [](const MasterCore::NodeView& node) {
                return node.connected && node.synced;
            })) {
            now.master_epoch = master->core->options().epoch;
            const uint64_t last_seq = master->core->stats().last_seq;
            now.caught_up = std::ranges::all_of(nodes, [&](const MasterCore::NodeView& node) {
                return node.applied_seq >= last_seq;
            });
        }
        for (const MasterCore::NodeView& node : nodes) {
            now.sessions += node.info.session_id;
        }
        --master->threads;
    }
    return now;
}

// Between the two nothing has happened that could explain an object's absence, or a second claim.
bool Checker::undisturbed(const Moment& begun, const Moment& now) const {
    return !evictions_ && begun.master_epoch != 0 && begun.master_epoch == now.master_epoch &&
           begun.sessions == now.sessions && begun.disturbances == now.disturbances &&
           begun.removals == now.removals && !begun.removing && !now.removing &&
           cluster_.network().cuts() == 0;
}

bool Checker::is_listed(const KeyName& name) {
    MasterLife& master = *cluster_.master();
    const Result<NamespacePtr> ns = master.core->directory().namespaces().open(kTenant, name.ns);
    return ns.ok() &&
           master.core->directory().lookup_one(*(*ns)->current.load(), name.key).code == Code::kOk;
}

// A put was granted whose node may answer it: who asks for the key waits for the announcement.
bool Checker::is_unannounced(const KeyName& name) {
    MasterLife& master = *cluster_.master();
    const Result<NamespacePtr> ns = master.core->directory().namespaces().open(kTenant, name.ns);
    const std::array<std::string_view, 1> keys{name.key};
    return ns.ok() && !master.core->unannounced(**ns, keys).empty();
}

// ---- writes ----------------------------------------------------------------------------------

std::string Checker::bytes_of(uint64_t write_id, uint64_t size) {
    std::string out(std::max<uint64_t>(size, sizeof write_id), '\0');
    std::memcpy(out.data(), &write_id, sizeof write_id);
    Random random(write_id);
    for (size_t at = sizeof write_id; at < out.size(); ++at) {
        out[at] = static_cast<char>(random.next());
    }
    return out;
}

uint64_t Checker::begin_write(KeyName name, uint64_t size, bool upsert, bool one_attempt,
                              uint32_t ttl_ms) {
    Write write;
    write.id = next_write_++;
    write.size = size;
    write.upsert = upsert;
    write.one_attempt = one_attempt;
    write.ttl_ms = ttl_ms;
    write.begun = moment(name);
    write.name = name;
    writes_of_[name].push_back(write.id);
    runtime_.log("write %" PRIu64 " begins: %s%s", write.id, show(name).c_str(),
                 upsert ? ", upsert" : "");
    if (ttl_ms != 0) {
        ++removal_count(name.ns, name.key);  // from now on the key may go by itself
        ++removing_[name];
    }
    const uint64_t id = write.id;
    writes_.emplace(id, std::move(write));
    return id;
}

void Checker::check_exists(uint64_t id, bool undisturbed) {
    const Write& write = writes_.at(id);
    if (write.upsert) {
        return;  // a higher version is there
    }
    const auto& others = writes_of_[write.name];
    if (std::none_of(others.begin(), others.end(), [&](uint64_t other) {
            const Write& one = writes_.at(other);
            return (other != id || !write.one_attempt) &&
                   (!one.ended || one.code != Code::kAlreadyExists || !one.one_attempt);
        })) {
        fail("AlreadyExists", "nobody else has written " + show(write.name));
    }
    // An upsert that failed may have overtaken what its node does not know to be gone yet.
    const bool overtaken = std::ranges::any_of(others, [&](uint64_t other) {
        const Write& one = writes_.at(other);
        return one.upsert && (!one.ended || one.code != Code::kOk);
    });
    if (undisturbed && !overtaken && !is_listed(write.name)) {
        fail("AlreadyExists",
             "no write of " + show(write.name) + " is published, told write " + std::to_string(id));
    }
}

void Checker::end_write(uint64_t id, Code code, uint64_t deadline_ns) {
    Write& write = writes_.at(id);
    write.ended = true;
    write.ended_ns = runtime_.now_ns();
    write.code = code;
    runtime_.log("write %" PRIu64 " ends: %s", id, std::string(code_name(code)).c_str());
    check_deadline("write", write.name, deadline_ns);
    const Moment now = moment(write.name);
    const bool still = undisturbed(write.begun, now);
    if (fault_free_ && code != Code::kOk && code != Code::kAlreadyExists &&
        code != Code::kRemoved && code != Code::kNoSpace) {
        fail("no faults", "write " + std::to_string(id) + " of " + show(write.name) +
                              " ends with " + std::string(code_name(code)));
    }
    if (code == Code::kAlreadyExists) {
        check_exists(id, still);
    }
    if (code != Code::kOk) {
        return;
    }
    // In this order: the announcement may come in between.
    if (still && !is_unannounced(write.name) && !is_listed(write.name)) {
        fail("visible after Ok", "write " + std::to_string(id) + " of " + show(write.name) +
                                     " is not in the directory");
    }
    auto& before = ok_writes_[write.name];
    for (const uint64_t other : before) {
        const Write& one = writes_.at(other);
        if (!one.upsert && !write.upsert && undisturbed(one.begun, now) &&
            undisturbed(write.begun, now)) {
            fail("one Ok a key", "writes " + std::to_string(other) + " and " + std::to_string(id) +
                                     " of " + show(write.name));
        }
    }
    before.push_back(id);
    for (size_t i = 0; i < cluster_.node_count(); ++i) {
        // It may have taken the write, and its store cannot be asked any more.
        if (!cluster_.node_down(i) && cluster_.node(i).stopping) {
            return;
        }
    }
    const std::vector<Held> held = stores(&write.name);
    const auto newest =
        std::max_element(held.begin(), held.end(),
                         [](const Held& a, const Held& b) { return a.version < b.version; });
    for (const Held& one : held) {
        if (one.version == newest->version) {
            placed_[id].insert(one.process);
        }
    }
}

// ---- reads -----------------------------------------------------------------------------------

void Checker::end_read(const Moment& begun, const KeyName& name, const std::string* bytes,
                       MissReason reason, Code code, uint64_t deadline_ns) {
    check_deadline("read", name, deadline_ns);
    if (bytes != nullptr) {
        ++hits_;
        return check_value(begun, name, *bytes);
    }
    if (code == Code::kChecksumMismatch || reason == MissReason::kChecksum) {
        fail("value", "a read of " + show(name) + " meets a wrong checksum");
    }
    if (code != Code::kNotFound || !is_absence(reason)) {
        // Where segments are so small that they evict, a node may have enough bytes on their way.
        const bool busy = evictions_ && reason == MissReason::kUnavailable;
        if (fault_free_ && reason != MissReason::kExpired && reason != MissReason::kRebuilding &&
            !busy) {
            fail("no faults", "a read of " + show(name) + " ends with " +
                                  std::string(code_name(code)) + ", " +
                                  std::string(miss_reason_name(reason)));
        }
        return;
    }
    // A write that was acknowledged before this read began, and nothing since that took it away.
    for (const uint64_t id : ok_writes_[name]) {
        const Write& write = writes_.at(id);
        if (write.ended_ns < begun.at_ns && undisturbed(write.begun, moment(name))) {
            fail("found until removed", "write " + std::to_string(id) + " of " + show(name) +
                                            " was acknowledged, a read misses it (" +
                                            std::string(miss_reason_name(reason)) + ")");
        }
    }
}

void Checker::check_value(const Moment& begun, const KeyName& name, const std::string& bytes) {
    uint64_t id = 0;
    std::memcpy(&id, bytes.data(), std::min(bytes.size(), sizeof id));
    const auto found = writes_.find(id);
    if (found == writes_.end() || bytes != bytes_of(id, found->second.size)) {
        fail("value", "a read of " + show(name) + " returns bytes that nobody wrote");
    }
    const Write& write = found->second;
    if (write.name != name) {
        fail("value", "a read of " + show(name) + " returns the bytes of " + show(write.name));
    }
    if (write.one_attempt && write.ended && write.code == Code::kAlreadyExists) {
        fail("published", "a read of " + show(name) + " returns write " + std::to_string(id) +
                              ", which was told AlreadyExists");
    }
    if (!write.ended || write.code != Code::kOk) {
        return;
    }
    for (const uint64_t other : ok_writes_[name]) {
        const Write& newer = writes_.at(other);
        if (newer.upsert && write.ended_ns < newer.begun.at_ns && newer.ended_ns < begun.at_ns &&
            begun.caught_up) {
            fail("never overtaken", "a read of " + show(name) + " returns write " +
                                        std::to_string(id) + " after upsert " +
                                        std::to_string(other) + " was Ok");
        }
    }
    for (const Removal& removal : removals_) {
        const bool concerns = removal.is_flush ? removal.name.ns == name.ns : removal.name == name;
        if (concerns && removal.ended && removal.code == Code::kOk &&
            write.ended_ns < removal.begun.at_ns && removal.ended_ns < begun.at_ns) {
            fail("never comes back", "a read of " + show(name) + " returns write " +
                                         std::to_string(id) + " after " +
                                         (removal.is_flush ? "flush " : "remove ") +
                                         std::to_string(removal.id) + " was Ok");
        }
    }
}

// ---- removes and flushes ---------------------------------------------------------------------

size_t Checker::begin_removal(KeyName name, bool is_flush) {
    if (is_flush) {
        name.key.clear();
    }
    Removal removal;
    removal.id = removals_.size();
    removal.begun = moment(name);
    removal.is_flush = is_flush;
    removal.name = name;
    runtime_.log("%s %zu begins: %s", is_flush ? "flush" : "remove", removal.id,
                 show(name).c_str());
    ++removal_count(name.ns, name.key);
    ++removing_[name];
    removals_.push_back(std::move(removal));
    return removals_.size() - 1;
}

void Checker::abandon_call(const KeyName& name) {
    ++removal_count(name.ns, name.key);
    half_removed_.insert(name);
}

void Checker::on_durable(const Op& op) {
    logged_[{op.ns, op.key}].push_back({runtime_.now_ns(), op.kind, op.epoch, op.version, op.arg});
}

// The lowest operation of this kind that became durable since then: the caller's own, or one that
// says less.
std::optional<Checker::LoggedOp> Checker::logged_since(const KeyName& name, OpKind kind,
                                                       uint64_t since_ns) const {
    const auto found = logged_.find(name);
    if (found == logged_.end()) {
        return std::nullopt;
    }
    std::optional<LoggedOp> lowest;
    for (const LoggedOp& op : found->second) {
        if (op.kind == kind && op.at_ns >= since_ns && (!lowest || op.version < lowest->version)) {
            lowest = op;
        }
    }
    return lowest;
}

bool Checker::is_ended(const Held& held, uint64_t before_ns) const {
    const auto covered = [&](const KeyName& name, const auto& covers) {
        const auto found = logged_.find(name);
        return found != logged_.end() &&
               std::any_of(found->second.begin(), found->second.end(),
                           [&](const LoggedOp& op) { return op.at_ns < before_ns && covers(op); });
    };
    return covered(held.name,
                   [&](const LoggedOp& op) {
                       return op.kind == OpKind::kRemove && op.epoch == held.epoch &&
                              op.version >= held.version;
                   }) ||
           covered({held.name.ns, ""}, [&](const LoggedOp& op) {
               return op.kind == OpKind::kFlush && op.arg > held.epoch;
           });
}

void Checker::end_removal(size_t id, Code code, const std::vector<std::string>& unreached,
                          uint64_t deadline_ns) {
    Removal& removal = removals_[id];
    const KeyName name = removal.name;
    const char* const what = removal.is_flush ? "flush" : "remove";
    removal.ended = true;
    removal.ended_ns = runtime_.now_ns();
    removal.code = code;
    removal.unreached.insert(unreached.begin(), unreached.end());
    ++removal_count(name.ns, name.key);
    --removing_[name];
    if (code == Code::kOk) {
        half_removed_.erase(name);
    } else if (code != Code::kNotFound) {
        half_removed_.insert(name);
    }
    std::string named;
    for (const std::string& node : unreached) {
        named += " " + node;
    }
    runtime_.log("%s %zu ends: %s%s", what, id, std::string(code_name(code)).c_str(),
                 named.c_str());
    check_deadline(what, name, deadline_ns);
    if (fault_free_ && code != Code::kOk && code != Code::kNotFound) {
        fail("no faults", std::string(what) + " of " + show(name) + " ends with " +
                              std::string(code_name(code)));
    }
    if (code != Code::kOk && code != Code::kPartial) {
        return;
    }
    const OpKind kind = removal.is_flush ? OpKind::kFlush : OpKind::kRemove;
    const auto op = logged_since(name, kind, removal.begun.at_ns);
    check_durable_before_the_answer(removal, op);
    if (op) {
        note_answered(removal, *op);
    }
    check_holders_are_named(removal, op);
    sample();
}

void Checker::check_durable_before_the_answer(const Removal& removal,
                                              const std::optional<LoggedOp>& op) {
    const OpKind kind = removal.is_flush ? OpKind::kFlush : OpKind::kRemove;
    const KeyName& name = removal.name;
    // Partial without one: nothing was recorded; an earlier operation is not done yet.
    if (!op && (removal.code == Code::kOk || (!logged_since(name, kind, 0) &&
                                              !logged_since({name.ns, ""}, OpKind::kFlush, 0)))) {
        fail("durable before the answer", show(removal) + " is not in the journal");
    }
}

void Checker::note_answered(const Removal& removal, const LoggedOp& op) {
    const bool is_ok = removal.code == Code::kOk;
    if (removal.is_flush) {
        auto& answered = flushed_answered_[removal.name.ns];
        answered = std::max(answered, static_cast<uint32_t>(op.arg));
        if (is_ok) {
            auto& ok = flushed_ok_[removal.name.ns];
            ok = std::max(ok, static_cast<uint32_t>(op.arg));
        }
    } else if (op.epoch >= tombstones_[removal.name].epoch) {
        Tombstone& tombstone = tombstones_[removal.name];
        if (op.epoch > tombstone.epoch) {
            tombstone = {};
        }
        tombstone.epoch = op.epoch;
        tombstone.answered = std::max(tombstone.answered, op.version);
        if (is_ok) {
            tombstone.ok = std::max(tombstone.ok, op.version);
        }
    }
}

// Whoever still holds something of it, or of what was ended before, has to be named. Where others
// were in progress at the same time the operation may be theirs.
void Checker::check_holders_are_named(const Removal& removal, const std::optional<LoggedOp>& op) {
    const KeyName& name = removal.name;
    if (removal.code == Code::kPartial && removal.unreached.empty()) {
        fail("Partial", show(removal) + " names nobody");
    }
    const bool alone = std::none_of(removals_.begin(), removals_.end(), [&](const Removal& other) {
        return other.id != removal.id && other.name == name &&
               (!other.ended || other.ended_ns >= removal.begun.at_ns);
    });
    for (const Held& held : stores(nullptr)) {
        const bool concerned = removal.is_flush ? held.name.ns == name.ns : held.name == name;
        const bool by_it =
            op && alone &&
            (removal.is_flush ? held.epoch < op->arg
                              : held.epoch == op->epoch && held.version <= op->version);
        if (concerned && (by_it || is_ended(held, removal.begun.at_ns)) &&
            !removal.unreached.contains(held.node)) {
            fail(removal.code == Code::kOk ? "never comes back" : "Partial",
                 show(removal) + " does not name " + held.node + ", which holds " +
                     show(held.name) + " version " + hex(held.version) + " of epoch " +
                     std::to_string(held.epoch));
        }
    }
}

// ---- state -----------------------------------------------------------------------------------

std::vector<Checker::Held> Checker::stores(const KeyName* only) {
    std::vector<Held> out;
    for (size_t i = 0; i < cluster_.node_count(); ++i) {
        if (cluster_.node_down(i) || !cluster_.node(i).serving()) {
            continue;
        }
        NodeLife& life = cluster_.node(i);
        life.core->domains().store(0).for_each_object(
            [&](std::span<const BlockStore::ObjectInfo> objects) {
                for (const BlockStore::ObjectInfo& object : objects) {
                    const KeyName name{object.ns->name, object.key};
                    if (only == nullptr || name == *only) {
                        out.push_back(
                            {life.id, life.process, name, object.ns->epoch, object.version});
                    }
                }
            });
    }
    return out;
}

void Checker::check_stores(const std::vector<Held>& held) {
    for (const Held& one : held) {
        const auto tombstone = tombstones_.find(one.name);
        if (tombstone != tombstones_.end() && tombstone->second.epoch == one.epoch &&
            one.version <= tombstone->second.ok) {
            fail("never comes back", one.node + " holds " + show(one.name) + " version " +
                                         hex(one.version) + ", removed up to " +
                                         hex(tombstone->second.ok) + " with Ok");
        }
        const auto flushed = flushed_ok_.find(one.name.ns);
        if (flushed != flushed_ok_.end() && one.epoch < flushed->second) {
            fail("never comes back", one.node + " shows " + show(one.name) + " of epoch " +
                                         std::to_string(one.epoch) + ", flushed with Ok");
        }
    }
}

void Checker::check_directory() {
    MasterLife* const master = cluster_.master();
    if (master == nullptr) {
        return;
    }
    Directory& directory = master->core->directory();
    for (const auto& [ns, epoch] : flushed_answered_) {
        const Result<NamespacePtr> space = directory.namespaces().open(kTenant, ns);
        if (space.ok() && (*space)->current.load()->epoch < epoch) {
            fail("flush is kept", "namespace " + ns + " is at epoch " +
                                      std::to_string((*space)->current.load()->epoch) + ", not " +
                                      std::to_string(epoch));
        }
    }
    for (const KeyName& name : names) {
        const Result<NamespacePtr> space = directory.namespaces().open(kTenant, name.ns);
        if (!space.ok()) {
            continue;
        }
        const DirectoryEpoch& epoch = *(*space)->current.load();
        ObjectInfo object;
        if (!directory.inspect(epoch, name.key, object)) {
            continue;
        }
        const auto tombstone = tombstones_.find(name);
        if (tombstone != tombstones_.end() && tombstone->second.epoch == epoch.epoch &&
            object.version <= tombstone->second.answered) {
            fail("nothing below a tombstone", "the directory has " + show(name) + " version " +
                                                  hex(object.version) + ", removed up to " +
                                                  hex(tombstone->second.answered));
        }
        const uint32_t master_epoch = master->core->options().epoch;
        auto& [seen_by, seen_epoch, seen] = highest_[name];
        if (master_epoch == seen_by && epoch.epoch == seen_epoch && object.version < seen) {
            // Only who held the newer version can have taken it along.
            runtime_.log("version of %s goes back from %s to %s", show(name).c_str(),
                         hex(seen).c_str(), hex(object.version).c_str());
            fail("versions only grow",
                 show(name) + " goes back from " + hex(seen) + " to " + hex(object.version));
        }
        seen_by = master_epoch;
        seen_epoch = epoch.epoch;
        seen = object.version;
    }
}

void Checker::sample() {
    check_stores(stores(nullptr));
    check_directory();
}

void Checker::at_rest() {
    half_removed_.clear();  // everybody has applied everything
    sample();
    for (size_t i = 0; i < cluster_.node_count(); ++i) {
        const Status audit = cluster_.node(i).core->domains().store(0).audit();
        if (!audit.ok()) {
            fail("audit", cluster_.node(i).id + ": " + audit.to_string());
        }
    }
    check_same_at_rest();
}

// The directory is the union of what the nodes hold.
void Checker::check_same_at_rest() {
    MasterCore& core = *cluster_.master()->core;
    std::map<NodeNumber, std::string> ids;
    for (const MasterCore::NodeView& node : core.nodes()) {
        ids[node.slot] = node.info.node_id;
    }
    using Row = std::tuple<std::string, std::string, std::string, Version>;
    std::set<Row> recorded;
    uint64_t cursor = 0;
    do {
        cursor = core.directory().scan(cursor, 4096, [&](const ObjectEntry& entry) {
            const DirectoryEpoch& ns = *core.directory().namespaces().at(entry.ns);
            for (size_t i = 0; i < entry.replica_count() && ns.is_current(); ++i) {
                recorded.emplace(ids[entry.replicas[i].node()], ns.owner->name,
                                 std::string(entry.key()), entry.version);
            }
        });
    } while (cursor != 0);
    std::set<Row> held;
    for (const Held& one : stores(nullptr)) {
        held.emplace(one.node, one.name.ns, one.name.key, one.version);
    }
    for (const auto& [more, less, what] :
         {std::tuple(&recorded, &held, "the directory has what its node does not hold: "),
          std::tuple(&held, &recorded, "a node holds what the directory does not have: ")}) {
        for (const auto& [node, ns, key, version] : *more) {
            if (!less->contains({node, ns, key, version})) {
                fail("directory is the union",
                     what + node + " " + ns + "/" + key + " version " + hex(version));
            }
        }
    }
}

std::set<KeyName> Checker::must_be_readable() {
    std::set<KeyName> out;
    for (const auto& [name, ids] : ok_writes_) {
        for (const uint64_t id : ids) {
            const Write& write = writes_.at(id);
            const auto own = removal_counts_.find(name);
            const auto flushes = removal_counts_.find({name.ns, ""});
            const uint64_t removals = (own == removal_counts_.end() ? 0 : own->second) +
                                      (flushes == removal_counts_.end() ? 0 : flushes->second);
            if (evictions_ || write.begun.removing || write.begun.removals != removals ||
                !placed_.contains(id)) {
                continue;
            }
            // A newer version takes an older one along, even when it is lost itself later. A plain
            // write is one, too, where the master had given up the older one's holders.
            const auto& all = writes_of_.at(name);
            if (std::any_of(all.begin(), all.end(), [&](uint64_t other) {
                    const Write& one = writes_.at(other);
                    const bool is_refused =
                        one.ended && !one.upsert && one.code == Code::kAlreadyExists;
                    return other != id && !is_refused &&
                           (!one.ended || one.ended_ns >= write.begun.at_ns);
                })) {
                continue;
            }
            for (size_t i = 0; i < cluster_.node_count(); ++i) {
                if (placed_.at(id).contains(cluster_.node(i).process)) {
                    out.insert(name);
                }
            }
        }
    }
    return out;
}

}  // namespace kvstore::sim
