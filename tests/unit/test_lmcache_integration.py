"""The LMCache plug-in's parts without LMCache."""

from __future__ import annotations

import sys

import pytest

from kvstore.integrations.lmcache.options import Options

PLUGIN = "remote_storage_plugin.kvstore."


def test_the_package_needs_no_lmcache() -> None:
    import kvstore.integrations.lmcache as package

    assert "lmcache" not in sys.modules
    with pytest.raises(AttributeError, match="KVStoreAdaptr"):
        _ = package.KVStoreAdaptr  # type: ignore[attr-defined]


def test_options_are_those_of_one_plugin() -> None:
    options = Options.of(
        "kvstore",
        {
            PLUGIN + "master": "h:1",
            PLUGIN + "module_path": "m",
            PLUGIN + "class_name": "c",
            "remote_storage_plugin.kvstore.second.master": "other:1",
            "save_chunk_meta": False,
        },
    )
    assert options == Options(master="h:1")
    second = Options.of("kvstore.second", {"remote_storage_plugin.kvstore.second.master": "o:1"})
    assert second.master == "o:1"


def test_options_say_what_is_wrong() -> None:
    with pytest.raises(
        ValueError, match=r"remote_storage_plugin\.kvstore\.\*: 'master' is missing"
    ):
        Options.of("kvstore", {})
    with pytest.raises(ValueError, match="'tenat'; did you mean 'tenant'"):
        Options.of("kvstore", {PLUGIN + "master": "h:1", PLUGIN + "tenat": "t"})
