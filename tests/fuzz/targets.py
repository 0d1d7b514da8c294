"""The targets by name. Each takes any bytes, and fails when the code behind it does.

What is refused is refused with the module's own error; every other exception is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.fuzz import files, http, objects, state

CORPUS = Path(__file__).parent / "corpus"
"""A folder for each target."""

TARGETS: dict[str, Callable[[bytes], None]] = {
    "config_file": files.config_file,
    "token_file": files.token_file,
    "discovery_file": files.discovery_file,
    "trace_file": files.trace_file,
    "mooncake_config": files.mooncake_config,
    "state_file": files.state_file,
    "master_state": state.master_state,
    "nvme_catalog": state.nvme_catalog,
    "http_port": http.http_port,
    "engine_record": objects.engine_record,
    "tensor_object": objects.tensor_object,
}
