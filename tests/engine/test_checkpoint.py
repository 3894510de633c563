"""The work of a save is dealt over the ranks, and what is wrong with a checkpoint is one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bigssl import distributed
from bigssl.config.recipe import CheckpointConfig
from bigssl.engine import checkpoint, zero
from bigssl.engine.checkpoint import CheckpointStore

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
    assert CheckpointStore(folder, CheckpointConfig(), {"world": 3}, print).save(engine, 5)
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


def saved_where_a_rank_may_not_write(folder: Path, stage: str) -> tuple[bool, list[str]]:
    """What `save` returns and notes on this rank, where the disk refuses rank 1 alone."""
    zero.start()
    notes: list[str] = []
    store = CheckpointStore(folder, CheckpointConfig(), {"world": 2}, notes.append)

    def refuse(*arguments: Any) -> None:
        raise OSError(122, "Disk quota exceeded", "part.pt")

    engine: Any = Files()
    if distributed.rank() == 1 and stage == "save":
        engine.save = lambda staging: (distributed.barrier(), refuse())
    elif distributed.rank() == 1:
        checkpoint._flush_files = refuse
    return store.save(engine, 5), notes


@pytest.mark.distributed
@pytest.mark.parametrize("stage", ["save", "flush"])
def test_rank_0_tells_of_a_disk_that_refuses_another_rank(stage: str, tmp_path: Path, ranks: Any) -> None:
    (done, notes), (done_there, _) = ranks(saved_where_a_rank_may_not_write, 2, tmp_path / "run", stage)
    assert not done and not done_there
    assert len(notes) == 1 and "rank 1: [Errno 122] Disk quota exceeded: 'part.pt'" in notes[0]
    assert not list((tmp_path / "run").glob("step-*[0-9]"))


def resumed_with_a_damaged_file(folder: Path) -> tuple[str, list[str]]:
    zero.start()
    engine: Any = Files()
    notes: list[str] = []
    store = CheckpointStore(folder, CheckpointConfig(), {"world": 2}, notes.append)
    assert store.save(engine, 5)
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
    assert store.save(engine, 5)
    remove = checkpoint.shutil.rmtree

    def busy(path: Path, **options: Any) -> None:
        if path.name == "step-00000005":
            raise OSError(16, "Device or resource busy", str(path))
        remove(path, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", busy)
    assert store.save(engine, 6)
    assert (tmp_path / "step-00000006" / "manifest.json").exists()
    assert (tmp_path / "latest").read_text() == "step-00000006\n"
    (note,) = notes
    assert "step-00000006 is whole" in note and "resource busy" in note


def test_a_checkpoint_of_an_earlier_bigssl_is_named(tmp_path: Path) -> None:
    engine: Any = Files()
    store = CheckpointStore(tmp_path, CheckpointConfig(), {"world": 1}, print)
    assert store.save(engine, 5)
    with pytest.raises(checkpoint.CheckpointError, match="step-00000005 is of an earlier bigssl"):
        store.resume(engine)
