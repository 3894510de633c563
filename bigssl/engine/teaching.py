"""Moves teachers (`bigssl/nets/ema.py`) after the optimizer, and keeps them in checkpoints: whole, fp32, by name, in a
form that knows neither ranks nor ZeRO stages."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from bigssl.engine.restore import StateError, refuse_differing
from bigssl.engine.zero import gathered
from bigssl.nets.ema import Ema
from bigssl.nets.progress import Progress

FILE = "teachers.pt"
Teachers = Mapping[str, Ema]


def _whole(teachers: Teachers) -> AbstractContextManager[None]:
    """All students' parameters in one gather: at ZeRO-3 it costs a third of one gather a layer. Those that every rank
    has whole since the step (stage3_param_persistence_threshold) stay so: after a gather they would be cut again."""
    students = {id(p): p for teacher in teachers.values() for p in teacher.student.parameters() if not _whole_now(p)}
    return gathered(students.values())


def _whole_now(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_status") and parameter.ds_status.name == "AVAILABLE"


def teach(teachers: Teachers, at: Progress) -> None:
    """Move every teacher once: after an optimizer step that changed weights, and constraints on them. Collective."""
    with _whole(teachers):
        for teacher in teachers.values():
            teacher.update(at)


def save_teachers(folder: Path, teachers: Teachers) -> None:
    """Write `folder / FILE`; call it on one rank: teachers are the same on all."""
    if teachers:
        with (folder / FILE).open("wb") as file:  # for a path, torch would not tell the system's error
            torch.save({name: teacher.module.state_dict() for name, teacher in teachers.items()}, file)


def load_teachers(folder: Path, teachers: Teachers) -> None:
    """Restore what `save_teachers` wrote, exactly.

    Raises:
        StateError: it is the state of other teachers; nothing was changed then.
    """
    path = folder / FILE
    saved: dict[str, dict[str, Tensor]] = {}
    if path.exists():
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if saved.keys() != teachers.keys():
        raise StateError(f"teachers {_names(saved)} in the checkpoint, {_names(teachers)} in this run")
    for name, teacher in teachers.items():
        mine = teacher.module.state_dict()
        refuse_differing(f"tensors of teacher {name}", _shapes(mine), _shapes(saved[name]))
    for name, teacher in teachers.items():
        teacher.module.load_state_dict(saved[name])


def _names(teachers: Mapping[str, object]) -> str:
    return ", ".join(sorted(teachers)) or "none"


def _shapes(state: Mapping[str, object]) -> dict[str, object]:
    return {name: list(value.shape) if isinstance(value, Tensor) else "extra" for name, value in state.items()}
