"""Writes a bundle: redacted files in a tar archive, and a manifest of them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstore.errors import InvalidArgumentError, IoError, KvstoreError
from kvstore.support.redact import Redactor

MAX_PART_BYTES = 16 << 20
_FOLDER = "kvstore-support"


@dataclass(frozen=True)
class Part:
    """A file of the bundle."""

    name: str
    """In the archive."""
    about: str
    """Where it comes from."""
    collect: Callable[[], str]
    """Returns its text, redacted afterwards; may raise."""


@dataclass(frozen=True)
class Entry:
    """A row of the manifest."""

    name: str
    about: str
    bytes: int
    sha256: str
    error: str
    """Why it is missing; empty: it is there."""


def write(
    path: Path,
    parts: Sequence[Part],
    redactor: Redactor,
    created: str,
    begins: Callable[[str], None],
) -> dict[str, Any]:
    """Collect the parts and write the archive.

    Args:
        path: of the archive, which must not exist; only its owner may read it.
        parts: in the order of the archive. One that fails is missing, and the manifest says why.
        redactor: takes out what must not leave.
        created: when, for the manifest.
        begins: called with the name of each part before it is collected.

    Returns:
        The manifest, which is in the archive, too.

    Raises:
        InvalidArgumentError: There is such a file, or no such folder.
        IoError: It cannot be written; nothing is left of it.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InvalidArgumentError(f"{path} exists: give another name, or remove it") from None
    except OSError as error:
        raise InvalidArgumentError(f"cannot create {path}: {error.strerror}") from None
    try:
        with (
            os.fdopen(descriptor, "wb") as file,
            tarfile.open(fileobj=file, mode="w:gz", format=tarfile.PAX_FORMAT) as archive,
        ):
            entries = [_add(archive, part, redactor, begins) for part in parts]
            manifest = {
                "format": 1,
                "created": created,
                "parts": [vars(entry) for entry in entries],
            }
            text = json.dumps(manifest, indent=2) + "\n"
            _put(archive, "manifest.json", text.encode())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise IoError(f"cannot write {path}: {error.strerror or error}") from None
    except BaseException:  # Ctrl-C: half an archive is none
        path.unlink(missing_ok=True)
        raise
    return manifest


def _add(
    archive: tarfile.TarFile, part: Part, redactor: Redactor, begins: Callable[[str], None]
) -> Entry:
    begins(part.name)
    name = redactor.text(part.name)
    about = redactor.text(part.about)
    try:
        text = redactor.text(part.collect())
    except (KvstoreError, OSError, ValueError) as error:
        return Entry(name, about, 0, "", redactor.text(str(error))[:1000])
    except Exception as error:  # a bundle is for what is broken: the other parts still count
        return Entry(name, about, 0, "", redactor.text(f"{type(error).__name__}: {error}")[:1000])
    data = text.encode(errors="replace")[:MAX_PART_BYTES]
    _put(archive, name, data)
    return Entry(name, about, len(data), hashlib.sha256(data).hexdigest(), "")


def _put(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(f"{_FOLDER}/{name}")
    member.size = len(data)
    member.mode = 0o600
    archive.addfile(member, io.BytesIO(data))
