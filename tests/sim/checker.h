// What has to hold: the history of every call of every client, and the state of every process, seen
// from outside of the protocol.
//
// History: who wrote what when, and what each read returned. State: what the master's directory and
// the nodes' stores hold against the tombstones that the disk has recorded. Each failure names its
// invariant; main.cpp prints it with the seed.
//
// The invariants, by the names that failures print:
//   deadline                    a call returns by its deadline
//   no faults                   without faults, every call succeeds or has a reason of its own
//   value                       a read returns the bytes of one write of that key, undamaged
//   published                   a read never returns a write that was told AlreadyExists
//   found until removed         an acknowledged write is found until something takes it away
//   never comes back            nothing removed or flushed with Ok is held or read again
//   visible after Ok            the directory lists a write once it is Ok
//   one Ok a key                of several plain writes of a key, only one is Ok
//   AlreadyExists               told only where somebody else's write is published
//   durable before the answer   a remove or flush is in the journal before its caller is answered
//   Partial                     names every node that still holds something, and at least one
//   nothing below a tombstone   the directory lists no version that was removed
//   flush is kept               a namespace stays at or above the epoch after its last flush
//   versions only grow          within one life of the master and one epoch
//   directory is the union      once quiet, the directory lists exactly what the nodes hold
//   audit                       once quiet, every node's store is consistent
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "cluster.h"

namespace kvstore::sim {

struct KeyName {
    std::string ns;
    std::string key;
    friend auto operator<=>(const KeyName&, const KeyName&) = default;
};

// What must stand still for a claim about the whole of a call.
struct Moment {
    uint64_t at_ns = 0;
    uint64_t disturbances = 0;  // of the network and of processes
    uint64_t removals = 0;      // begun and ended, that may concern the key
    bool removing = false;      // one is in progress, or not applied everywhere
    // 0: none that serves, or one that rebuilds or has still to hear what a node holds.
    uint32_t master_epoch = 0;
    bool caught_up = false;  // every node is linked, and has applied all removes
    // Sum of the nodes' sessions: a master that has not yet met a node's end still calls it synced.
    uint64_t sessions = 0;
};

struct Write {
    uint64_t id = 0;
    KeyName name;
    uint64_t size = 0;
    bool upsert = false;
    bool one_attempt = false;  // a single message: a refusal is the last word on these bytes
    uint32_t ttl_ms = 0;
    Moment begun;
    bool ended = false;
    uint64_t ended_ns = 0;
    Code code = Code::kInternal;
};

struct Removal {
    size_t id = 0;
    KeyName name;  // a flush has no key
    bool is_flush = false;
    Moment begun;
    bool ended = false;
    uint64_t ended_ns = 0;
    Code code = Code::kInternal;
    std::set<std::string> unreached{};
};

class Checker {
  public:
    // `evictions`: objects may go at any time, so that a miss proves nothing.
    Checker(Cluster& cluster, bool evictions, bool fault_free);

    std::vector<KeyName> names;  // that the workload uses, in order

    Moment moment(const KeyName& name);

    uint64_t begin_write(KeyName name, uint64_t size, bool upsert, bool one_attempt,
                         uint32_t ttl_ms);
    static std::string bytes_of(uint64_t write_id, uint64_t size);
    void end_write(uint64_t id, Code code, uint64_t deadline_ns);

    void end_read(const Moment& begun, const KeyName& name, const std::string* bytes,
                  MissReason reason, Code code, uint64_t deadline_ns);

    size_t begin_removal(KeyName name, bool is_flush);
    void end_removal(size_t id, Code code, const std::vector<std::string>& unreached,
                     uint64_t deadline_ns);
    void abandon_call(const KeyName& name);  // its client died; its outcome is unknown

    void on_durable(const Op& op);
    void sample();   // what always holds
    void at_rest();  // what holds once everything is quiet
    // What was acknowledged, and neither removed since nor lost with its node's memory.
    std::set<KeyName> must_be_readable();

    size_t writes() const { return writes_.size(); }
    size_t hits() const { return hits_; }

  private:
    struct Tombstone {
        uint32_t epoch = 0;    // of the namespace
        Version answered = 0;  // said to a caller, wholly or in part
        Version ok = 0;        // every holder has applied it
    };
    struct LoggedOp {
        uint64_t at_ns;
        OpKind kind;
        uint32_t epoch;
        Version version;
        uint64_t arg;
    };
    struct Held {
        std::string node;
        Process process = 0;
        KeyName name;
        uint32_t epoch = 0;
        Version version = 0;
    };
    [[noreturn]] void fail(const std::string& invariant, const std::string& what) const;
    void check_deadline(const char* what, const KeyName& name, uint64_t deadline_ns) const;
    void check_value(const Moment& begun, const KeyName& name, const std::string& bytes);
    bool undisturbed(const Moment& begun, const Moment& now) const;
    // Whether the directory has the key for readers now.
    bool is_listed(const KeyName& name);
    bool is_unannounced(const KeyName& name);
    void check_exists(uint64_t id, bool undisturbed);  // what was told AlreadyExists
    std::vector<Held> stores(const KeyName* only);
    void check_stores(const std::vector<Held>& held);
    void check_directory();
    void check_same_at_rest();
    std::optional<LoggedOp> logged_since(const KeyName& name, OpKind kind, uint64_t since_ns) const;
    // Whether an operation that became durable before this time covers what the node holds.
    bool is_ended(const Held& held, uint64_t before_ns) const;
    // Of a removal that has just been answered; `op` is its operation, if it logged one.
    void check_durable_before_the_answer(const Removal& removal, const std::optional<LoggedOp>& op);
    void check_holders_are_named(const Removal& removal, const std::optional<LoggedOp>& op);
    void note_answered(const Removal& removal, const LoggedOp& op);
    uint64_t& removal_count(const std::string& ns, const std::string& key);

    Cluster& cluster_;
    Runtime& runtime_;
    const bool evictions_;
    const bool fault_free_;
    std::map<uint64_t, Write> writes_;
    std::map<KeyName, std::vector<uint64_t>> writes_of_;
    std::map<KeyName, std::vector<uint64_t>> ok_writes_;
    std::vector<Removal> removals_;
    std::map<KeyName, uint64_t> removal_counts_;  // a flush counts under the empty key
    std::map<KeyName, uint32_t> removing_;
    // Where the last removal ended with less than Ok: until the next that is Ok, or the next rest,
    // a node that it has not reached shows its clients what it covers.
    std::set<KeyName> half_removed_;
    std::map<KeyName, std::vector<LoggedOp>> logged_;
    std::map<KeyName, Tombstone> tombstones_;
    std::map<std::string, uint32_t> flushed_answered_;  // namespace → the epoch after it
    std::map<std::string, uint32_t> flushed_ok_;
    // Seen in the directory, with the epochs of the master, which learns versions anew as the nodes
    // announce them, and of the namespace.
    std::map<KeyName, std::tuple<uint32_t, uint32_t, Version>> highest_;
    std::map<uint64_t, std::set<Process>> placed_;  // on whom acknowledged writes lay
    uint64_t next_write_ = 1;
    size_t hits_ = 0;
};

}  // namespace kvstore::sim
