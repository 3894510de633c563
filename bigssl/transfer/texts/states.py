"""A text network with something on each of its tokens, and the tokens that it is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.sample import Sample
from bigssl.nets.modality import MODALITIES

TEXT = MODALITIES["text"]


class TokenReadout(nn.Module):
    """Numbers from the hidden state of each token: a text network and a fresh linear layer from the seed."""

    def __init__(self, model: PreTrainedModel, outputs: int, seed: int) -> None:
        super().__init__()
        self.model = model
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.top = nn.Linear(width_of(model), outputs)
        self.top.to(model.device)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """int64 [B, T], int64 [B, T] -> float32 [B, T, outputs]"""
        values: Tensor = self.top(TEXT.hidden(self.model, {"input_ids": ids, "attention_mask": mask}))
        return values.float()


def width_of(model: PreTrainedModel) -> int:
    """Of the hidden states."""
    was, ids = model.training, torch.ones(1, 1, dtype=torch.int64, device=model.device)
    with torch.no_grad():
        found = TEXT.hidden(model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).shape[-1]
    model.train(was)
    return int(found)


def filled(rows: Sequence[np.ndarray], padding: int | None, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask), int64 [B, T] on the device, of rows of ids, the longest of which has T."""
    ids = np.full((len(rows), max(map(len, rows))), padding or 0, dtype=np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def in_batches(count: int, batch: int) -> Iterator[range]:
    """range(count) in parts."""
    for start in range(0, count, batch):
        yield range(start, min(count, start + batch))


def facts_of(sample: Sample) -> dict[str, Any]:
    """The json of a sample. Raises DataError."""
    return decode.meta(decode.field(sample, ("json",)))


def fact(facts: Mapping[str, Any], name: str, kind: type, what: str) -> Any:
    """A field of the json. Raises DataError where there is none of this kind. what: what it should be, in words."""
    if name not in facts:
        raise DataError(f"no field {name!r} in its json; it has {', '.join(sorted(facts)) or 'none'}")
    if not isinstance(facts[name], kind):
        raise DataError(f"{name} is {type(facts[name]).__name__} {facts[name]!r:.40}; allowed: {what}")
    return facts[name]
