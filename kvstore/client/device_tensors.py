"""Tensors that lie on a GPU, described without touching their elements."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from kvstore.client.device_buffers import device_buffer, on_device
from kvstore.client.tensor_format import Layout, Memory, is_dense, is_known, torch_dtype

_KINDS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}


def device_memories_of(tensors: Sequence[Any]) -> tuple[list[Memory], list[int]] | None:
    """Find the elements of tensors that all lie on a GPU.

    Args:
        tensors: of PyTorch, or with ``__cuda_array_interface__``; any objects.

    Returns:
        Where each tensor's elements are, and the stream of each; None when one of them is not on a
        GPU, or cannot be described here (it is copied to the host instead).
    """
    if not tensors or not all(map(on_device, tensors)):
        return None
    found = [_of(tensor) for tensor in tensors]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    return [memory for memory, _ in known], [stream for _, stream in known]


def _of(tensor: Any) -> tuple[Memory, int] | None:
    torch = sys.modules.get("torch")
    if torch is not None and not isinstance(tensor, torch.Tensor) and _only_dlpack(tensor):
        tensor = torch.from_dlpack(tensor)
    if torch is not None and isinstance(tensor, torch.Tensor):
        return _of_torch(torch, tensor)
    if _only_dlpack(tensor):
        return None
    return _of_interface(tensor)


def _only_dlpack(tensor: Any) -> bool:
    return getattr(tensor, "__cuda_array_interface__", None) is None


def _of_torch(torch: Any, tensor: Any) -> tuple[Memory, int]:
    dtype = torch_dtype(tensor)
    there = tensor.data_ptr()
    # What these copy is queued on the current stream, before the copies of the call.
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if not is_dense(tensor.shape, tensor.stride()):
        tensor = tensor.contiguous()
    layout = Layout(dtype, "torch", tuple(tensor.shape), tuple(tensor.stride()))
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return Memory(layout, tensor.data_ptr(), tensor, tensor.data_ptr() == there), stream


def _of_interface(tensor: Any) -> tuple[Memory, int] | None:
    interface = dict(tensor.__cuda_array_interface__)
    typestr = interface["typestr"]
    kind, size_bytes = _KINDS.get(typestr[1]), int(typestr[2:])
    if kind is None or typestr[0] == ">":
        return None
    name = kind if kind == "bool" else f"{kind}{8 * size_bytes}"
    if not is_known(name):
        return None
    shape = tuple(interface["shape"])
    strides = tuple(stride // size_bytes for stride in interface.get("strides") or ())
    if not strides:
        strides = _c_order(shape)
    elif not is_dense(shape, strides):
        return None
    # The order of the elements is the layout's: their memory is dense in any order.
    buffer = device_buffer(_Dense({**interface, "strides": None}))
    layout = Layout(name, "numpy", shape, strides)
    return Memory(layout, buffer.pointer, tensor, buffer.is_writable), buffer.stream


class _Dense:
    """The memory of an array, whatever the order of its elements."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__cuda_array_interface__ = interface


def _c_order(shape: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    expected = 1
    for extent in reversed(shape):
        strides.insert(0, expected)
        expected *= extent
    return tuple(strides)
