"""As ONNX: a graph for onnxruntime, beside the tokenizer or preprocessor that says what its inputs are made of.

    DIR/model.onnx       inputs as transformers calls them, with any number of rows (and of tokens); outputs `features`
                         [B, D], `logits` [B, T, V] where the part has a head of masked language modelling
    DIR/image, DIR/text  of CLIP: one such folder a side; output `embeddings` [B, P], unit vectors
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigssl.data.sample import Sample
from bigssl.nets.modality import MODALITIES
from bigssl.nets.pool import mean_of
from bigssl.transfer.leaving.parts import Member, Part, UnfitError
from bigssl.transfer.leaving.proof import Claim
from bigssl.transfer.leaving.samples import collated, contents

LARGE = 1 << 30  # bytes; what a protobuf can hold ends at 2 GiB
MODEL = "model.onnx"


class _Features(nn.Module):
    """Inputs of a network by name -> outputs by position: what a modality does after them."""

    def __init__(self, member: Member, head: nn.Module | None, projection: Tensor | None) -> None:
        super().__init__()
        self.model, self.modality = member.model, MODALITIES[member.takes.modality]
        self.head, self.projection = head, None if projection is None else nn.Parameter(projection)

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        given: dict[str, Any] = dict(inputs)
        if self.modality.name == "text":
            given = self.modality.inputs(self.model, given)
        hidden, mask = self.modality.run(self.model, given)
        features = mean_of(hidden, mask)
        if self.projection is not None:
            return (F.normalize(features @ self.projection.T, dim=1),)
        return (features,) if self.head is None else (features, self.head.logits(hidden))  # type: ignore[operator]


def to_onnx(part: Part, folder: Path, samples: dict[str, list[Sample]]) -> list[Claim]:
    """Writes a graph to `folder`, of CLIP one for each side. Raises UnfitError."""
    if part.kind == "clip":
        return [_side(part, role, folder / role, samples[role]) for role in part.members]
    (role,) = part.members
    return [_side(part, role, folder, samples[role])]
