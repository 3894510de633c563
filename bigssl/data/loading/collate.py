"""Stacks prepared samples into one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bigssl.data.errors import DataError
from bigssl.data.loading.messages import empty


@dataclass(frozen=True)
class Ragged:
    """An array whose shape may differ from sample to sample; an objective's `assemble` has to make one tensor of
    them."""

    values: np.ndarray


def collate(items: Sequence[Any], name: str = "sample") -> Any:
    """Nested dicts with arrays, tensors, numbers or booleans at the leaves -> the same dicts with tensors [B, ...].

    Floats become float32, integers int64, arrays and tensors keep their dtype. Strings, bytes and what is
    `Ragged` (as tensors) become lists. Raises DataError naming the field and the shapes or keys that differ.
    """
    first = items[0]
    if isinstance(first, Mapping):
        if any(item.keys() != first.keys() for item in items):
            found = sorted({str(sorted(item)) for item in items})
            raise DataError(f"collate: {name} has different fields in one batch: {' and '.join(found)}")
        return {key: collate([item[key] for item in items], f"{name}.{key}") for key in first}
    if isinstance(first, str | bytes):
        return list(items)
    if isinstance(first, Ragged):
        return [torch.from_numpy(item.values) for item in items]
    return _stack(items, name)


def _stack(items: Sequence[Any], name: str) -> torch.Tensor:
    first = items[0]
    if isinstance(first, bool | int | float):
        kinds = {float: torch.float32, bool: torch.bool}
        return torch.tensor(items, dtype=kinds.get(type(first), torch.int64))
    if not isinstance(first, np.ndarray | np.generic | torch.Tensor):
        raise DataError(
            f"collate: {name} is a {type(first).__name__}; allowed are arrays, tensors, numbers, text and dicts"
        )
    if any(item.shape != first.shape or item.dtype != first.dtype for item in items):
        shapes = {(tuple(item.shape), str(item.dtype).removeprefix("torch.")) for item in items}
        found = " and ".join(f"{dtype}{list(shape)}" for shape, dtype in sorted(shapes))
        raise DataError(
            f"collate: {name} differs within one batch: {found}; prepare() must give every sample one shape"
        )
    if isinstance(first, torch.Tensor):
        return torch.stack(list(items))
    return torch.from_numpy(np.stack(items, out=empty((len(items), *first.shape), first.dtype)))
