"""The bounds that both sides know are the same numbers."""

from __future__ import annotations

import re
from pathlib import Path

from kvstore import limits

HEADERS = Path(__file__).resolve().parents[2] / "native" / "src" / "base"
SHARED = {
    "MAX_KEY_BYTES": "kMaxKeyBytes",
    "MAX_NAME_BYTES": "kMaxNameBytes",
    "MAX_BATCH_KEYS": "kMaxBatchKeys",
    "MAX_REPLICAS": "kMaxReplicas",
    "MAX_NODES": "kMaxNodes",
    "MAX_ENDPOINT_BYTES": "kMaxEndpointBytes",
    "MAX_TIMEOUT_MS": "kMaxTimeoutMs",
}


def test_shared_bounds_are_equal() -> None:
    text = (HEADERS / "limits.h").read_text()
    for python, native in SHARED.items():
        found = re.search(rf"\b{native} = ([\d']+);", text)
        assert found is not None, native
        assert getattr(limits, python) == int(found[1].replace("'", "")), python
    assert limits.MAX_EPOCH == (1 << 24) - 1
    assert "kMaxEpoch = (1u << 24) - 1" in (HEADERS / "types.h").read_text()


def test_names_and_keys() -> None:
    assert limits.is_valid_name("") and limits.is_valid_name("ü" * 127)
    assert not limits.is_valid_name("ü" * 128)
    assert not limits.is_valid_name("a\nb") and not limits.is_valid_name("\ud800")
    assert limits.is_valid_key("k" * 1024) and limits.is_valid_key("a\nb")
    assert not limits.is_valid_key("") and not limits.is_valid_key("k" * 1025)
    assert not limits.is_valid_key("\ud800")
