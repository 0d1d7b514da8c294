"""The process's environment, beside what configures it (kvstore.config)."""

from __future__ import annotations

import os
from pathlib import Path


def silence_grpc() -> None:
    """Keep gRPC's own lines off standard error, unless GRPC_VERBOSITY asks for them.

    Call it before gRPC is imported. What it has to say reaches the log as an error of a call.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def ucx_library() -> str:
    """The UCX library that KVSTORE_UCX_LIB names; empty when it names none."""
    return os.environ.get("KVSTORE_UCX_LIB", "")


def labels() -> str:
    """What KVSTORE_LABELS says of this process's place; empty when it says nothing."""
    return os.environ.get("KVSTORE_LABELS", "")


def variables() -> dict[str, str]:
    """Every variable, for what has to know the secrets in them in order to hide them."""
    return dict(os.environ)


def rbg() -> dict[str, str]:
    """What RBG tells a container about itself: group, role and index, as far as it does."""
    names = {"group": "RBG_GROUP_NAME", "role": "RBG_ROLE_NAME", "index": "RBG_ROLE_INDEX"}
    return {key: os.environ[name] for key, name in names.items() if os.environ.get(name)}


def state_folder(configured: str) -> Path:
    """Folder of a master's state: as configured, else one in the user's state folder (XDG)."""
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "kvstore-master"
