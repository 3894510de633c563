"""Real samples that an export is proven with: as they lie in shards for the other library, collated for ours."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from bigssl.data.kinds import decode
from bigssl.data.loading.collate import collate
from bigssl.data.sample import Sample
from bigssl.transfer.inputs import AudioInput, Input


def collated(takes: Input, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """The view that evaluation has of the samples, by the names that the modality has for a batch."""
    batch: dict[str, Tensor] = collate([takes.view(sample) for sample in samples])
    return batch


def contents(takes: Input, samples: Sequence[Sample]) -> list[bytes]:
    """What the other library gets of them: the files as they are; of sounds `.npy` of the samples at the rate that the
    extractor asks for, float32 [T], as decoding and resampling are up to its user."""
    found = [decode.field(sample, decode.FIELDS[takes.modality]) for sample in samples]
    return [_waveform(takes, data) for data in found] if isinstance(takes, AudioInput) else found


def _waveform(takes: AudioInput, data: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, decode.audio(data, rate=takes.rate, mono=True)[0][:, 0])
    return file.getvalue()
