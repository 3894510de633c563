"""Packing in several processes and after interruptions: the same bytes, finished shards kept, nothing taken over that
has changed since."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from bigssl.data.errors import DataError
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools import staged
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.data.tools.sources.folder import from_folder
from bigssl.data.tools.verify import verify
from bigssl.files import DiskFull


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """20 samples of two files each."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(20):
        (folder / f"n{number:02d}.txt").write_text(f"text {number}")
        (folder / f"n{number:02d}.json").write_text("{}")
    return folder


def run(source: Path, folder: Path, **options: object) -> list[str]:
    """Packs 5 shards; returns the notes."""
    notes: list[str] = []
    arguments: dict = {"name": "x", "shard_size": 4, "note": notes.append} | options
    pack(from_folder(source), folder, **arguments)
    return notes


@pytest.mark.parametrize("compress", [False, True])
def test_the_same_bytes_however_many_processes(source: Path, tmp_path: Path, compress: bool) -> None:
    options = {"compress": compress, "shuffle": True, "split": ("val", 0.3)}
    for jobs in (1, 2, 3):
        assert run(source, tmp_path / f"j{jobs}", jobs=jobs, **options) == []
    assert files(tmp_path / "j1") == files(tmp_path / "j2") == files(tmp_path / "j3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["j1", "j2", "j3", "source"]
    assert not list(verify(str(tmp_path / "j3/train")))


def interrupted(source: Path, folder: Path, at: str, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    """A run that fails at sample `at`."""
    real = staged._write_tar

    def fail(items: list[Item], tar: Path) -> None:
        if at in (item.key for item in items):
            raise DataError("interrupted")
        real(items, tar)

    with monkeypatch.context() as patch, pytest.raises(DataError, match="interrupted"):
        patch.setattr(staged, "_write_tar", fail)
        run(source, folder, **options)


def counting(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A list of the shards that are written from now on."""
    written: list[str] = []
    real = staged._write_tar
    monkeypatch.setattr(staged, "_write_tar", lambda items, tar: (written.append(tar.stem), real(items, tar)))
    return lambda: written


def test_an_interrupted_run_goes_on(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(source, tmp_path / "whole")
    interrupted(source, tmp_path / "x", "n13", monkeypatch)
    assert not (tmp_path / "x").exists()
    written = counting(monkeypatch)
    notes = run(source, tmp_path / "x")
    assert written() == ["x-000003", "x-000004"]
    assert "from an interrupted run: 3 finished shards" in notes[0]
    assert notes[1:] == ["3 of 5 shards were there already"]
    assert files(tmp_path / "x") == files(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_a_changed_source_is_not_taken_over(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(source, tmp_path / "x", "n13", monkeypatch)
    (source / "n05.txt").write_text("other words")
    written = counting(monkeypatch)
    notes = run(source, tmp_path / "x")
    assert written() == ["x-000001", "x-000003", "x-000004"]
    assert "1 of them were made from other sources or options and have been written anew" in notes
    texts = {sample.key: sample.fields["txt"] for sample in read_in_order(DatasetIndex.load(tmp_path / "x"))}
    assert texts["n05"] == b"other words"


def test_equal_sizes_with_another_time_are_another_source(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(source, tmp_path / "x", "n13", monkeypatch)
    os.utime(source / "n00.txt", ns=(1, 1))
    written = counting(monkeypatch)
    run(source, tmp_path / "x")
    assert written() == ["x-000000", "x-000003", "x-000004"]


@pytest.mark.parametrize("options", [{"shard_size": 5}, {"compress": True}, {"shuffle": True}, {"name": "y"}])
def test_other_options_begin_anew(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    interrupted(source, tmp_path / "x", "n13", monkeypatch)
    run(source, tmp_path / "whole", **options)
    written = counting(monkeypatch)
    run(source, tmp_path / "x", **options)
    assert len(written()) == (4 if "shard_size" in options else 5)
    assert files(tmp_path / "x") == files(tmp_path / "whole")


def test_what_has_no_stamp_is_never_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict[str, bytes]:
        raise DataError("interrupted")

    good = [Item(f"k{i}", "", lambda: {"txt": b"1"}) for i in range(4)]
    with pytest.raises(DataError, match="interrupted"):
        pack([*good, Item("z", "", fail)], tmp_path / "x", name="x", shard_size=2)
    assert not list(tmp_path.iterdir())


def test_a_damaged_finished_shard_is_written_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(source, tmp_path / "x", "n13", monkeypatch)
    tar = tmp_path / ".x.staging/.shards/x-000001/x-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    written = counting(monkeypatch)
    run(source, tmp_path / "x")
    assert written() == ["x-000001", "x-000003", "x-000004"]
    assert not list(verify(str(tmp_path / "x")))


def test_a_killed_run_goes_on(source: Path, tmp_path: Path) -> None:
    """kill -9 in the middle, with two processes: the next run is not locked out, and ends in the same bytes."""
    real = staged._write_tar

    def slow(items: list[Item], tar: Path) -> None:
        real(items, tar)
        time.sleep(60 if tar.stem > "x-000001" else 0)

    def in_child() -> None:
        staged._write_tar = slow
        run(source, tmp_path / "x", jobs=2)

    killed = multiprocessing.get_context("fork").Process(target=in_child)
    killed.start()
    finished = tmp_path / ".x.staging/.shards"
    while not {"x-000000", "x-000001", ".x-000002"} <= {path.name for path in finished.glob("*")}:
        assert killed.is_alive()
        time.sleep(0.01)
    with pytest.raises(DataError, match="another process packs it"):
        run(source, tmp_path / "x")
    killed.kill()
    killed.join()
    while True:
        try:
            notes = run(source, tmp_path / "x")
            break
        except DataError as error:  # its workers follow it at once, but not in the same instant
            assert "another process" in str(error)
            time.sleep(0.01)
    assert notes[-1] == "2 of 5 shards were there already"
    run(source, tmp_path / "whole")
    assert files(tmp_path / "x") == files(tmp_path / "whole")


def test_a_folder_is_not_held_in_memory(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(2000):
        (folder / f"{number}.bin").write_bytes(bytes(4000))
    tracemalloc.start()
    items = list(from_folder(folder))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(items) == 2000
    assert used < 2000 * 1000  # a kilobyte for each, whatever the files hold


def test_a_full_disk_is_named_and_keeps_what_is_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = staged._write_tar

    def full(items: list[Item], tar: Path) -> None:
        if tar.stem == "x-000002":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(items, tar)

    full_disk = r"^disk full: .*/x-000002, needs more than .*, has .*; free some room, the same command goes on from"
    with monkeypatch.context() as patch, pytest.raises(DiskFull, match=full_disk):
        patch.setattr(staged, "_write_tar", full)
        run(source, tmp_path / "x")
    assert not list(tmp_path.rglob(".x-0*"))  # what was half written takes no room
    assert run(source, tmp_path / "x")[-1] == "2 of 5 shards were there already"


def test_names_in_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / os.fsdecode(b"gr\xfc\xdfe.txt")).write_bytes(b"")
    with pytest.raises(DataError, match="its name is not UTF-8; rename it"):
        run(tmp_path / "source", tmp_path / "x")


def test_an_empty_folder_is_no_obstacle(source: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    run(source, tmp_path / "x")
    assert not list(verify(str(tmp_path / "x")))
    with pytest.raises(DataError, match="x exists; .*--overwrite"):
        run(source, tmp_path / "x")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file exists"):
        run(source, tmp_path / "file")
