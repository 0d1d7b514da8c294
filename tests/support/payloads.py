"""Bytes that prove whose they are: derived from the key and a salt, of any length."""

from __future__ import annotations

import hashlib

_UNIT_BYTES = 4093  # prime: no page-sized shift maps a payload onto itself


def proof(key: str, size: int, salt: str = "") -> bytes:
    unit = hashlib.shake_128(f"{salt}\0{key}".encode()).digest(_UNIT_BYTES)
    return (unit * (size // _UNIT_BYTES + 1))[:size]
