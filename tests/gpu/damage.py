"""Damage to shared memory, as a process that may write it could do."""

from __future__ import annotations

from pathlib import Path


def damage_of_node(segment_dir: Path, data: bytes) -> None:
    """Flip a byte of an object in the segment of a node."""
    with (segment_dir / "segment").open("r+b") as file:
        at = file.read().find(data)
        assert at >= 0, "the object is not there"
        file.seek(at + 1000)
        file.write(bytes([data[1000] ^ 1]))


def damage(data: bytes) -> None:
    """Flip a byte of an object where the segment is mapped for writing in this process."""
    with open("/proc/self/maps", encoding="ascii") as maps, open("/proc/self/mem", "r+b") as memory:
        for line in maps:
            where, rights, *_ = line.split()
            if "memfd:segment" not in line or not rights.startswith("rw-s"):
                continue
            begin, end = (int(number, 16) for number in where.split("-"))
            memory.seek(begin)
            at = memory.read(end - begin).find(data)
            if at >= 0:
                memory.seek(begin + at + 1000)
                memory.write(bytes([data[1000] ^ 1]))
                return
    raise AssertionError("the object is in no mapping")
