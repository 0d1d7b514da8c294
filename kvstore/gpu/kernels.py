"""Kernels of kvstore: compiled at run time by NVRTC through CuPy, and kept on disk.

The native core asks once for each device and store (native/bindings/bind_device.cpp), and launches
what it gets by itself.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("kernels.cu")
_DIGEST_BYTES = 32  # SHA-256, in front of a kept image
_MOST_BYTES = 16 << 20
_INSTALL = "pip install 'kvcache-store[gpu]' for checksums and paged pools on the GPU"


def image(major: int, minor: int, driver: int, fresh: bool) -> tuple[bytes, str]:
    """Return the kernels, compiled for a device.

    Args:
        major: of the device's compute capability.
        minor: of the device's compute capability.
        driver: the driver's version of CUDA, as it gives it.
        fresh: compile, whatever is kept on disk: that could not be loaded.

    Returns:
        A cubin and "", or nothing and a sentence that says why. Never raises.
    """
    kept = kept_at(major, minor, driver)
    if not fresh and (found := _read(kept)):
        return found, ""
    try:
        made = compiled(major, minor)
    except Exception as error:
        # Whatever a broken installation of CUDA raises: the host verifies instead.
        return b"", (str(error).strip() or type(error).__name__).splitlines()[0]
    keep(kept, made)
    return made, ""


def kept_at(major: int, minor: int, driver: int) -> Path:
    """Return where the kernels of a device are kept, by all that they were made from."""
    text = repr((SOURCE.read_text(encoding="utf-8"), _options(major, minor), driver))
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return Path(base) / "kvstore" / "kernels" / f"{name}.cubin"


def compiled(major: int, minor: int) -> bytes:
    """Compile the kernels for a compute capability; needs CuPy and NVRTC, but no GPU.

    Raises:
        RuntimeError: CuPy is missing, or NVRTC refuses.
    """
    try:
        nvrtc: Any = importlib.import_module("cupy.cuda").nvrtc
    except ImportError as error:
        raise RuntimeError(f"CuPy cannot be imported ({error}): {_INSTALL}") from None
    program = nvrtc.createProgram(SOURCE.read_text(encoding="utf-8"), SOURCE.name, (), ())
    try:
        nvrtc.compileProgram(program, _options(major, minor))
        return bytes(nvrtc.getCUBIN(program))
    except nvrtc.NVRTCError as error:
        said = nvrtc.getProgramLog(program).strip().splitlines()
        raise RuntimeError(f"NVRTC: {said[0] if said else error}") from None
    finally:
        nvrtc.destroyProgram(program)


def _options(major: int, minor: int) -> tuple[str, ...]:
    return (f"--gpu-architecture=sm_{major}{minor}", "--std=c++17")


def _read(path: Path) -> bytes:
    """Read a kept image; nothing when it is damaged, or others could have written it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return b""
    there = os.fstat(descriptor)
    is_ours = stat.S_ISREG(there.st_mode) and there.st_uid == os.geteuid()
    if not is_ours or there.st_mode & 0o022 or there.st_size > _MOST_BYTES:
        os.close(descriptor)
        return b""
    with os.fdopen(descriptor, "rb") as file:
        data = file.read()
    kept = data[_DIGEST_BYTES:]
    return kept if hashlib.sha256(kept).digest() == data[:_DIGEST_BYTES] else b""


def keep(path: Path, made: bytes) -> None:
    """Keep an image for the next process; without a disk that is writable each compiles its own."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:  # mode 0600
            file.write(hashlib.sha256(made).digest() + made)
        os.replace(file.name, path)
    except OSError:
        return
