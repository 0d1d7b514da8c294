"""The kernel of the virtual machine: Debian's, with the modules of soft-RoCE, in a cache folder.

Nothing is installed: packages are downloaded by apt, taken apart, and thrown away. What is kept is
the kernel's image and an archive of its modules, in $XDG_CACHE_HOME/kvstore-rxe. Remove that folder
to get a newer kernel.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

KERNEL_PACKAGE = "linux-image-amd64"
SHELL_PACKAGE = "busybox-static"  # for the initramfs, which has no C library
# Loaded in this order, each after those that its file says it depends on.
MODULES = (
    *("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"),
    *("rdma_rxe", "ib_uverbs", "rdma_ucm", "veth"),
)
# Checksums of soft-RoCE; newer kernels have them built in.
OPTIONAL_MODULES = ("crc32_generic", "crc32_pclmul", "crc32c_generic")

_APT_OPTIONS = ("-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root")
_FOLDER, _FILE, _PROGRAM = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFREG | 0o755
_XZ_MAGIC, _ELF_MAGIC = b"\xfd7zXZ\0", b"\x7fELF"


class VmError(Exception):
    """Why the virtual machine cannot be prepared or booted, as a sentence."""


@dataclass(frozen=True)
class Kernel:
    """What QEMU boots."""

    image: Path
    initramfs: Path
    """Busybox and the modules; what one run adds is appended to it."""


def cache_folder() -> Path:
    """Return the folder of kernels, whether it exists or not."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "kvstore-rxe"


def prepare() -> Kernel:
    """Find the kernel in the cache, or download it (70 MB).

    Raises:
        VmError: apt or the packages do not have what it takes.
    """
    recipe = repr((KERNEL_PACKAGE, SHELL_PACKAGE, MODULES, OPTIONAL_MODULES))
    cache = cache_folder()
    folder = cache / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    kernel = Kernel(folder / "vmlinux", folder / "initramfs")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                with tempfile.TemporaryDirectory(dir=cache) as scratch:
                    _build(Path(scratch)).rename(folder)
    except OSError as error:
        raise VmError(f"the cache of kernels cannot be used: {error}") from error
    return kernel


def _build(scratch: Path) -> Path:
    """Make the folder that the cache keeps."""
    kernel = _unpack(_kernel_package(), scratch)
    shell = _unpack(SHELL_PACKAGE, scratch)
    images = list(kernel.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise VmError(f"{kernel.name} has no kernel image")
    programs = [one for one in shell.rglob("busybox") if one.parent.name == "bin"]
    if not programs:
        raise VmError(f"{SHELL_PACKAGE} has no busybox")
    entries = {name: (_FOLDER, b"") for name in ("bin", "modules")}
    entries["bin/busybox"] = (_PROGRAM, programs[0].read_bytes())
    for number, (name, content) in enumerate(ordered_modules(module_files(kernel))):
        entries[f"modules/{number:02}-{name}.ko"] = (_FILE, content)
    built = scratch / "built"
    built.mkdir()
    (built / "vmlinux").write_bytes(uncompressed_kernel(images[0].read_bytes()))
    (built / "initramfs").write_bytes(archive(entries))
    (built / "version").write_text(f"{kernel.name}\n")
    return built


# --- packages ---


def _apt(arguments: Iterable[str], folder: Path) -> str:
    """Run an apt command and return its output; with lists of packages refreshed if it fails."""
    command = [*arguments]
    environment = {**os.environ, "LC_ALL": "C"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    if shutil.which("apt-get") is None:
        raise VmError("the kernel comes from Debian's packages, and there is no apt-get here")
    done = run(*command)
    if done.returncode != 0:
        run("apt-get", *_APT_OPTIONS, "update")  # as another user it fails, and so does the next
        done = run(*command)
    if done.returncode != 0:
        raise VmError(f"{' '.join(command)} failed (a Debian mirror is needed):\n{done.stdout}")
    return done.stdout


def _kernel_package() -> str:
    """Return the package that the metapackage stands for: linux-image-6.1.0-57-amd64."""
    shown = _apt(("apt-cache", "show", "--no-all-versions", KERNEL_PACKAGE), Path("/"))
    found = re.search(r"^Depends:.*?\b(linux-image-\d[\w.+-]*)", shown, re.MULTILINE)
    if found is None:
        raise VmError(f"{KERNEL_PACKAGE} does not depend on a kernel; only Debian's does")
    return found[1]


def _unpack(package: str, scratch: Path) -> Path:
    """Download a package and unpack it in a folder of its name."""
    print(f"vm: downloading {package}", file=sys.stderr, flush=True)
    _apt(("apt-get", *_APT_OPTIONS, "download", package), scratch)
    tree = scratch / package
    (file,) = scratch.glob(f"{package}_*.deb")
    done = subprocess.run(["dpkg-deb", "-x", file, tree], capture_output=True, text=True)
    if done.returncode != 0:
        raise VmError(f"{file.name} cannot be unpacked: {done.stderr}")
    file.unlink()
    return tree


# --- kernel and modules ---


def uncompressed_kernel(image: bytes) -> bytes:
    """Return the ELF file inside a bzImage, or the image itself if it is not compressed by xz.

    QEMU starts an ELF file without the kernel's own decompressor, which takes seconds when the
    processor is emulated. Source: the kernel's boot protocol (setup_sects, payload_offset).
    """
    setup_sectors = image[0x1F1] or 4
    start = (setup_sectors + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    payload = image[start : start + int.from_bytes(image[0x24C:0x250], "little")]
    if not payload.startswith(_XZ_MAGIC):
        return image
    elf = lzma.LZMADecompressor().decompress(payload)  # the kernel's size follows the stream
    return elf if elf.startswith(_ELF_MAGIC) else image


def module_files(tree: Path) -> dict[str, Path]:
    """Return the files of a kernel package's modules by the modules' names."""
    return {
        path.name.split(".ko")[0].replace("-", "_"): path
        for path in tree.rglob("*.ko*")
        if path.suffix in {".ko", ".xz"}
    }


def ordered_modules(files: Mapping[str, Path]) -> list[tuple[str, bytes]]:
    """Return MODULES and what they depend on, (name, content) of each, in the order of loading."""
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered:
            return
        if name not in files:
            raise VmError(f"the kernel package has no module {name}")
        content = files[name].read_bytes()
        if content.startswith(_XZ_MAGIC):
            content = lzma.decompress(content)
        depends = re.search(rb"\bdepends=([\w,-]*)\0", content)
        for one in depends[1].decode().replace("-", "_").split(",") if depends else ():
            if one:
                add(one)
        ordered[name] = content

    for name in OPTIONAL_MODULES:
        if name in files:
            add(name)
    for name in MODULES:
        add(name)
    return list(ordered.items())


def archive(entries: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Return a cpio archive (newc) of path → (mode, content); folders before what is in them."""
    packed = bytearray()
    for inode, (path, (mode, content)) in enumerate([*entries.items(), ("TRAILER!!!", (0, b""))]):
        name = path.encode() + b"\0"
        fields = (inode + 1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        packed += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        packed += bytes(-len(packed) % 4) + content
        packed += bytes(-len(packed) % 4)
    packed += bytes(-len(packed) % 512)
    return bytes(packed)


def program(path: Path) -> tuple[int, bytes]:
    """Return the archive's entry of an executable file."""
    return _PROGRAM, path.read_bytes()
