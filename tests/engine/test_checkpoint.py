"""The work of a save is dealt over the ranks, and what is wrong with a checkpoint is one line."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bigssl import distributed
from bigssl.config.recipe import CheckpointConfig
from bigssl.engine import checkpoint, zero
from bigssl.engine.checkpoint import CheckpointStore
from bigssl.engine.guards import NotSaved

SIZES = {"a": 900, "b": 800, "c": 700, "d": 100, "e": 90, "f": 80}


class Files:
    """In place of an engine: rank 0 writes SIZES."""

    def save(self, folder: Path) -> None:
        if distributed.is_main():
            (folder / "state").mkdir()
            for name, size in SIZES.items():
                (folder / "state" / name).write_bytes(name.encode() * size)
        distributed.barrier()


def hashed_by_this_rank(folder: Path) -> list[str]:
    zero.start()
    names: list[str] = []
    describe = checkpoint._describe

    def recorded(path: Path) -> dict[str, Any]:
        names.append(path.name)
        return describe(path)

    checkpoint._describe = recorded
    engine: Any = Files()
    CheckpointStore(folder, CheckpointConfig(), {"world": 3}, print).save(engine, 5)
    return names


@pytest.mark.distributed
def test_each_rank_hashes_its_share_and_the_manifest_is_whole(tmp_path: Path, ranks: Any) -> None:
    shares = ranks(hashed_by_this_rank, 3, tmp_path)
    assert shares == [["a", "d"], ["b", "e"], ["c", "f"]]  # even in bytes, each file once
    manifest = json.loads((tmp_path / "step-00000005" / "manifest.json").read_text())
    want = {f"state/{name}": hashlib.sha256(name.encode() * size).hexdigest() for name, size in SIZES.items()}
    assert {name: facts["sha256"] for name, facts in manifest["files"].items()} == want
    assert {name: facts["bytes"] for name, facts in manifest["files"].items()} == {
        f"state/{name}": size for name, size in SIZES.items()
    }


def saved_where_a_rank_may_not_write(folder: Path, stage: str) -> str:
    """What `save` raises on this rank, where the disk refuses rank 1 alone."""
    zero.start()
    store = CheckpointStore(folder, CheckpointConfig(), {"world": 2}, print, expected=5 << 20)

    def refuse(*arguments: Any) -> None:
        raise OSError(122, "Disk quota exceeded", "part.pt")

    engine: Any = Files()
    store.save(engine, 4)
    if distributed.rank() == 1 and stage == "save":
        engine.save = lambda staging: (distributed.barrier(), refuse())
    elif distributed.rank() == 1:
        checkpoint._flush_files = refuse
    with pytest.raises(NotSaved) as caught:
        store.save(engine, 5)
    return str(caught.value)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", ["save", "flush"])
def test_every_rank_ends_alike_where_a_disk_refuses_one(stage: str, tmp_path: Path, ranks: Any) -> None:
    here, there = ranks(saved_where_a_rank_may_not_write, 2, tmp_path / "run", stage)
    assert here == there and "\n" not in here
    place = re.escape(str(tmp_path / "run" / "step-00000005"))
    full = rf"rank 1: disk full: {place}, needs \d+ bytes, has \d+ bytes of its quota"
    assert re.match(rf"no checkpoint of step 5: {full}; free some room, .*; step-00000004 stays, after which", here)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["latest", "step-00000004"]


def test_a_run_that_waits_says_so_and_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four attempts fail; a failure that is no want of room is not waited for."""
    monkeypatch.setattr(checkpoint, "ATTEMPTS", 0.01)
    engine: Any = Files()
    notes: list[str] = []
    failures: list[Any] = [OSError(28, "No space left on device")] * 4
    write = engine.save

    def save(folder: Path) -> None:
        if failures:
            raise failures.pop()
        write(folder)

    engine.save = save
    store = CheckpointStore(tmp_path, CheckpointConfig(on_full="wait"), {"world": 1}, notes.append)
    store.save(engine, 5)
    (note,) = notes
    final = tmp_path / "step-00000005"
    assert note.startswith(f"waiting for room for the checkpoint of step 5: disk full: {final}, needs ")
    assert (tmp_path / "step-00000005" / "manifest.json").exists()
    failures += [OSError(5, "Input/output error")]
    with pytest.raises(NotSaved, match="no checkpoint of step 6: .*Input/output error; step-00000005 stays"):
        store.save(engine, 6)
    assert not list(tmp_path.glob("*.tmp"))


