"""What came when? Features of stretches of a series or a sound, for which the mean over all of it has no answer."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from bigssl.nets.modality.kinds import BY_CHANNEL
from bigssl.nets.modality.table import MODALITIES, Batch, modality_of_type
from bigssl.nets.pool import means_of_parts

TIMED = ("series", "audio")
"""Modalities whose hidden states stand for one time after the other."""


def stretch_count(model: PreTrainedModel, parts: int) -> int:
    """Of how many means the features of a sample consist: `parts`, of each channel that has states of its own."""
    kind = model.config.model_type
    return parts * (int(model.config.num_input_channels) if kind in BY_CHANNEL else 1)


def features_in_parts(model: PreTrainedModel, batch: Batch, parts: int) -> Tensor:
    """Collated samples on the model's device -> [B, stretch_count(model, parts) · D]: the means of the hidden states of
    `parts` equal stretches of time, one after the other, of each channel; of a sound, of what is heard of it."""
    kind = model.config.model_type
    row = modality_of_type(kind)
    assert row is not None and row.name in TIMED
    tokens, mask = row.run(model, row.inputs(model, batch))
    count = len(tokens)
    if kind in BY_CHANNEL:  # [B, C · patches, D]
        shape = count * int(model.config.num_input_channels), -1
        tokens, mask = tokens.reshape(*shape, tokens.shape[2]), None if mask is None else mask.reshape(shape)
    lengths = tokens.new_full((len(tokens),), tokens.shape[1]).long()
    if row is MODALITIES["audio"] and mask is not None:  # the rest is silence that fills it up
        lengths, mask = mask.long().sum(1), None
    return means_of_parts(tokens.float(), lengths, parts, mask).reshape(count, -1)
