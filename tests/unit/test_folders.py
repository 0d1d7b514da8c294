"""Folders of the configuration: the last component only, and the file system they are on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

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


def test_a_folder_that_others_could_fill_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    folders.check_safe("segment_dir", str(own))
    folders.check_safe("segment_dir", "/tmp")  # sticky: nobody replaces our files
    link = tmp_path / "link"
    link.symlink_to(own)
    with pytest.raises(IoError, match=r"segment_dir .*link is a symbolic link"):
        folders.check_safe("segment_dir", str(link))
    own.chmod(0o777)
    with pytest.raises(IoError, match="lets every user write"):
        folders.check_safe("segment_dir", str(own))
    monkeypatch.setattr("os.path.ismount", lambda path: True)
    folders.check_safe("segment_dir", str(own))
    own.chmod(0o700)
    real = own.stat()
    monkeypatch.setattr("os.geteuid", lambda: real.st_uid + 1)
    if real.st_uid == 0:
        monkeypatch.setattr(
            "os.lstat", lambda path: SimpleNamespace(st_mode=real.st_mode, st_uid=7)
        )
    with pytest.raises(IoError, match="belongs to uid"):
        folders.check_safe("segment_dir", str(own))
