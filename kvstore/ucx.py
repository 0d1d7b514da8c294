"""Which UCX a process uses, and with what settings.

UCX is loaded at run time and never required: the library that ``KVSTORE_UCX_LIB`` names; else the
system's; else the one inside an installed wheel of nixl, which has verbs and CUDA. (The wheel
``libucx-cu12`` has no verbs.)
"""

from __future__ import annotations

import ctypes.util
import os
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path

from kvstore.errors import InvalidArgumentError

LIBRARY_VARIABLE = "KVSTORE_UCX_LIB"
SYSTEM = "libucp.so.0"
WHEELS = ("nixl_cu12.libs", "nixl_cu13.libs", ".nixl_cu12.libs", ".nixl_cu13.libs")
"""Folders beside the wheels' packages, in the order in which they are looked at."""
_MODULES = "UCX_MODULE_DIR"
_DEVICES = "UCX_NET_DEVICES"

Settings = list[tuple[str, str]]
"""Names without the prefix UCX_, and values."""


def libraries(site_packages: Path | None = None) -> list[str]:
    """Return what to load, the first choice first; empty when there is no UCX.

    For the one inside a wheel, ``UCX_MODULE_DIR`` is set to its modules unless it is set already.

    Args:
        site_packages: where wheels are installed; None: of this interpreter.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        return [named]
    if ctypes.util.find_library("ucp"):
        return [SYSTEM]
    root = site_packages or Path(sysconfig.get_paths()["platlib"])
    for folder in WHEELS:
        found = sorted((root / folder).glob("libucp-*.so*"))
        if found:
            os.environ.setdefault(_MODULES, str(root / folder / "ucx"))
            return [str(found[0])]
    return []


def has_device(sysfs: Path = Path("/sys")) -> bool:
    """Return whether this host has an RDMA device."""
    try:
        return any((sysfs / "class" / "infiniband").iterdir())
    except OSError:
        return False


def names_devices(given: Iterable[str]) -> bool:
    """Return whether these settings, or the environment, say which devices UCX uses."""
    return _DEVICES in os.environ or not {_DEVICES, _DEVICES.removeprefix("UCX_")}.isdisjoint(given)


def settings(given: Mapping[str, str], devices: Iterable[str] = ()) -> Settings:
    """Check UCX settings as users write them.

    Args:
        given: by name, with or without the prefix UCX_.
        devices: RDMA devices to use, "mlx5_0" or "mlx5_0:1" (a port); none: all.

    Raises:
        InvalidArgumentError: A name or value is not one that UCX could have.
    """
    out = (
        [("NET_DEVICES", ",".join(one if ":" in one else f"{one}:1" for one in devices))]
        if devices
        else []
    )
    for name, value in given.items():
        plain = name.removeprefix("UCX_")
        if not plain.replace("_", "").isalnum() or not plain.isascii() or plain != plain.upper():
            raise InvalidArgumentError(f"ucx: {name!r} is not the name of a UCX setting")
        if not isinstance(value, str) or not value.isprintable():
            raise InvalidArgumentError(f"ucx: {name} must be a string, not {value!r}")
        out.append((plain, value))
    return out
