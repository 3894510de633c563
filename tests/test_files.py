"""A file is whole or what it was, and nothing is left beside it."""

from __future__ import annotations

import errno
import io
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from bigssl.files import DiskFull, append_whole, drop_from, write_atomic, writing


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
    with pytest.raises(DiskFull, match=rf"^disk full: {path}, needs 3 bytes, has \d+ MiB$"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """The system refuses to write more into one file, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def with_torch(path: Path) -> None:
    torch.save({"a": torch.zeros(300_000)}, path)


def with_torch_into_a_file(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"a": torch.zeros(300_000)}, file)


def with_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(300_000)}, path)


def with_tokenizers(path: Path) -> None:
    words = {str(number): number for number in range(10_000)}
    Tokenizer(models.WordLevel(words, unk_token="0")).save(str(path))


def with_numpy(path: Path) -> None:
    np.save(path, np.zeros(300_000))


@pytest.mark.parametrize(
    "write", [with_torch, with_torch_into_a_file, with_safetensors, with_tokenizers, with_numpy],
    ids=lambda write: write.__name__,
)  # fmt: skip
def test_a_disk_without_room_is_recognised_whoever_notices(write: Any, tmp_path: Path) -> None:
    """A real refusal of the system, of which each library makes something else; two keep the cause to themselves."""
    with pytest.raises(DiskFull) as caught, no_file_over(50_000), writing(tmp_path / "x", 1_200_000):
        write(tmp_path / "x")
    limit = "has 0.048 MiB a file (`ulimit -f`)"
    if write in (with_torch, with_numpy):
        limit = f"has {str(caught.value).rpartition('has ')[2]}"
    assert str(caught.value) == f"disk full: {tmp_path / 'x'}, needs 1.1 MiB, {limit}"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_the_message_survives_a_process_and_counts_what_goes_away(number: int, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(bytes(3 << 20))
    with pytest.raises(DiskFull) as caught, writing(tmp_path / "new" / "x", staged=tmp_path / "part"):
        raise OSError(number, "")
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value) == error.strerror and error.errno == number
    assert f"disk full: {tmp_path}/new/x, needs more than " in str(error)
    if number == errno.EDQUOT:
        assert str(error).endswith("needs more than 3 MiB, has 3 MiB of its quota")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), ValueError("no"), KeyError("x"),
                                   RuntimeError("[enforce fail] . shape")], ids=repr)  # fmt: skip
def test_other_errors_are_told_as_they_are(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, writing(tmp_path / "x", 5):
        raise error
    assert caught.value is error


def test_what_torch_hides_behind_a_full_disk_is_not_taken_for_one(tmp_path: Path) -> None:
    """It says "unexpected pos" of a disk that is broken, too."""

    class Broken(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises((OSError, RuntimeError)) as caught, writing(tmp_path / "x", 5):
        torch.save({"a": torch.zeros(3000)}, Broken())
    assert not isinstance(caught.value, DiskFull)


def test_lines_are_appended_whole_or_not_at_all_and_cut_without_room(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"".join(b'{"step": %d, "x": 1}\n' % step for step in range(1, 5)))
    whole = path.read_bytes()
    with path.open("ab", buffering=0) as file:
        with pytest.raises(DiskFull, match=f"disk full: {path}, needs 300 bytes"), no_file_over(len(whole) + 100):
            append_whole(file.fileno(), bytes(300), path)
        assert path.read_bytes() == whole
        with no_file_over(1):
            drop_from(path, 3)
        append_whole(file.fileno(), b"more\n", path)
    assert path.read_bytes() == b'{"step": 1, "x": 1}\n{"step": 2, "x": 1}\nmore\n'


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
