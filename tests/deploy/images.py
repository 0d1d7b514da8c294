"""Images built without a container engine, by buildah, and run in namespaces of their own."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/kvstore"
BASE = "localhost/debian"
USER_ID = 10001
BUILD_TIMEOUT_S = 1800


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


def build_base(tool: Buildah) -> None:
    """Make a Debian from packages: no registry of images is needed."""
    base = tool.folder / "base.tar"
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", "bookworm", str(base)],
        check=True,
        timeout=BUILD_TIMEOUT_S,
    )
    container = tool("from", "scratch")
    tool("add", "--quiet", container, str(base), "/")
    tool("commit", "--quiet", "--rm", container, BASE)
    base.unlink()


def build(tool: Buildah, image: str, file: str, **arguments: str) -> None:
    """Build an image from a file of deploy/docker."""
    options = ["--isolation=chroot", "--layers=false", "--pull-never", "--tag", image]
    for name, value in {"JOBS": "2", **arguments}.items():
        options += ["--build-arg", f"{name}={value}"]
    options += ["--file", str(ROOT / "deploy/docker" / file), *pip_configuration(tool.folder)]
    tool("bud", *options, str(ROOT), timeout_s=BUILD_TIMEOUT_S)


class Container:
    """A process in an image's files, with mount and PID namespaces of its own and a read-only root.

    What a container runtime sets up, less the network, which it shares with this host.
    """

    def __init__(
        self,
        root: str,
        command: Sequence[str],
        *,
        user: int,
        groups: Sequence[int] = (),
        folders: Sequence[tuple[Path, str, str]] = (),
        capabilities: bool = False,
    ) -> None:
        """Start it.

        Args:
            root: folder of the image's files.
            command: to run.
            user: its user and group.
            groups: its supplementary groups.
            folders: (folder of this host, where it is mounted, "ro" or "rw").
            capabilities: keep those that a user has; else none, as with `drop: [ALL]`.
        """
        lines = ["mount --make-rprivate /", f"mount --bind {root} {root}"]
        lines.append(f"mount -t proc proc {root}/proc")
        lines.append(f"mount -t tmpfs -o mode=1777 none {root}/dev/shm")
        for there, inside, mode in folders:
            lines.append(f"mount --bind {there} {root}{inside}")
            lines.append(f"mount -o remount,bind,{mode} {root}{inside}")
        lines += [f"mount -o remount,bind,ro {root}", f'exec chroot {root} "$@"']
        identity = ["setpriv", "--no-new-privs", f"--reuid={user}", f"--regid={user}"]
        identity.append(f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups")
        if not capabilities:
            identity += ["--bounding-set=-all", "--inh-caps=-all"]
        shell = ["sh", "-ec", "\n".join(lines), "sh"]
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        self.process = subprocess.Popen(
            [*unshare, *shell, *identity, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PATH": "/opt/kvstore/bin:/usr/bin:/bin:/usr/sbin:/sbin"},
        )

    def terminate(self) -> str:
        """Send its first process SIGTERM, as a runtime does; return what it printed."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in path.read_text().split():
            os.kill(int(pid), signal.SIGTERM)
        return self.wait()

    def wait(self, timeout_s: float = 60) -> str:
        """Wait for its end; return what it printed."""
        try:
            return self.process.communicate(timeout=timeout_s)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def make_mount_points(root: str, *paths: str) -> None:
    """Create folders in an image's files, as a runtime does before it mounts something there."""
    for path in ("/proc", "/dev/shm", *paths):
        Path(root + path).mkdir(parents=True, exist_ok=True)
