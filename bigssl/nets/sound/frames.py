"""The frames of networks that hear sounds, some of which they do not hear: a token that is learned stands in the place
of each hidden one, before positions are added (wav2vec 2.0, HuBERT, data2vec).

    audio [B, T] ── convolutions ── latents [B, F, C] ── projection, hidden frames replaced ── encoder ── [B, F, D]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from bigssl.nets.modality import MODALITIES

WITH_TOKEN = ("data2vec-audio", "hubert", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-conformer", "wavlm")
"""Types whose frames may be replaced between projection and encoder."""


class Heard(NamedTuple):
    """hidden: [B, F, D], of the last layer. latents: [B, F, C], of the convolutions, normalised where the type does."""

    hidden: Tensor
    latents: Tensor


class Steps(NamedTuple):
    """Of a network's convolutions: samples that a frame sees, and those between the beginnings of two."""

    seen: int
    stride: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Steps:
        seen, stride = 1, 1
        for kernel, step in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            seen, stride = (seen - 1) * step + kernel, stride * step
        return cls(seen, stride)

    def frames(self, samples: int) -> int:
        """Of so many samples; what does not fill a frame is left out behind."""
        return max(0, (samples - self.seen) // self.stride + 1)


def encode_frames(
    model: PreTrainedModel, batch: dict[str, Tensor], hidden: Tensor | None = None, token: Tensor | None = None
) -> Heard:
    """What a network of type WITH_TOKEN makes of sounds.

    Args:
        batch: audio and audio_mask, as the modality has them.
        hidden: bool [B, F], where `token`, [D], stands in the place of a frame; default nowhere.
    """
    inputs = MODALITIES["audio"].inputs(model, batch)
    parts: Any = model
    latents = parts.feature_extractor(inputs["input_values"]).transpose(1, 2)
    found = parts.feature_projection(latents)
    states, latents = found if isinstance(found, tuple) else (found, latents)
    if hidden is not None and token is not None:
        states = torch.where(hidden.unsqueeze(-1), token.to(states.dtype), states)
    mask = inputs.get("attention_mask")
    heard = None if mask is None else parts._get_feature_vector_attention_mask(states.shape[1], mask)
    return Heard(parts.encoder(states, attention_mask=heard).last_hidden_state, latents)


def silenced(audio: Tensor, hidden: Tensor, steps: Steps) -> Tensor:
    """audio [B, T] with 0 in every sample that a hidden frame sees, hidden bool [B, F]."""
    ones = audio.new_ones(1, 1, steps.seen)
    covered = torch.nn.functional.conv_transpose1d(hidden[:, None].to(audio.dtype), ones, stride=steps.stride)[:, 0]
    covered = torch.nn.functional.pad(covered, (0, audio.shape[1] - covered.shape[1]))
    return audio.masked_fill(covered > 0.5, 0.0)


def mask_of_frames(model: PreTrainedModel, audio_mask: Tensor, frames: int) -> Tensor:
    """bool [B, F], the frames that do not stand for padding, of audio_mask int64 [B, T]."""
    parts: Any = model
    found: Tensor = parts._get_feature_vector_attention_mask(frames, audio_mask)
    return found.bool()


def last_layers(model: PreTrainedModel, batch: dict[str, Tensor], count: int) -> list[Tensor]:
    """What each of the last `count` layers makes of the frames, [B, F, D]."""
    found = model(**MODALITIES["audio"].inputs(model, batch), output_hidden_states=True).hidden_states
    return list(found[-count:])
