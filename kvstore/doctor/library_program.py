"""Loads UCX or the CUDA driver and prints what it says as JSON; run by its path, without kvstore.

In a process of its own, because a broken driver may hang or crash in its first call.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys

_DMA_BUF_SUPPORTED = 124  # CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED
_MAX_DEVICES = 256


def _loaded_from(name: str) -> str:
    """Path of a loaded library, by the process's mappings."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.split(maxsplit=5)[-1].strip()
            if re.match(rf"{name}(-[0-9a-f]+)?\.so", path.rpartition("/")[2]):
                return path
    return ""


def ucx(library: str) -> dict[str, object]:
    """Load libucp; its version and place, and that of the library that looks for modules."""
    ucp = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    numbers = [ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()]
    ucp.ucp_get_version(*map(ctypes.byref, numbers))
    return {
        "version": [number.value for number in numbers],
        "path": _loaded_from("libucp"),
        "ucs_path": _loaded_from("libucs"),
    }


def cuda(library: str) -> dict[str, object]:
    """Load libcuda; its version and devices, and whether they offer dma-buf."""
    driver = ctypes.CDLL(library)
    code = driver.cuInit(0)
    if code:
        name = ctypes.c_char_p()
        driver.cuGetErrorName(code, ctypes.byref(name))
        word = name.value.decode(errors="replace") if name.value else "unknown error"
        return {"error": f"cuInit: {word} ({code})"}
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(count))
    devices = []
    for index in range(min(count.value, _MAX_DEVICES)):
        name_of, bus = ctypes.create_string_buffer(256), ctypes.create_string_buffer(32)
        device, dma_buf = ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name_of, len(name_of), device)
        driver.cuDeviceGetPCIBusId(bus, len(bus), device)
        driver.cuDeviceGetAttribute(ctypes.byref(dma_buf), _DMA_BUF_SUPPORTED, device)
        devices.append(
            {
                "name": name_of.value.decode(errors="replace"),
                "address": bus.value.decode(errors="replace").lower(),
                "dma_buf": bool(dma_buf.value),
            }
        )
    return {"version": version.value, "devices": devices}


def main() -> None:
    """Print one JSON object: the answer, or an error."""
    kind, library = sys.argv[1:3]
    try:
        answer = {"ucx": ucx, "cuda": cuda}[kind](library)
    except (OSError, AttributeError) as error:  # not there; no such function
        answer = {"error": str(error)}
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
