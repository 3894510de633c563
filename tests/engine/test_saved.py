"""A rank whose disk refuses alone, inside DeepSpeed's own save, ends with the others."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from bigssl import distributed
from bigssl.engine import loop, saved
from bigssl.engine.checkpoint import CheckpointStore
from bigssl.engine.guards import NotSaved

WIDE = {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [1, 1], "layer_type": "basic"}
BACKBONES = {"image": {"type": "resnet", "size": 16, "config": WIDE}}
LIMIT = 1 << 15  # bytes a file, of a state of megabytes


def refused_alone(train: Any, recipe: Any, refused: int, at: int) -> str:
    """What this rank ends with where the system takes only small files of rank `refused`, from step `at` on."""
    save = CheckpointStore.save

    def limited(self: CheckpointStore, engine: Any, step: int, *others: Any) -> None:
        if step == at and distributed.rank() == refused:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
        save(self, engine, step, *others)

    loop.CheckpointStore.save = limited  # type: ignore[method-assign]
    with pytest.raises(NotSaved) as caught:
        train(recipe)
    return str(caught.value)


# At stage 0 rank 0 alone writes; at the others each rank has a part.
@pytest.mark.distributed
@pytest.mark.parametrize(("stage", "refused"), [(0, 0), (2, 1), (3, 1)])
def test_a_rank_that_cannot_write_its_part_does_not_leave_the_others_waiting(
    stage: int, refused: int, tmp_path: Path, ranks: Any, recipe: Any, train: Any, curve: Any
) -> None:
    shape: dict[str, Any] = {"steps": 2, "zero": {"stage": stage}, "backbones": BACKBONES, "checkpoint": {"every": 1},
                             "optim": {"lr": 0.01}}  # fmt: skip
    run = recipe(tmp_path / "run", **shape)
    here, there = ranks(refused_alone, 2, train, run, refused, 2, timeout=60)
    assert here == there
    place = tmp_path / "run" / "checkpoints"
    assert here.startswith(f"no checkpoint of step 2: rank {refused}: disk full: {place}/step-00000002, needs ")
    assert "MiB, has 0.031 MiB a file (`ulimit -f`); free" in here and "step-00000001 stays" in here
    assert sorted(path.name for path in place.iterdir()) == ["latest", "step-00000001"]
    if stage < 3:
        return
    ((outcome, _), _) = ranks(train, 2, run)  # from the one before, which is whole
    assert outcome.step == 2 and [row["step"] for row in curve(tmp_path / "run")] == [1, 2]


def test_a_save_that_failed_does_not_spoil_the_next(tmp_path: Path) -> None:
    """The first problem is told, not what follows from it, and is forgotten then."""
    calls: list[str] = []

    class Inner:
        def makedirs(self, path: str, exist_ok: bool) -> None:
            calls.append(path)
            raise PermissionError(13, "Permission denied", path)

        def save(self, state: Any, file: Any) -> None:
            calls.append(file.name)

    writes = saved._Deferred(Inner())
    writes.makedirs("there")
    writes.save({}, str(tmp_path / "x"))
    with pytest.raises(PermissionError):
        writes.settle()
    writes.settle()
    writes.save({}, str(tmp_path / "x"))
    writes.settle()
    assert calls == ["there", str(tmp_path / "x")]
