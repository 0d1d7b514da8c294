// Holding a block by hazard, else by socket, else copying the object.
#include "client/object_view.h"

#include "base/fault_point.h"
#include "client/get_path.h"

namespace kvstore {
namespace {

class OwnMemory final : public GetMemory {
  public:
    explicit OwnMemory(std::vector<uint8_t>* bytes) : bytes_(bytes) {}
    void provide(std::span<const Want> wants, std::span<GetItem> items) override {
        for (const Want& want : wants) {
            bytes_->resize(std::max<uint64_t>(want.size, 1));
            items[want.item].data = Pieces(bytes_->data(), want.size);
        }
    }

  private:
    std::vector<uint8_t>* bytes_;
};

}  // namespace

std::unique_ptr<ObjectView> ObjectView::open(ClientContext& context, std::string_view key,
                                             Deadline deadline) {
    std::vector<LocalPeer> locals;
    context.nodes().locals(deadline, &locals);
    CallTally tally;
    std::unique_ptr<ObjectView> view;
    for (const LocalPeer& local : locals) {
        const Result<NamespaceId> ns = local.node->current_namespace(deadline);
        if (!ns.ok()) {
            continue;
        }
        HashedKey hashed{key, {}, 0};
        context.rehash(&hashed, *ns);
        bool wrong = false;
        view = hold(local.node, context.identity(hashed), key, &wrong, deadline);
        if (wrong) {
            tally.add(ClientCounter::kWrongChecksums);
        }
        if (view != nullptr) {
            tally.add(ClientCounter::kKeysRead);
            tally.add(ClientCounter::kHitsShm);
            tally.add(ClientCounter::kViews);
            break;
        }
    }
    context.count(tally, locals.empty() ? nullptr : &locals.front().node->slot());
    return view != nullptr ? std::move(view) : copy(context, key, deadline);
}

std::unique_ptr<ObjectView> ObjectView::hold(const std::shared_ptr<LocalNode>& node,
                                             const Identity& identity, std::string_view key,
                                             bool* wrong, Deadline deadline) {
    const uint64_t now_ms = boottime_ms();
    for (int i = 0; i < kCopyTries; ++i) {
        const auto found = node->index().probe(identity.ns, identity.hash, key, now_ms);
        if (!found) {
            return nullptr;
        }
        std::unique_ptr<ObjectView> view(new ObjectView());
        view->node_ = node;
        bool stale = false;
        if (!view->keep(*found, &stale, deadline)) {
            if (stale) {
                continue;
            }
            return nullptr;
        }
        fault_point("client_view_held");
        view->data_ = node->segment() + found->offset;
        view->size_ = found->length;
        if (!verify_object(node->segment(), *found, identity)) {
            *wrong = true;
            return nullptr;
        }
        node->slot().touch(found->ref);
        return view;
    }
    return nullptr;
}

// True when the block is held. With all hazards in use the node is asked to hold it; what it says
// is about the generation, which therefore is checked once more.
bool ObjectView::keep(const IndexReader::Found& found, bool* stale, Deadline deadline) {
    ClientSlot::Handle handle = 0;
    switch (hold_object(node_->index(), node_->slot(), found, &handle)) {
        case HoldResult::kHeld:
            hazard_ = handle;
            return true;
        case HoldResult::kStale:
            *stale = true;
            return false;
        case HoldResult::kFull:
            break;
    }
    if (!node_->hold(found.gen, deadline).ok()) {
        return false;
    }
    held_by_socket_ = found.gen;
    *stale = !node_->index().still_valid(found.ref, found.gen);
    return !*stale;
}

std::unique_ptr<ObjectView> ObjectView::copy(ClientContext& context, std::string_view key,
                                             Deadline deadline) {
    std::unique_ptr<ObjectView> view(new ObjectView());
    OwnMemory memory(&view->copy_);
    GetItem item;
    item.key = key;
    GetPath(context, &memory).run({&item, 1}, deadline);
    if (item.result < 0) {
        return nullptr;
    }
    view->data_ = view->copy_.data();
    view->size_ = static_cast<uint64_t>(item.result);
    return view;
}

ObjectView::~ObjectView() {
    // A forked child holds nothing: the hold is its parent's.
    if (fork_guard_.in_child()) {
        return;
    }
    if (hazard_) {
        node_->slot().clear_hazard(*hazard_);
    }
    if (held_by_socket_ != 0) {
        node_->unhold(held_by_socket_);
    }
}

}  // namespace kvstore
