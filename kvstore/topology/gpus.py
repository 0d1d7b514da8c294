"""NVIDIA GPUs, found on the PCI bus: no driver is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kvstore.topology import sysfs
from kvstore.topology.pci import Place, place

_NVIDIA = "0x10de"
_CLASSES = (0x0300, 0x0302)  # VGA and 3D controllers
_MAX_GPUS = 256


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    index: int
    """By PCI address, as CUDA counts with CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    place: Place
    driver: str
    """Kernel driver that is bound to it, as nvidia or vfio-pci; empty: none."""

    @property
    def name(self) -> str:
        """Its name in output."""
        return f"GPU{self.index}"


def read(sys: Path) -> tuple[Gpu, ...]:
    """Read all NVIDIA GPUs, by PCI address."""
    base = sys / "bus" / "pci" / "devices"
    found: list[Gpu] = []
    for name in sysfs.names(base):
        device = base / name
        if sysfs.text(device / "vendor") != _NVIDIA or _class_of(device) not in _CLASSES:
            continue
        driver = sysfs.resolved(device / "driver")
        found.append(Gpu(len(found), place(device), driver.name if driver else ""))
        if len(found) == _MAX_GPUS:
            break
    return tuple(found)


def _class_of(device: Path) -> int:
    """Class and subclass of "0x030200"."""
    text = sysfs.text(device / "class")
    return int(text, 16) >> 8 if re.fullmatch("0x[0-9a-f]{6}", text) else -1
