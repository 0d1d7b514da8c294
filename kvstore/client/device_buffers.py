"""Memory of a GPU: where a buffer of PyTorch, CuPy or any other library lies, and on which stream.

Nothing here needs CUDA: addresses are read from what the libraries say of their arrays.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

from kvstore.errors import InvalidArgumentError
from kvstore.options import one_of

Verify = Literal["checksum", "generation"]
MemoryKind = Literal["host", "cuda"]

LEGACY_STREAM = 0
_DL_CUDA = (2, 13)  # device memory, and managed memory


class DeviceBuffer(NamedTuple):
    """Dense memory of a CUDA device."""

    pointer: int
    size_bytes: int
    stream: int  # what its library queues work on; LEGACY_STREAM when that is not known
    is_writable: bool
    owner: object  # keeps the memory alive


def on_device(buffer: Any) -> bool:
    """Whether a buffer lies in the memory of a CUDA device."""
    if getattr(buffer, "is_cuda", False) is True:  # a torch.Tensor
        return True
    if getattr(buffer, "__cuda_array_interface__", None) is not None:
        return True
    return hasattr(buffer, "__dlpack_device__") and buffer.__dlpack_device__()[0] in _DL_CUDA


def any_on_device(buffers: Any) -> bool:
    """Whether an argument is a list with a buffer in the memory of a CUDA device."""
    return isinstance(buffers, Sequence) and any(map(on_device, buffers))


def device_buffer(buffer: Any) -> DeviceBuffer:
    """Find a buffer in the memory of a CUDA device.

    Args:
        buffer: a torch.Tensor, or anything with ``__cuda_array_interface__`` or ``__dlpack__``,
            C-contiguous.

    Raises:
        InvalidArgumentError: It is none of these, or not contiguous.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(buffer, torch.Tensor) and buffer.is_cuda:
        if not buffer.is_contiguous():
            raise InvalidArgumentError("a tensor on a GPU must be contiguous")
        size = buffer.numel() * buffer.element_size()
        stream = torch.cuda.current_stream(buffer.device).cuda_stream
        return DeviceBuffer(buffer.data_ptr(), size, stream, True, buffer)
    interface = getattr(buffer, "__cuda_array_interface__", None)
    if interface is not None:
        return _from_interface(interface, buffer)
    if on_device(buffer):
        return _from_dlpack(buffer)
    raise InvalidArgumentError(
        f"{type(buffer).__name__} is not memory of a CUDA device, which a call with stream needs"
    )


def _from_interface(interface: dict[str, Any], owner: object) -> DeviceBuffer:
    try:
        pointer, is_read_only = interface["data"]
        shape = tuple(interface["shape"])
        item_bytes = int(interface["typestr"][2:])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgumentError(f"__cuda_array_interface__ is malformed: {error!r}") from None
    strides = interface.get("strides")
    if strides is not None and not is_contiguous(
        shape, [stride / item_bytes for stride in strides]
    ):
        raise InvalidArgumentError("an array on a GPU must be C-contiguous")
    stream = interface.get("stream") or LEGACY_STREAM
    return DeviceBuffer(pointer or 0, _count(shape) * item_bytes, stream, not is_read_only, owner)


class _DLTensor(ctypes.Structure):
    """The beginning of a DLManagedTensor (DLPack's stable layout)."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _from_dlpack(buffer: Any) -> DeviceBuffer:
    # 1 is the legacy stream: what the library has queued is done before what is queued there.
    capsule = buffer.__dlpack__(stream=1)
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = get_pointer(capsule, b"dltensor")
    tensor = ctypes.cast(cast(int, address), ctypes.POINTER(_DLTensor)).contents
    shape = tensor.shape[: tensor.ndim]
    if tensor.strides and not is_contiguous(shape, tensor.strides[: tensor.ndim]):
        raise InvalidArgumentError("an array on a GPU must be C-contiguous")
    size = _count(shape) * ((tensor.bits * tensor.lanes + 7) // 8)
    pointer = (tensor.data or 0) + tensor.byte_offset
    # A capsule that nobody consumed frees the tensor with itself.
    return DeviceBuffer(pointer, size, LEGACY_STREAM, True, capsule)


def is_contiguous(shape: Sequence[int], strides: Sequence[float]) -> bool:
    """Whether elements lie in C order without gaps; strides are in elements."""
    if 0 in shape:
        return True
    expected = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True


def _count(shape: Sequence[int]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def stream_handle(stream: Any) -> int:
    """Return the driver's handle of a stream.

    Args:
        stream: the handle itself (0 is the legacy default stream), a torch.cuda.Stream, a
            cupy.cuda.Stream, or anything with ``__cuda_stream__``.

    Raises:
        InvalidArgumentError: It is none of these.
    """
    if hasattr(stream, "__cuda_stream__"):
        stream = stream.__cuda_stream__()[1]
    for name in ("cuda_stream", "ptr"):
        stream = getattr(stream, name, stream)
    if not isinstance(stream, int) or isinstance(stream, bool) or not 0 <= stream < 1 << 64:
        raise InvalidArgumentError(
            f"stream must be a CUDA stream or its handle, not {type(stream).__name__}"
        )
    return stream


def common_stream(buffers: Sequence[DeviceBuffer], stream: Any) -> int:
    """Return the handle of the stream that a call uses: the given one, else that of its buffers.

    Raises:
        InvalidArgumentError: The stream is wrong, or the buffers have several.
    """
    if stream is not None:
        return stream_handle(stream)
    return one_stream([buffer.stream for buffer in buffers])


def one_stream(streams: Sequence[int]) -> int:
    """Return the stream that all buffers of a call have.

    Raises:
        InvalidArgumentError: They have several.
    """
    if len(set(streams)) > 1:
        raise InvalidArgumentError("the buffers belong to several streams: pass stream")
    return streams[0] if streams else LEGACY_STREAM


def checked_verify(verify: Verify) -> bool:
    """Return whether checksums are verified; raise InvalidArgumentError for an unknown word."""
    if verify == "checksum":  # nearly always, and calls of 2 µs ask
        return True
    one_of("verify", verify, ("checksum", "generation"))
    return False


def is_cuda(memory: MemoryKind) -> bool:
    """Return whether addresses are a device's; raise InvalidArgumentError for an unknown word."""
    one_of("memory", memory, ("host", "cuda"))
    return memory == "cuda"
