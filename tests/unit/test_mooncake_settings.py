"""What the Mooncake drop-in reads: arguments of setup, config.json, the environment; its codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvstore.compat.mooncake.codes import ErrorCode, code_of, presence, size_or_code
from kvstore.compat.mooncake.memory import (
    Addresses,
    BufferHandle,
    MooncakeHostMemAllocator,
    bytes_at,
)
from kvstore.compat.mooncake.settings import (
    ENVIRONMENT,
    MooncakeConfig,
    from_environment,
    settings,
)
from kvstore.compat.mooncake.store import MooncakeDistributedStore, MooncakeDistributedStoreAsync
from kvstore.compat.mooncake.values import ReplicateConfig, SoftPinAction
from kvstore.errors import InvalidArgumentError, Status

LEAST = {"local_hostname": "h", "metadata_server": "", "master_server_addr": "m:1"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ENVIRONMENT, "MOONCAKE_CONFIG_PATH", "KVSTORE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_values_of_a_dict_may_be_strings() -> None:
    found = settings(
        {
            **LEAST,
            "global_segment_size": "3355443200",
            "local_buffer_size": "1gb",
            "enable_ssd_offload": "false",
            "client_http_port": "9300",
            "tenant_id": " ",
        }
    )
    assert (found.global_segment_size, found.local_buffer_size) == (3355443200, 1 << 30)
    assert (found.enable_ssd_offload, found.client_http_port) == (False, 9300)
    assert found.tenant_id == "default"


def test_either_spelling() -> None:
    for key in ("master_server_addr", "master_server_address"):
        assert settings(
            {"local_hostname": "h", "metadata_server": "", key: "a:1, b:2"}
        ).masters == [
            "a:1",
            "b:2",
        ]
    with pytest.raises(InvalidArgumentError, match="two spellings"):
        settings({**LEAST, "master_server_address": "other:1"})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"global_segment_sise": 1}, "did you mean 'global_segment_size'"),
        ({"global_segment_size": "much"}, "global_segment_size"),
        ({"global_segment_size": -1}, "global_segment_size"),
        ({"enable_ssd_offload": "perhaps"}, "enable_ssd_offload"),
        ({"client_http_port": "x"}, "client_http_port"),
        ({"protocol": 7}, "protocol"),
        ({"master_server_addr": "etcd://a:1"}, "host:port"),
        ({"master_server_addr": " , "}, "names no master"),
    ],
)
def test_what_is_wrong_is_named(more: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        settings({**LEAST, **more})
    assert MooncakeDistributedStore().setup({**LEAST, **more}) == ErrorCode.INVALID_PARAMS


def test_what_is_missing_is_named() -> None:
    for key in LEAST:
        with pytest.raises(InvalidArgumentError, match=key):
            settings({name: value for name, value in LEAST.items() if name != key})


def test_what_has_no_effect_is_said_when_it_was_asked_for() -> None:
    quiet = settings({**LEAST, "protocol": "tcp", "rdma_devices": "", "local_buffer_size": 0})
    assert quiet.without_effect() == {}
    loud = settings({**LEAST, "protocol": "rdma", "enable_ssd_offload": True})
    assert loud.without_effect().keys() == {"protocol", "enable_ssd_offload"}


def test_wrong_arguments_are_type_errors_as_in_any_call() -> None:
    store = MooncakeDistributedStore()
    with pytest.raises(TypeError, match="tenant"):
        store.setup("h", "", 0, 0, "tcp", "", "m:1", tenant="x")
    with pytest.raises(TypeError, match="master_server_addr"):
        store.setup("h", "", 0, 0, "tcp", "")
    with pytest.raises(TypeError, match="multiple"):
        store.setup("h", "", 0, 0, "tcp", "", "m:1", local_hostname="x")
    with pytest.raises(TypeError, match="at most"):
        store.setup(*range(20))


def test_a_store_without_setup_answers_codes() -> None:
    store = MooncakeDistributedStoreAsync()
    wrong = int(ErrorCode.INVALID_PARAMS)
    assert store.put("k", b"") == wrong
    assert store.get("k") == b""
    assert store.batch_is_exist(["a", "b"]) == [wrong, wrong]
    assert store.get_buffer("k") is None
    assert store.remove_all() == wrong
    assert store.get_into_ranges([1], [["k"]], [[[0, 0]]], [[[0, 0]]], [[[1, 1]]]) == [
        [[wrong, wrong]]
    ]
    assert store.create_copy_task("k", ["a"]) == ((0, 0), wrong)
    assert store.get_tensor("k") is None
    assert store.close() == 0
    assert store.get_hostname() == ""


def test_config_json_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="MOONCAKE_MASTER"):
        MooncakeConfig.load_from_env()
    monkeypatch.setenv("MOONCAKE_MASTER", "m:1")
    monkeypatch.setenv("MOONCAKE_GLOBAL_SEGMENT_SIZE", "4gb")
    monkeypatch.setenv("MOONCAKE_PROTOCOL", "RDMA")
    found = MooncakeConfig.load_from_env()
    assert (found.master_server_address, found.global_segment_size) == ("m:1", 4 << 30)
    assert (found.protocol, found.local_hostname) == ("rdma", "localhost")
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps(
            {
                "local_hostname": "h",
                "metadata_server": "P2PHANDSHAKE",
                "master_server_address": "n:2",
                "global_segment_size": "1gb",
                "mode": "embedded",
            }
        )
    )
    monkeypatch.setenv("MOONCAKE_CONFIG_PATH", str(file))
    assert from_environment()["master_server_address"] == "n:2"
    read = MooncakeConfig.load_from_env()
    assert (read.global_segment_size, read.further) == (1 << 30, {"mode": "embedded"})
    file.write_text("[]")
    with pytest.raises(ValueError, match="object"):
        MooncakeConfig.from_file(str(file))


def test_every_status_has_a_code() -> None:
    codes = {status: code_of(status) for status in Status}
    assert codes[Status.AlreadyExists] == 0
    assert codes[Status.NoSpace] == -200
    assert codes[Status.BufferTooSmall] == -600
    assert codes[Status.NotFound] == -704
    assert codes[Status.ChecksumMismatch] == -800
    assert codes[Status.Unavailable] == -900
    assert {type(code) for code in codes.values()} == {int}
    assert code_of(-12345) == -1
    assert [presence(n) for n in (0, 5, Status.NotFound, Status.Unavailable)] == [1, 1, 0, -900]
    assert [size_or_code(n) for n in (0, 5, Status.NotFound)] == [0, 5, -704]


def test_pins_and_replicas_of_a_configuration() -> None:
    assert ReplicateConfig().pin is None and ReplicateConfig().replicas == 1
    assert ReplicateConfig(replica_num=99).replicas == 8
    assert ReplicateConfig(with_soft_pin=True, with_hard_pin=True).pin == "hard"
    assert ReplicateConfig(soft_pin_action=SoftPinAction.ENABLE).pin == "soft"
    for name in ("group_ids", "session_ids", "prefer_alloc_in_same_node", "data_type"):
        assert hasattr(ReplicateConfig, name), "engines look for it on the class"


def test_addresses_lock_what_they_name() -> None:
    grown = bytearray(b"abc")
    with Addresses([b"xy", grown, memoryview(b"12345")[1:3]]) as at:
        assert at.sizes == [2, 3, 2]
        assert bytes(bytes_at(at.pointers[2], 2)) == b"23"
        with pytest.raises(BufferError):
            grown.append(0)
    grown.append(0)
    with pytest.raises(TypeError):
        Addresses(["text"])  # type: ignore[list-item]
    assert BufferHandle().ptr() == 0


def test_the_allocator_gives_pages_and_takes_them_back() -> None:
    allocator = MooncakeHostMemAllocator()
    pointer = allocator.alloc(1 << 20)
    assert pointer % 4096 == 0
    view = bytes_at(pointer, 1 << 20)
    view[:3] = b"abc"
    view.release()
    del allocator, view
    other = MooncakeHostMemAllocator()
    assert bytes(bytes_at(pointer, 3)) == b"abc", "memory outlives the allocator"
    assert other.free(pointer) == 0
    assert other.free(pointer) == -1
    assert other.alloc(0) == 0 and other.alloc(1 << 62) == 0
