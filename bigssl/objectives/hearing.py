"""The sound of a sample as a backbone takes it, and which of its frames a task hides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.data.kinds.sound.frames import FEWEST, hidden_stretches
from bigssl.data.kinds.sound.windows import QUIET, sound_of
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.sound.frames import Steps
from bigssl.nets.towers import Tower
from bigssl.objectives.base import ObjectiveConfig
from bigssl.objectives.counting import Counting

CUT_OFF = "dB below the loudest moment, where silence before and behind begins and is cut off; none: it stays"

TINY_SOUND: dict[str, Any] = {
    "type": "wav2vec2", "rate": 16_000, "length": 8000,
    "config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
               "conv_dim": [16, 16, 16], "conv_kernel": [10, 8, 8], "conv_stride": [5, 8, 8],
               "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "hidden_dropout": 0.0,
               "activation_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0},
}  # fmt: skip
"""An audio backbone of the presets."""


class HidingConfig(ObjectiveConfig):
    """Fields of a task that hides frames."""

    backbone: str = "audio"
    share: float = Field(0.65, gt=0, description="stretches begun a frame, times their length: .65 hides 49 %")
    span: int = Field(10, ge=2, description="frames that are hidden in one stretch")
    quiet: float | None = Field(QUIET, gt=0, description=CUT_OFF)


class HidesFrames(Counting):
    """Mixed into an `Objective` that hides frames of sounds, and asks for them. Its `Config` is a `HidingConfig`."""

    config: Any
    backbone: Tower
    steps: Steps

    def hear(self: Any, config: Any, towers: Mapping[str, Tower]) -> None:
        """Sets `config`, `backbone` and its `steps`. Raises ConfigError."""
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.steps = frame_steps(self.backbone, config.backbone)

    def prepare(self: Any, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        """audio, audio_mask, and hidden: bool [F], which of its frames are."""
        return hidden_sound(sample, self.backbone, self.steps, self.config, rng)

    def assemble(self, by_source: dict[str, Any]) -> dict[str, Any]:
        """Adds how many frames are hidden, counted where they are."""
        batch: dict[str, Any] = super().assemble(by_source)  # type: ignore[misc]
        return batch | {"asked": int(batch["hidden"].sum())}

    def units(self, batch: dict[str, Any]) -> dict[str, int]:
        return {"": batch["asked"]}


def frame_steps(tower: Tower, name: str) -> Steps:
    """Of an audio backbone. Raises ConfigError: its sounds have too few frames for some to be hidden."""
    steps = Steps.of(tower.model.config)
    if steps.frames(tower.length) < FEWEST:
        least = steps.seen + (FEWEST - 1) * steps.stride
        raise ConfigError(f"backbones.{name}.length: value {tower.length}, {steps.frames(tower.length)} frames; "
                          f"allowed: >= {least}, {FEWEST} frames, of which some can be hidden")  # fmt: skip
    return steps


def hidden_sound(
    sample: Sample, tower: Tower, steps: Steps, hiding: HidingConfig, rng: np.random.Generator
) -> dict[str, Any]:
    """audio and audio_mask as of `sound_of`, and hidden: bool [F], stretches of frames (`hidden_stretches`).

    Raises:
        DataError: no sound, silence, or one of fewer than three frames.
    """
    found = sound_of(sample, tower.rate, tower.length, rng, quiet=hiding.quiet)
    frames = steps.frames(int(found["audio_mask"].sum()))
    try:
        hidden = hidden_stretches(frames, steps.frames(tower.length), hiding.share, hiding.span, rng)
    except DataError as error:
        raise DataError(f"{sample.where}: {error}") from error
    return found | {"hidden": hidden}


def heard_frames(batch: Mapping[str, Tensor], steps: Steps) -> Tensor:
    """[] how many there are, padding apart."""
    return ((batch["audio_mask"].sum(1) - steps.seen) // steps.stride + 1).clamp(min=0).sum()


def of_all(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums [] of a rank's frames by name -> those of all ranks', detached, float32. Collective."""
    summed = distributed.all_reduce_sum(torch.stack([each.detach().float() for each in sums.values()]))
    return dict(zip(sums, summed.unbind(), strict=True))
