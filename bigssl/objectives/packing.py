"""What tasks over packed texts make of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bigssl.data.kinds.masking import IGNORE
from bigssl.data.kinds.packing import pack_rows, side_by_side, split_rows
from bigssl.data.loading.loader import SEEDS
from bigssl.nets.chance.seeds import another


def labelled_pieces(batch: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """The pieces of texts in a collated batch of `input_ids`, `labels` and `sizes`, in order, each token with a seed of
    its own: whatever row it comes into, it drops alike."""
    texts = zip(batch[SEEDS], batch["input_ids"], strict=True)
    tokens = [another(seed, torch.arange(len(ids))) for seed, ids in texts]
    return split_rows({**batch, SEEDS: tokens}, "sizes")


def packed_rows(pieces: Sequence[Mapping[str, Tensor]], length: int, pad: int) -> dict[str, Any]:
    """Rows of such pieces as `pack_rows` gives them, with `groups` and `found`, which make a `Packing`."""
    rows = pack_rows(pieces, length, {"input_ids": pad, "labels": IGNORE, SEEDS: 0})
    groups, found = side_by_side(rows["segments"])
    return {**rows, "groups": groups, "found": found}
