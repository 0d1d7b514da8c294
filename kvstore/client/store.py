"""Store: every operation on the objects of one tenant and namespace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kvstore import _native
from kvstore.client import interpreter_end as interpreter_end
from kvstore.client.administration import Administration
from kvstore.client.answers import (
    PinLevel,
    answer,
    checked_lease,
    checked_stride,
    checked_wait,
    kept_as,
    name_reasons,
    statuses_of,
)
from kvstore.client.device_buffers import (
    MemoryKind,
    any_on_device,
    device_buffer,
    is_cuda,
    on_device,
)
from kvstore.client.lookup import Lookup
from kvstore.client.page_calls import PageCalls
from kvstore.client.registration import Registration
from kvstore.client.tensors import TensorCalls
from kvstore.client.view import View
from kvstore.errors import InvalidArgumentError, MissReason, Status
from kvstore.options import whole_number

if TYPE_CHECKING:
    from kvstore.client.buffers import BufferLike

_LARGEST = (1 << 64) - 1


class Store(TensorCalls, PageCalls, Administration):
    """An open store; made by `kvstore.connect` or `kvstore.open`.

    Thread-safe: the calling thread does its own I/O with the GIL released, and no call outlives the
    store's ``timeout_ms``. A miss is None, never an exception; exceptions report what the caller
    has to fix. Every returned byte is verified against the checksum that was computed at the put.

    Keys are str of 1 to 1,024 bytes of UTF-8. Buffers are anything C-contiguous that offers the
    buffer protocol (bytes, bytearray, memoryview, NumPy arrays), or memory of a CUDA device
    (PyTorch, CuPy, DLPack, ``__cuda_array_interface__``); other memory is passed by address to the
    ``*_pointers`` and ``*_from`` calls.

    After `close`, and in a forked child, every call raises ClosedError.
    """

    def __init__(
        self, client: _native.Client, *, address: str, tenant: str, namespace: str
    ) -> None:
        """Wrap a connected client, which the store owns; the names are those it has."""
        self._client = client
        self._tenant = tenant
        self._namespace = namespace
        self._names = f"{address} tenant={tenant!r} namespace={namespace!r}"
        self._server_stats: Callable[[], dict[str, Any]] | None = None
        self._on_close: Callable[[], object] | None = None
        self._registered: set[Registration] = set()

    def _attach(
        self, server_stats: Callable[[], dict[str, Any]], on_close: Callable[[], object]
    ) -> None:
        """Attach the servers of an embedded store: their counters, and how to stop them."""
        self._names = f"embedded {self._names.partition(' ')[2]}"
        self._server_stats = server_stats
        self._on_close = on_close

    # --- writing ---

    def put(
        self,
        key: str,
        buffer: BufferLike,
        *,
        replicas: int = 1,
        pin: PinLevel | None = None,
        ttl_ms: int | None = None,
        parent: str | None = None,
        upsert: bool = False,
        stream: Any = None,
    ) -> Status:
        """Store an object. After Ok every client of the cluster can read it.

        Args:
            key: of the object.
            buffer: its bytes, copied before the call returns.
            replicas: number of nodes that hold it, 1 to 8. Ok means one; the others follow.
            pin: "soft" objects are evicted last, "hard" ones never, until `unpin`.
            ttl_ms: the object expires after this time; None: never.
            parent: key of the previous block of a chain; eviction then removes tails before heads.
            upsert: publish a new version of an existing object instead of returning AlreadyExists.
                Concurrent readers get either version, never a mixture. Ok waits until no other
                node shows an older version, at most one second for a node that hangs.
            stream: for memory of a CUDA device: the bytes are those after all work that is queued
                on this CUDA stream now (a handle, or a stream of PyTorch or CuPy). None: on the
                current stream of the buffer's library. The call returns when they are published.

        Returns:
            Ok; AlreadyExists when the key has a published object, whatever its bytes (a normal
            answer: the first put wins); NoSpace, TooLarge (for every segment), Unavailable,
            DeadlineExceeded (outcome unknown), Removed (by a concurrent remove).

        Raises:
            InvalidArgumentError: An argument is wrong.
            PermissionDeniedError: The principal may not write here.
            ClosedError: The store is closed, or this is a forked child.
        """
        how = kept_as(replicas, pin, ttl_ms)
        if stream is None:
            try:
                return answer(self._client.put(key, buffer, *how, parent, upsert))
            except InvalidArgumentError:
                if not on_device(buffer):
                    raise
        return answer(self._put_device([key], [buffer], (*how, parent, upsert), stream)[0])

    def batch_put(
        self,
        keys: Sequence[str],
        buffers: Sequence[BufferLike],
        *,
        replicas: int = 1,
        pin: PinLevel | None = None,
        ttl_ms: int | None = None,
        parent: str | None = None,
        upsert: bool = False,
        stream: Any = None,
    ) -> list[Status]:
        """Store several objects, with one message per step.

        Args:
            keys: of the objects.
            buffers: their bytes, one for each key.
            replicas: as in `put`.
            pin: as in `put`.
            ttl_ms: as in `put`.
            parent: key of the block before the first; the parent of each further block is the key
                before it in the list. None: the objects are not a chain.
            upsert: as in `put`.
            stream: as in `put`; all buffers are of one device then.

        Returns:
            One status per key, as in `put`.

        Raises:
            InvalidArgumentError: An argument is wrong; nothing was written.
            ClosedError: The store is closed, or this is a forked child.
        """
        how = kept_as(replicas, pin, ttl_ms)
        if stream is None:
            try:
                return statuses_of(self._client.batch_put(keys, buffers, *how, parent, upsert))
            except InvalidArgumentError:
                if not any_on_device(buffers):
                    raise
        return statuses_of(self._put_device(keys, buffers, (*how, parent, upsert), stream))

    def batch_put_from(
        self,
        keys: Sequence[str],
        pointers: Sequence[int | Sequence[int]],
        sizes: Sequence[int | Sequence[int]],
        *,
        replicas: int = 1,
        pin: PinLevel | None = None,
        ttl_ms: int | None = None,
        parent: str | None = None,
        upsert: bool = False,
        memory: MemoryKind = "host",
        stream: Any = None,
    ) -> list[Status]:
        """Store several objects from the given addresses.

        Args:
            keys: of the objects.
            pointers: addresses of memory that stays valid and unchanged during the call; a list of
                them for an object that is gathered from several pieces.
            sizes: bytes at each address, in the same form.
            replicas: as in `put`.
            pin: as in `put`.
            ttl_ms: as in `put`.
            parent: as in `batch_put`.
            upsert: as in `put`.
            memory: what the addresses belong to: "host", or "cuda" for one CUDA device.
            stream: as in `put`; None: the legacy default stream.

        Returns:
            One status per key, as in `put`.

        Raises:
            InvalidArgumentError: An argument is wrong; nothing was written.
            ClosedError: The store is closed, or this is a forked child.
        """
        how = kept_as(replicas, pin, ttl_ms)
        where = (keys, pointers, sizes)
        return statuses_of(self._put_pointers(where, (*how, parent, upsert), memory, stream))

    # --- reading ---

    def get(self, key: str) -> bytes | None:
        """Read an object.

        Args:
            key: of the object.

        Returns:
            Its bytes, verified; None on a miss (`stats` counts the reasons).

        Raises:
            InvalidArgumentError: The key is wrong.
            ClosedError: The store is closed, or this is a forked child.
            MemoryError: The object does not fit this process.
        """
        return self._client.get(key)

    def batch_get(
        self, keys: Sequence[str], *, reasons: list[MissReason] | None = None
    ) -> list[bytes | None]:
        """Read several objects; as `get` for each key.

        Args:
            keys: of the objects.
            reasons: a list that receives, for each key, the reason of a miss (None_ for a hit).

        Returns:
            Bytes or None for each key.

        Raises:
            InvalidArgumentError: A key is wrong.
            ClosedError: The store is closed, or this is a forked child.
            MemoryError: The objects do not fit this process.
        """
        found = self._client.batch_get(keys, reasons)
        name_reasons(reasons)
        return found

    def view(self, key: str) -> View:
        """Hold an object's block and read it without a copy.

        Args:
            key: of the object.

        Returns:
            A context manager that gives a read-only memoryview; on a miss it is false, and gives
            None.

        Raises:
            InvalidArgumentError: The key is wrong.
            ClosedError: The store is closed, or this is a forked child.
        """
        return View(self._client.view(key))

    # --- asking ---

    def exists(self, key: str, *, local: bool = False) -> bool:
        """Say whether an object can be read now.

        Args:
            key: of the object.
            local: answer at once from the memory of this host's nodes that this store maps; what
                is elsewhere, or on NVMe only, is absent. Neither node nor master is asked.

        Returns:
            False also when neither node nor master could be reached.

        Raises:
            InvalidArgumentError: The key is wrong.
            ClosedError: The store is closed, or this is a forked child.
        """
        return self._client.size(key, local) >= 0

    def batch_exists(self, keys: Sequence[str], *, local: bool = False) -> list[bool]:
        """Say for each key whether its object can be read now; as `exists`.

        Args:
            keys: of the objects.
            local: as in `exists`.

        Returns:
            One answer per key.

        Raises:
            InvalidArgumentError: A key is wrong.
            ClosedError: The store is closed, or this is a forked child.
        """
        return [size >= 0 for size in self._client.sizes(keys, local)]

    def size(self, key: str) -> int | None:
        """Return an object's size.

        Args:
            key: of the object.

        Returns:
            Bytes, or None when it is absent or neither node nor master could be reached.

        Raises:
            InvalidArgumentError: The key is wrong.
            ClosedError: The store is closed, or this is a forked child.
        """
        size = self._client.size(key)
        return size if size >= 0 else None

    def batch_sizes(self, keys: Sequence[str]) -> list[int]:
        """Return the sizes of several objects, or why they are unknown.

        Args:
            keys: of the objects.

        Returns:
            For each key the size (0 for an empty object), or a negative status: NotFound where it
            is absent, Unavailable, … where neither node nor master could be reached.

        Raises:
            InvalidArgumentError: A key is wrong.
            ClosedError: The store is closed, or this is a forked child.
        """
        return self._client.sizes(keys)

    def prefix_length(self, keys: Sequence[str], stride: int = 1, *, local: bool = False) -> int:
        """Count the leading keys that are present.

        Args:
            keys: a chain, head first.
            stride: objects that make one page (ranks, or k and v): a page missing one is absent.
            local: as in `exists`.

        Returns:
            A multiple of `stride`, at most len(keys).

        Raises:
            InvalidArgumentError: An argument is wrong.
            ClosedError: The store is closed, or this is a forked child.
        """
        return self._client.prefix_length(keys, checked_stride(stride), local=local)[0]

    def lookup(
        self,
        keys: Sequence[str],
        *,
        stride: int = 1,
        lease_ms: int | None = None,
        wait_ms: int | None = None,
        local: bool = False,
    ) -> Lookup:
        """Find the present prefix and, on request, wait for it and protect it from eviction.

        Args:
            keys: a chain, head first.
            stride: as in `prefix_length`.
            lease_ms: lease the prefix: its objects are not evicted until the lookup is released.
                A native thread renews the leases; a node ends them this long after it has lost
                this process or its own registration. None: no leases.
            wait_ms: wait at most this long until the whole list is present (a decode engine for
                its prefill engine), even beyond the store's ``timeout_ms``; 0 to 600,000. The
                master wakes the call: nothing is polled. It returns early when the master becomes
                unreachable or has too many waiting lookups. None: do not wait.
            local: as in `exists`; without `wait_ms`.

        Returns:
            The lookup; its length is the longest prefix that is present, and leased if asked for.

        Raises:
            InvalidArgumentError: An argument is wrong.
            ClosedError: The store is closed, or this is a forked child.
        """
        stride = checked_stride(stride)
        lease_ms = checked_lease(lease_ms)
        wait_ms = checked_wait(wait_ms, local)
        if lease_ms == 0:
            return Lookup(*self._client.prefix_length(keys, stride, wait_ms, local))
        leases = self._client.lease(keys, stride, lease_ms, wait_ms, local)
        return Lookup(leases.length, leases.reason, leases)

    def register(
        self,
        memory: BufferLike | int,
        size: int | None = None,
        *,
        kind: MemoryKind = "host",
    ) -> Registration:
        """Register memory of this process, once, for all calls that read into it or put from it.

        Over RDMA bytes then move to and from it directly; other memory costs a copy (below 1 MiB)
        or a registration for each call. Tens of gigabytes are registered in slices; it takes about
        a second for ten of them, and the memory is locked meanwhile (`ulimit -l`). Nodes that are
        put to get a key by which they can read and write it. Without UCX it does nothing.

        Memory of a CUDA device is read and written by the network directly, too, where UCX supports
        that (GPUDirect); else its bytes pass through pinned memory of the host.

        Args:
            memory: a writable buffer of the host or of a CUDA device, or an address.
            size: in bytes, of memory given by its address.
            kind: of memory given by its address: "host", or "cuda" for one CUDA device.

        Returns:
            What ends it.

        Raises:
            InvalidArgumentError: The memory is empty, cannot be written, or overlaps memory that is
                registered in part.
            NoSpaceError: The system refuses to lock so much memory.
        """
        if isinstance(memory, int):
            checked = whole_number("size", size, 1, _LARGEST)
            address = whole_number("memory", memory, 1, _LARGEST)
            if is_cuda(kind):
                self._client.register_on_device(address, checked)
            else:
                self._client.register_memory(address, checked)
            return self._registration(address, checked)
        if size is not None or kind != "host":
            raise InvalidArgumentError("size and kind belong to memory given by its address")
        if on_device(memory):
            buffer = device_buffer(memory)
            if not buffer.is_writable:
                raise InvalidArgumentError("memory that cannot be written is not registered")
            self._client.register_on_device(buffer.pointer, buffer.size_bytes)
            return self._registration(buffer.pointer, buffer.size_bytes, buffer.owner)
        address, checked = self._client.register_buffer(memory)
        return self._registration(address, checked, memory)

    def _registration(self, address: int, size: int, memory: object = None) -> Registration:
        made = Registration(self._client, address, size, memory, self._registered.discard)
        self._registered.add(made)
        if self.closed:  # meanwhile
            made.release()
        return made

    def prefetch(self, keys: Sequence[str]) -> int:
        """Ask the nodes to promote objects to memory before they are read.

        Best effort: NVMe-only objects are promoted in the background, within the nodes' limits.

        Args:
            keys: of the objects, in the order in which they will be read.

        Returns:
            Number of these objects that some node holds, in any tier.

        Raises:
            InvalidArgumentError: A key is wrong.
            ClosedError: The store is closed, or this is a forked child.
        """
        return self._client.prefetch(keys)

    # --- removing and keeping ---

    def remove(self, key: str) -> Status:
        """Remove an object; it never comes back.

        Args:
            key: of the object.

        Returns:
            Ok when every holder has applied it; NotFound; Partial when a holder could not be
            reached (it applies the remove before it serves again); Unavailable.

        Raises:
            InvalidArgumentError: The key is wrong.
            PermissionDeniedError: The principal may not remove here.
            ClosedError: The store is closed, or this is a forked child.
        """
        codes, _ = self._client.remove((key,))
        return answer(codes[0])

    def batch_remove(self, keys: Sequence[str]) -> list[Status]:
        """Remove several objects; as `remove` for each key.

        Args:
            keys: of the objects.

        Returns:
            One status per key.

        Raises:
            InvalidArgumentError: A key is wrong.
            ClosedError: The store is closed, or this is a forked child.
        """
        codes, _ = self._client.remove(keys)
        return statuses_of(codes)

    def unpin(self, key: str) -> Status:
        """Remove an object's pin; from then on it is evicted like any other.

        Args:
            key: of the object.

        Returns:
            Ok, NotFound, Partial (a holder will learn it later) or Unavailable.

        Raises:
            InvalidArgumentError: The key is wrong.
            PermissionDeniedError: The principal may not write here.
            ClosedError: The store is closed, or this is a forked child.
        """
        return answer(self._client.set_pin((key,), 0)[0])

    # --- the store itself ---

    @property
    def tenant(self) -> str:
        """Whose objects these are."""
        return self._tenant

    @property
    def namespace(self) -> str:
        """The set of compatible objects that this store reads and writes."""
        return self._namespace

    @property
    def closed(self) -> bool:
        """Whether calls are refused: closed, or a forked child."""
        return self._client.closed

    def close(self) -> None:
        """Release everything and end calls in other threads. Does nothing the second time.

        Views and objects made from them stay readable until they are released.
        """
        self._client.close()
        for registration in [*self._registered]:
            registration.release()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def __enter__(self) -> Store:
        """Return the store itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the store."""
        self.close()

    def __repr__(self) -> str:
        """Show address, tenant, namespace and the number of nodes."""
        return f"<kvstore.Store {self._shown()}>"

    def _shown(self) -> str:
        state = "closed" if self.closed else f"nodes={len(self._client.nodes())}"
        return f"{self._names} {state}"
