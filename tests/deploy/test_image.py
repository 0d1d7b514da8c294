"""The container image, built and run without a container engine: buildah on a Debian from apt.

Minutes long, as root and with network: `make test-deploy`.
"""

from __future__ import annotations

import ast
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore import Status
from tests.support.payloads import proof
from tests.support.processes import wait_for

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("buildah", "mmdebstrap")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
IMAGE = "localhost/kvstore"
USER_ID = 10001
BUILD_TIMEOUT_S = 1800

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.timeout(2 * BUILD_TIMEOUT_S),
    pytest.mark.skipif(os.geteuid() != 0, reason="builds an image as root"),
    pytest.mark.skipif(bool(MISSING), reason=f"apt-get install {' '.join(MISSING)}"),
]


class Buildah:
    """buildah with a storage of its own, and without a runtime or namespaces of a daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options = ["--root", f"{folder}/root", "--runroot", f"{folder}/run"]
        self.options += ["--storage-driver", "vfs"]
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, command: str, *arguments: str, timeout_s: float = 120) -> str:
        done = subprocess.run(
            ["buildah", *self.options, command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"buildah {command} {arguments}:\n{done.stdout[-8000:]}"
        return done.stdout.strip()

    def run_command(
        self, container: str, command: Sequence[str], folders: Sequence[Path] = ()
    ) -> list[str]:
        volumes = [f"--volume={folder}:{folder}" for folder in folders]
        options = ["run", "--isolation=chroot", *volumes, container, "--"]
        return ["buildah", *self.options, *options, *command]

    def start(self, container: str, command: Sequence[str], folders: Sequence[Path]) -> None:
        log = self.folder / f"{command[0]}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.run_command(container, command, folders),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self.processes.append(process)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self("rm", "--all")
        self("rmi", "--all", "--force")
        mounts = Path("/proc/self/mountinfo").read_text()
        assert str(self.folder) not in mounts, f"still mounted:\n{mounts}"
        shutil.rmtree(self.folder)


def pip_configuration(folder: Path) -> list[str]:
    """Options that give the build what pip is configured with here, files on disk included."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    values: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in ("global", ":env:"):
            values[name] = str(ast.literal_eval(value))
    words = {word.removeprefix("file://") for value in values.values() for word in value.split()}
    there = {word for word in words if word.startswith("/") and Path(word).exists()}
    # An index on disk, .../simple, keeps its files beside its pages.
    folders = {path.removesuffix("/simple") for path in there if Path(path).is_dir()}
    # A file elsewhere: packages of the base may want to write one of that name (certificates).
    files = {path: f"/srv/pip/{Path(path).name}" for path in there if not Path(path).is_dir()}
    lines = ["[global]"]
    for name, value in values.items():
        moved = [files.get(word, word) for word in value.split()]
        lines.append(f"{name} = " + "\n    ".join(moved))
    path = folder / "pip.conf"
    path.write_text("\n".join(lines) + "\n")
    mounts = {one: one for one in sorted(folders)} | files
    volumes = [f"--volume={here}:{inside}:ro" for here, inside in mounts.items()]
    return [f"--secret=id=pip,src={path}", *volumes]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """A buildah that holds the built image."""
    folder = tmp_path_factory.mktemp("image")
    tool = Buildah(folder)
    try:
        base = folder / "base.tar"
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", "bookworm", str(base)],
            check=True,
            timeout=BUILD_TIMEOUT_S,
        )
        container = tool("from", "scratch")
        tool("add", "--quiet", container, str(base), "/")
        tool("commit", "--quiet", "--rm", container, "localhost/debian")
        base.unlink()
        options = ["--isolation=chroot", "--layers=false", "--pull-never", "--tag", IMAGE]
        options += ["--build-arg", "BASE=localhost/debian", "--build-arg", "JOBS=2"]
        options += ["--file", str(ROOT / "deploy/docker/Dockerfile"), *pip_configuration(folder)]
        tool("bud", *options, str(ROOT), timeout_s=BUILD_TIMEOUT_S)
        yield tool
    finally:
        tool.close()


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
