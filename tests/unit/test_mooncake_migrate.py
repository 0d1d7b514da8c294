"""kvstore config migrate: Mooncake's config.json as one of kvstore-node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvstore.cli.operator import main
from kvstore.compat.mooncake.migrate import migrate
from kvstore.config import NodeConfig, load
from kvstore.errors import InvalidArgumentError

SAMPLE = {
    "local_hostname": "10.0.0.7:12345",
    "metadata_server": "http://10.0.0.1:8080/metadata",
    "master_server_address": "10.0.0.1:50051",
    "global_segment_size": "4gb",
    "local_buffer_size": "1gb",
    "protocol": "rdma",
    "device_name": "mlx5_0",
    "enable_ssd_offload": True,
    "ssd_offload_path": "/nvme",
    "tenant_id": "team",
    "mode": "embedded",
    "colour": "blue",
}


def test_a_whole_file() -> None:
    done = migrate(SAMPLE)
    assert done.node == {
        "master_address": "10.0.0.1:50051",
        "host": "10.0.0.7",
        "labels": {"host": "10.0.0.7"},
        "segment_size": 4 << 30,
        "shm_write": ["default", "team"],
    }
    load(NodeConfig, None, done.node)
    said = {remark.split(":")[0]: remark for remark in done.remarks}
    for key in SAMPLE:
        if key not in ("master_server_address", "ssd_offload_path", "device_name"):
            assert key in said, f"nothing is said of {key}"
    assert "mlx5_0" not in json.dumps(done.node)
    assert "nvme_dir (/nvme)" in said["enable_ssd_offload"]
    assert "unknown" in said["colour"]


def test_a_pure_client_needs_no_node() -> None:
    done = migrate({"master_server_addr": "a:1, b:2", "global_segment_size": 0})
    assert done.node == {}
    assert any("pure client" in remark for remark in done.remarks)
    both = migrate({"master_server_addr": "a:1, b:2", "local_hostname": "localhost"})
    assert both.node == {"master_address": ["a:1", "b:2"], "segment_size": 1 << 30}


@pytest.mark.parametrize(
    "wrong", [{}, {"global_segment_size": "much"}, {"enable_ssd_offload": "perhaps"}]
)
def test_what_is_wrong_is_named(wrong: dict[str, Any]) -> None:
    values = {"master_server_address": "a:1", **wrong} if wrong else wrong
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong), "master_server_address")):
        migrate(values)


def test_the_command(tmp_path: Path) -> None:
    file, output = tmp_path / "mooncake.json", tmp_path / "node.json"
    file.write_text(json.dumps(SAMPLE))
    run = CliRunner().invoke(main, ["config", "migrate", str(file), "--output", str(output)])
    assert run.exit_code == 0, run.output
    assert "protocol:" in run.stderr and run.stdout == ""
    assert load(NodeConfig, str(output), {}).segment_size == 4 << 30
    printed = CliRunner().invoke(main, ["config", "migrate", str(file)])
    assert json.loads(printed.stdout) == migrate(SAMPLE).node
    as_json = CliRunner().invoke(main, ["config", "migrate", str(file), "--json"])
    assert json.loads(as_json.stdout).keys() == {"node", "remarks"}
    assert CliRunner().invoke(main, ["config", "migrate", str(tmp_path / "no")]).exit_code == 2
