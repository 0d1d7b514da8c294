"""The container image, built and run without a container engine: buildah on a Debian from apt.

Minutes long, as root and with network: `make test-deploy`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import Status
from tests.deploy.images import BUILD_TIMEOUT_S, IMAGE, USER_ID, Buildah
from tests.support.payloads import proof
from tests.support.processes import wait_for

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.timeout(2 * BUILD_TIMEOUT_S),
]


def config_of(buildah: Buildah) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", IMAGE))
    config: dict[str, Any] = found["OCIv1"]["config"]
    return config


def test_the_image_runs_as_nobody_special_and_holds_no_secret(buildah: Buildah) -> None:
    assert config_of(buildah)["User"] == f"{USER_ID}:{USER_ID}"
    container = buildah("from", "--pull-never", IMAGE)
    look = (
        "id -u; ls /etc/pip.conf /opt/kvstore/bin/pip /usr/bin/g++ 2>/dev/null;"
        "for d in / /opt/kvstore /etc /usr /var /home;"
        "do test -w $d && echo writable $d; done; true"
    )
    command = buildah.run_command(container, ["sh", "-c", look])
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.split() == [str(USER_ID)], said.stdout


def test_a_master_and_a_node_of_the_image_serve(buildah: Buildah) -> None:
    data = buildah.folder / "data"
    segments = Path("/dev/shm") / f"kvstore-test-{secrets.token_hex(4)}"
    for folder in (data, segments):
        folder.mkdir(mode=0o700)
        os.chown(folder, USER_ID, USER_ID)
    pids: list[int] = []

    def start(program: str, *options: str) -> dict[str, Any]:
        container = buildah("from", "--pull-never", IMAGE)
        ports = data / f"{program}.json"
        command = [program, *options, "--http-port", "0", "--port-file", str(ports)]
        buildah.start(container, command, [data, segments])
        process = buildah.processes[-1]

        def serving() -> bool:
            log = (buildah.folder / f"{program}.log").read_text()
            assert process.poll() is None, f"{program} ended with {process.returncode}:\n{log}"
            return ports.exists() and bool(ports.read_text().strip())

        wait_for(serving, f"{program} to serve", 60)
        where: dict[str, Any] = json.loads(ports.read_text())
        status = Path(f"/proc/{where['pid']}/status").read_text()
        assert f"Uid:\t{USER_ID}\t" in status
        pids.append(where["pid"])
        probe = ["kvstore-probe", f"http://127.0.0.1:{where['http_port']}/readyz"]
        subprocess.run(buildah.run_command(container, probe), check=True, timeout=60)
        return where

    try:
        any_port = ["--port", "0"]
        state = ["--data-dir", str(data / "master"), "--grpc-port", "0"]
        master = start("kvstore-master", *any_port, *state)
        address = f"127.0.0.1:{master['port']}"
        memory = ["--segment-dir", str(segments), "--segment-size", "32mb"]
        start("kvstore-node", *any_port, "--master-address", address, "--node-id", "a", *memory)
        with kvstore.connect(address) as store:
            value = proof("k", 100_000)
            assert store.put("k", value) is Status.Ok
            assert store.get("k") == value
    finally:
        for pid, process in zip(reversed(pids), reversed(buildah.processes), strict=False):
            os.kill(pid, signal.SIGTERM)
            assert process.wait(30) == 0
        shutil.rmtree(segments)


def test_the_probe_fails_where_nobody_answers(buildah: Buildah) -> None:
    container = buildah("from", "--pull-never", IMAGE)
    command = buildah.run_command(container, ["kvstore-probe", "http://127.0.0.1:1/readyz"])
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode != 0 and "refused" in said.stderr
