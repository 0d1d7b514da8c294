"""Folders of the configuration: the last component only, and the file system they are on."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore import folders
from kvstore.errors import IoError


def test_only_the_last_component_is_created(tmp_path: Path) -> None:
    path = tmp_path / "one"
    for _ in range(2):
        folders.make("nvme_dir", str(path))
        assert path.is_dir() and path.stat().st_mode & 0o777 == 0o700
    deep = tmp_path / "two" / "three"
    with pytest.raises(IoError, match=f"nvme_dir {deep}: {deep.parent} does not exist"):
        folders.make("nvme_dir", str(deep))
    (tmp_path / "file").touch()
    with pytest.raises(IoError, match=r"data_dir .*file: File exists"):
        folders.make("data_dir", str(tmp_path / "file"))


def test_the_file_system_is_told() -> None:
    assert folders.file_system("/proc") == "proc"
    assert folders.in_memory(folders.file_system("/dev/shm"))
    assert not folders.in_memory("ext4") and folders.in_memory("hugetlbfs")
    assert folders.in_memory("")  # what cannot be told gives no warning
