"""The work of a save is dealt over the ranks, and what is wrong with a checkpoint is one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bigssl import distributed
from bigssl.config import CheckpointConfig
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


def test_a_checkpoint_of_an_earlier_bigssl_is_named(tmp_path: Path) -> None:
    engine: Any = Files()
    store = CheckpointStore(tmp_path, CheckpointConfig(), {"world": 1}, print)
    assert store.save(engine, 5)
    with pytest.raises(checkpoint.CheckpointError, match="step-00000005 is of an earlier bigssl"):
        store.resume(engine)
