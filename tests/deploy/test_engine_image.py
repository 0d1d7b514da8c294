"""The engine's image: the client in an image that has a Python, beside a node of the other image.

Minutes long, as root and with network: `make test-deploy`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import images
from tests.deploy.images import BUILD_TIMEOUT_S, IMAGE, USER_ID, Buildah, Container
from tests.support.other_user import CLIENT, needs_namespaces, open_folder
from tests.support.processes import wait_for

ENGINE_BASE = "localhost/engine"
ENGINE_IMAGE = "localhost/kvstore-engine"
SOCKETS = "/run/kvstore"

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(2 * BUILD_TIMEOUT_S)]


@pytest.fixture(scope="module")
def engine(buildah: Buildah) -> str:
    """A container of the engine's image; what an engine brings is here a Python with pip."""
    container = buildah("from", "--pull-never", images.BASE)
    install = "apt-get update && apt-get install -y --no-install-recommends python3 python3-pip"
    command = ["--isolation=chroot", container, "--", "sh", "-c", install]
    buildah("run", *command, timeout_s=BUILD_TIMEOUT_S)
    buildah("commit", "--quiet", "--rm", container, ENGINE_BASE)
    images.build(buildah, ENGINE_IMAGE, "Dockerfile.engine", ENGINE=ENGINE_BASE)
    return buildah("from", "--pull-never", ENGINE_IMAGE)


def test_the_client_is_all_that_was_added(buildah: Buildah, engine: str) -> None:
    look = (
        "python3 -m pip list --format=freeze | grep -v -e pip -e setuptools -e wheel;"
        "ls -d /tmp/wheels /src /usr/bin/g++ /etc/pip.conf 2>/dev/null;"
        "python3 -c 'import kvstore.integrations.sglang.options, kvstore.integrations.vllm.options'"
    )
    command = buildah.run_command(engine, ["sh", "-c", look])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [line.partition("=")[0] for line in done.stdout.split()] == ["kvcache-store"]


@dataclass
class Machine:
    """A cluster in containers, on a machine whose folder /run/kvstore is `sockets`."""

    address: str
    sockets: Path
    engine_root: str


@pytest.fixture(scope="module")
def machine(buildah: Buildah, engine: str) -> Iterator[Machine]:
    needs_namespaces()
    with ExitStack() as ends:
        folder = ends.enter_context(open_folder())
        segments = Path("/dev/shm") / f"kvstore-test-{secrets.token_hex(4)}"
        ends.callback(shutil.rmtree, segments, ignore_errors=True)
        sockets, state = folder / "sockets", folder / "state"
        for one, mode in ((sockets, 0o2775), (state, 0o700), (segments, 0o700)):
            one.mkdir()
            os.chown(one, 0 if one == sockets else USER_ID, USER_ID)
            one.chmod(mode)
        root = buildah("mount", buildah("from", "--pull-never", IMAGE))
        images.make_mount_points(root, SOCKETS, "/segments", "/state")
        folders = [(sockets, SOCKETS, "rw"), (segments, "/segments", "rw"), (state, "/state", "rw")]
        engine_root = buildah("mount", engine)
        images.make_mount_points(engine_root, SOCKETS)

        def start(program: str, *options: str) -> dict[str, Any]:
            ports = state / f"{program}.json"
            command = [program, *options, "--http-port=0", f"--port-file=/state/{program}.json"]
            container = Container(root, command, user=USER_ID, folders=folders)
            ends.callback(stop, container)

            def serves() -> bool:
                assert container.process.poll() is None, container.wait()
                return ports.exists() and bool(ports.read_text().strip())

            wait_for(serves, f"{program} to serve", 60)
            where: dict[str, Any] = json.loads(ports.read_text())
            return where

        master = start("kvstore-master", "--port=0", "--grpc-port=0", "--data-dir=/state/master")
        address = f"127.0.0.1:{master['port']}"
        config = {"socket_dir": SOCKETS, "socket_mode": "0660", "segment_size": "64mb"}
        config |= {"segment_dir": "/segments", "node_id": "a", "master_address": address}
        (state / "node.json").write_text(json.dumps(config))
        (state / "node.json").chmod(0o644)
        node = start("kvstore-node", "--config=/state/node.json", "--port=0")
        assert node["pid"] == 1, "it has a PID namespace of its own"
        yield Machine(address, sockets, engine_root)


def stop(container: Container) -> None:
    said = container.terminate()
    assert container.process.returncode == 0, said


@pytest.mark.parametrize(
    ("user", "groups", "capabilities", "path"),
    [
        (USER_ID, [], False, "shm"),
        (0, [], True, "shm"),
        (0, [USER_ID], False, "shm"),
        (0, [], False, "tcp"),
        (20000, [USER_ID], False, "shm"),
        (20000, [], False, "tcp"),
    ],
    ids=[
        "node's user",
        "root",
        "root, no capability, in the group",
        "root, no capability",
        "other user in the group",
        "other user",
    ],
)
def test_an_engine_maps_the_memory_of_a_node_in_another_container(
    machine: Machine, user: int, groups: list[int], capabilities: bool, path: str
) -> None:
    key = f"key-{user}-{len(groups)}-{capabilities}"
    command = ["python3", "-c", CLIENT, machine.address, key, "{}", "[]"]
    container = Container(
        machine.engine_root,
        command,
        user=user,
        groups=groups,
        folders=[(machine.sockets, SOCKETS, "ro")],
        capabilities=capabilities,
    )
    said = container.wait()
    assert container.process.returncode == 0, said
    answer = json.loads(said.splitlines()[-1])
    assert answer["answers"] == ["Ok", "Ok"]
    (peer,) = answer["peers"]
    assert peer["path"] == path, peer
    if path == "shm":
        assert peer["why"] == "its memory is mapped" and answer["lines"] == []
        assert answer["stats"]["bytes_shm"] > 0
    else:
        socket = f"{SOCKETS}/a/node.sock"
        why = f"this process (uid {user}) may not open its socket {socket}"
        assert (peer["cause"], peer["why"]) == ("permission", why)
        (line,) = answer["lines"]
        assert line.startswith("node a is on this host") and why in line
        assert answer["stats"]["bytes_shm"] == 0
