"""The fake driver (fake_driver.cpp, fake_control.cpp) as tests use it."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kvstore
from kvstore.gpu import kernels

UCX_SOURCE = Path(__file__).with_name("cuda_ucx.cpp")
SOURCES = [Path(__file__).with_name(name) for name in ("fake_driver.cpp", "fake_control.cpp")]
INVALID_VALUE, OUT_OF_MEMORY, ILLEGAL_ADDRESS, NOT_SUPPORTED = 1, 2, 700, 801


def build(folder: Path, version: int = 13) -> Path:
    """Compile the driver, with the batched copy of a version of CUDA (11: it has none)."""
    library = folder / f"libfake-cuda-{version}.so"
    package = Path(kvstore.__file__).parents[1]  # where kvstore/gpu/kernels.cu is
    command = ["g++", "-std=c++20", "-O2", "-shared", "-fPIC", f"-DFAKE_CUDA={version}"]
    command.append(f"-I{package}")
    subprocess.run([*command, "-o", str(library), *map(str, SOURCES)], check=True)
    return library


def build_ucx(folder: Path) -> Path:
    """Compile a UCX that moves this driver's memory; it needs the system's."""
    library = folder / "libcuda-ucx.so"
    native = UCX_SOURCE.parents[2] / "native" / "src"
    command = ["g++", "-std=c++20", "-O2", "-shared", "-fPIC", f"-I{native}", str(UCX_SOURCE)]
    command += ["-o", str(library), "-Wl,--no-as-needed", "-l:libucp.so.0"]
    subprocess.run(command, check=True)
    return library


def provide_kernels(version: int = 13) -> None:
    """Put what this driver loads as kernels where those of a real one are kept."""
    image = b"fake-cubin kvstore_checksum kvstore_pages"
    kernels.keep(kernels.kept_at(9, 9, version * 1000), image)


class DeviceArray:
    """Bytes in a device's memory, with the interface of a CUDA array."""

    def __init__(
        self,
        cuda: FakeCuda,
        size: int,
        *,
        device: int = 0,
        stream: int | None = None,
        dtype: str = "|u1",
        shape: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        read_only: bool = False,
    ) -> None:
        self.cuda = cuda
        self.size = size
        self.device = device
        self.pointer = cuda.alloc(size, device)
        self._interface = {
            "shape": (size,) if shape is None else tuple(shape),
            "typestr": dtype,
            "data": (self.pointer, read_only),
            "strides": strides,
            "version": 3,
            "stream": stream,
        }

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self._interface

    def content(self) -> bytes:
        """What is there now."""
        return self.cuda.read(self.pointer, self.size)

    def write(self, data: bytes) -> DeviceArray:
        """Fill it at once, beside every stream."""
        self.cuda.write(self.pointer, data)
        return self


class DLPackArray:
    """The same behind DLPack alone."""

    class _Managed(ctypes.Structure):
        _fields_ = (
            ("data", ctypes.c_void_p),
            ("device", ctypes.c_int32 * 2),
            ("ndim", ctypes.c_int32),
            ("dtype", ctypes.c_uint8 * 4),
            ("shape", ctypes.POINTER(ctypes.c_int64)),
            ("strides", ctypes.POINTER(ctypes.c_int64)),
            ("byte_offset", ctypes.c_uint64),
            ("context", ctypes.c_void_p),
            ("deleter", ctypes.c_void_p),
        )

    def __init__(self, array: DeviceArray) -> None:
        self.array = array
        self._shape = (ctypes.c_int64 * 1)(array.size)
        self._managed = self._Managed(array.pointer, (2, array.device), 1, (1, 8, 1, 0))
        self._managed.shape = self._shape
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.array.device

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.streams.append(stream)
        make = ctypes.pythonapi.PyCapsule_New
        make.restype = ctypes.py_object
        make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return make(ctypes.addressof(self._managed), b"dltensor", None)


