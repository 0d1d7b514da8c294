"""The extension offers what the control plane's protocols ask of it."""

from __future__ import annotations

import inspect

import pytest

from kvstore import _native
from kvstore.master.core_api import MasterCoreApi
from kvstore.node.core_api import NodeCoreApi
from tests.support.fake_core import FakeCore


def methods(protocol: type) -> list[str]:
    return [n for n, _ in inspect.getmembers(protocol, inspect.isfunction) if n[0] != "_"]


@pytest.mark.parametrize("name", methods(MasterCoreApi))
def test_the_native_master_has_every_call(name: str) -> None:
    assert callable(getattr(_native.MasterCore, name))
    assert callable(getattr(FakeCore, name))


@pytest.mark.parametrize("name", methods(NodeCoreApi))
def test_the_native_node_has_every_call(name: str) -> None:
    assert callable(getattr(_native.NodeCore, name))


def test_the_probe_exists() -> None:
    assert callable(_native.probe_master)
