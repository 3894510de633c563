"""Series as samples, for the tests of their tasks."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bigssl.data.sample import Sample
from bigssl.objectives.base import Objective


def sample_of(values: np.ndarray | bytes) -> Sample:
    """A sample with a series [T, C], or the bytes of its file."""
    if isinstance(values, np.ndarray):
        stream = io.BytesIO()
        np.save(stream, values)
        values = stream.getvalue()
    return Sample("s", {"npy": values}, position=0, epoch=0, shard="x.tar", source="emoji")


def tiny_section(kind: type[Objective], **changes: Any) -> dict[str, Any]:
    """The series backbone of a preset with other fields of its configuration."""
    section: dict[str, Any] = copy.deepcopy(kind.preset["backbones"]["series"])
    changes.pop("context_length", None)
    section["config"] |= changes
    return section


def batch_of(task: Any, series: Sequence[np.ndarray]) -> Any:
    """Of a task of series: what its loader would make of these, each by a generator of its number."""
    parts = [task.prepare(sample_of(each), np.random.default_rng(number), None) for number, each in enumerate(series)]
    stacked = {key: torch.from_numpy(np.stack([part[key] for part in parts])) for key in parts[0]}
    return task.assemble({"emoji": stacked})