class FakeCuda:
    """Control of the driver that this process has loaded."""

    def __init__(self, library: Path) -> None:
        self.library = library
        self._lib = ctypes.CDLL(str(library))
        self._lib.fake_alloc.restype = ctypes.c_uint64
        self._lib.fake_alloc.argtypes = [ctypes.c_size_t, ctypes.c_int]
        self._lib.fake_free.argtypes = [ctypes.c_uint64]
        self._lib.fake_read.argtypes = [ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t]
        self._lib.fake_write.argtypes = [ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t]
        self._lib.fake_stream.restype = ctypes.c_uint64
        self._lib.fake_destroy_stream.argtypes = [ctypes.c_uint64]
        self._lib.fake_capture.argtypes = [ctypes.c_uint64, ctypes.c_int]
        self._lib.fake_flip.argtypes = [ctypes.c_long]
        self._lib.fake_fail.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
        self._lib.fake_count.restype = ctypes.c_long
        self._lib.fake_count.argtypes = [ctypes.c_char_p]
        self._lib.fake_last_violation.restype = ctypes.c_char_p
        self._allocated: set[int] = set()

    def array(self, size: int, **options: Any) -> DeviceArray:
        """Allocate a zeroed array on a device."""
        return DeviceArray(self, size, **options)

    def alloc(self, size: int, device: int = 0) -> int:
        """Allocate device memory; freed by `free`, or by `free_all` at the test's end."""
        address = int(self._lib.fake_alloc(size, device))
        assert address != 0
        self._allocated.add(address)
        return address

    def free(self, address: int) -> None:
        """Free device memory."""
        self._allocated.remove(address)
        self._lib.fake_free(address)

    def free_all(self) -> None:
        """Free what a test has allocated."""
        for address in list(self._allocated):
            self.free(address)

    def read(self, address: int, size: int) -> bytes:
        """Read device memory at once."""
        data = ctypes.create_string_buffer(size)
        self._lib.fake_read(address, data, size)
        return data.raw

    def write(self, address: int, data: bytes) -> None:
        """Write device memory at once."""
        self._lib.fake_write(address, data, len(data))

    def stream(self, device: int = 0) -> int:
        """Create a stream."""
        return int(self._lib.fake_stream(device))

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream; what is queued there still runs."""
        self._lib.fake_destroy_stream(stream)

    def capture(self, stream: int, on: bool) -> None:
        """Begin or end a capture on a stream."""
        self._lib.fake_capture(stream, on)

    def pause(self, on: bool = True) -> None:
        """Stop all streams, or let them go on."""
        self._lib.fake_pause(on)

    def destroy_context(self, device: int = 0) -> None:
        """End a device's primary context, with all that is queued in it."""
        self._lib.fake_destroy_context(device)

    def set_read_only_registration(self, on: bool) -> None:
        """Say whether memory that cannot be written can be registered."""
        self._lib.fake_set_read_only(on)

    def set_mapping(self, on: bool) -> None:
        """Say whether kernels reach registered host memory."""
        self._lib.fake_set_mapping(on)

    def flip(self, *, after: int = 0) -> None:
        """Have a copy arrive with a wrong bit, after that many further ones."""
        self._lib.fake_flip(after)

    def seed(self, seed: int) -> None:
        """Choose the order in which streams run."""
        self._lib.fake_seed(seed)

    def fail(self, call: str, code: int, *, after: int = 0) -> None:
        """Have a call fail once, after that many further ones."""
        self._lib.fake_fail(call.encode(), after, code)

    def count(self, what: str) -> int:
        """Count what there is (registered, pinned, events, contexts, pending) or was."""
        return int(self._lib.fake_count(what.encode()))

    def last_violation(self) -> str:
        """Say what was done last that a program must not do."""
        return str(self._lib.fake_last_violation().decode())

    def reset(self) -> None:
        """Forget failures and counts."""
        self._lib.fake_reset()