def told_to_stop_while_waiting(folder: Path) -> str:
    zero.start()
    checkpoint.ATTEMPTS = 5.0
    engine: Any = Files()

    attempts: list[int] = []

    def full(folder: Path) -> None:
        attempts.append(1)
        if distributed.is_main():
            raise OSError(28, "No space left on device") if len(attempts) < 4 else OSError(5, "still waiting")

    engine.save = full
    polls: list[int] = []

    def told() -> str:
        polls.append(1)
        return "SIGTERM" if distributed.rank() == 1 and len(polls) == 2 else ""

    store = CheckpointStore(folder, CheckpointConfig(on_full="wait"), {"world": 2}, print)
    with pytest.raises(NotSaved) as caught:
        store.save(engine, 5, told)
    return str(caught.value)


@pytest.mark.distributed
def test_a_signal_to_one_rank_ends_the_wait_of_all(tmp_path: Path, ranks: Any) -> None:
    """Not as if it had stopped after a checkpoint: what was trained since the last one is lost, and said so."""
    here, there = ranks(told_to_stop_while_waiting, 2, tmp_path / "run")
    assert here == there
    assert here.startswith("told to stop by SIGTERM, but no checkpoint of step 5: rank 0: disk full: ")
    assert here.endswith("no checkpoint was written before, the same command begins anew")


def test_a_disk_that_cannot_hold_it_is_not_filled_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = Files()
    store = CheckpointStore(tmp_path, CheckpointConfig(), {"world": 1}, print, expected=1 << 30)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: type("usage", (), {"free": 10}))
    engine.save = lambda _: pytest.fail("tried")
    with pytest.raises(NotSaved, match=r"needs 1024 MiB, has \d+ MiB"):
        store.save(engine, 5)
    assert not list(tmp_path.iterdir())


def resumed_with_a_damaged_file(folder: Path) -> tuple[str, list[str]]:
    zero.start()
    engine: Any = Files()
    notes: list[str] = []
    store = CheckpointStore(folder, CheckpointConfig(), {"world": 2}, notes.append)
    store.save(engine, 5)
    if distributed.is_main():
        (folder / "step-00000005" / "state" / "b").unlink()
    distributed.barrier()
    try:
        store.resume(engine)
    except checkpoint.CheckpointError as error:
        return str(error), notes
    return "", notes


@pytest.mark.distributed
def test_rank_0_names_the_file_that_another_rank_found_damaged(tmp_path: Path, ranks: Any) -> None:
    for error, notes in ranks(resumed_with_a_damaged_file, 2, tmp_path / "run"):  # b is verified by rank 1
        assert "step-00000005: state/b is missing" in error
        assert notes == ["checkpoint step-00000005: state/b is missing; trying the one before"]


def test_a_checkpoint_is_saved_where_an_old_one_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = Files()
    notes: list[str] = []
    store = CheckpointStore(tmp_path, CheckpointConfig(keep=1), {"world": 1}, notes.append)
    store.save(engine, 5)
    remove = checkpoint.shutil.rmtree

    def busy(path: Path, **options: Any) -> None:
        if path.name == "step-00000005":
            raise OSError(16, "Device or resource busy", str(path))
        remove(path, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", busy)
    store.save(engine, 6)
    assert (tmp_path / "step-00000006" / "manifest.json").exists()
    assert (tmp_path / "latest").read_text() == "step-00000006\n"
    (note,) = notes
    assert "step-00000006 is whole" in note and "resource busy" in note


def test_a_checkpoint_of_an_earlier_bigssl_is_named(tmp_path: Path) -> None:
    engine: Any = Files()
    store = CheckpointStore(tmp_path, CheckpointConfig(), {"world": 1}, print)
    store.save(engine, 5)
    with pytest.raises(checkpoint.CheckpointError, match="step-00000005 is of an earlier bigssl"):
        store.resume(engine)
