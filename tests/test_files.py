"""A file is whole or what it was, and nothing is left beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bigssl.files import write_atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_replaces_and_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomic(path, b"one")
    write_atomic(path, (part for part in (b"t", b"wo")))
    assert path.read_bytes() == b"two" and names(path.parent) == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def parts() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("what made the data failed")

    with pytest.raises(ValueError, match="what made the data failed"):
        write_atomic(path, parts())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_other_users_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_files_are_replaced_in_one_place() -> None:
    """Another hand-written `x.tmp` then `replace` would again forget the fsync or the cleaning up."""
    package = Path(write_atomic.__code__.co_filename).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "os.replace(" in path.read_text() or "staging.replace(" in path.read_text()
    }
    assert found == {
        "files.py", "data/tools/staged.py", "data/tools/pack.py", "data/remote/cache.py",
    }  # fmt: skip # folders, and ranges of a cache
