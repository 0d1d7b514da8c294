"""Targets for objects that any client of a tenant may have stored, where readers expect a form."""

from __future__ import annotations

from kvstore.client.tensor_format import parse_header, tensor_in
from kvstore.errors import InvalidArgumentError
from kvstore.integrations.identity import engine_of


def engine_record(raw: bytes) -> None:
    """What an engine says of itself to others of its model."""
    found = engine_of(raw)
    if found is not None:
        assert 0 < found.pid < 1 << 32 and found.host.isprintable()
        assert max(map(len, (found.host, found.namespace, found.probe))) <= 255


def tensor_object(raw: bytes) -> None:
    """A tensor, read as a NumPy array."""
    try:
        tensor = tensor_in(bytearray(raw), "numpy")
    except InvalidArgumentError as error:
        assert str(error)
        return
    found = parse_header(raw)
    assert found is not None
    layout, start = found
    assert tensor.shape == layout.shape and tensor.nbytes == layout.size_bytes
    assert start + tensor.nbytes == len(raw)
    tensor.tobytes()  # reads all of it
