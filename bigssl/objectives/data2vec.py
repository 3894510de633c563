"""data2vec: from a sound with hidden frames, what a slow copy of the network makes of all of it (Baevski et al. 2022,
arXiv 2202.03555).

    audio ─┬─ frames, some hidden ── student ── layer ── prediction ──────────────────────────┐ squared error on
           └─ all frames ── teacher (moving average) ── last K layers, normalised, their mean ┴ hidden frames

A target is the mean of what the teacher's last `layers` layers make of a frame, each of whose dimensions is normalised
over the frames of its sound (section 3.3: without parameters, so that no layer outweighs the others and none is
constant). Which frames are hidden follows from the sample. The teacher's momentum goes to `momentum_to` along a line
over the first `ramp` of the run. The teacher has convolutions of its own, where fairseq may share them, and layers are
taken whole, as transformers gives them, where fairseq takes the feed-forward block before its residual connection.

The blind line is the mean target. `spread` is that of the student's hidden frames, before any normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.nets.ema import Ema
from bigssl.nets.progress import LinearRamp, Progress
from bigssl.nets.remaking.lines import mean_row_error
from bigssl.nets.sound.frames import WITH_TOKEN, encode_frames, last_layers, mask_of_frames
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective
from bigssl.objectives.counting import mean_of_step
from bigssl.objectives.hearing import TINY_SOUND, HidesFrames, HidingConfig, heard_frames, of_all
from bigssl.objectives.needs import Needs

EPSILON = 1e-5  # added to a variance over the frames of a sound


class Data2vec(HidesFrames, Objective):
    """Predict a slow copy's frames of a whole sound from a part of it (data2vec)."""

    class Config(HidingConfig):
        layers: int = Field(8, ge=1, description="last layers of the teacher whose mean is predicted")
        momentum: float = Field(0.999, ge=0, lt=1, description="of the teacher at the start")
        momentum_to: float = Field(0.9999, ge=0, le=1, description="to which it rises along a line")
        ramp: float = Field(0.1, gt=0, le=1, description="share of the run in which it does")

    takes = {"backbone": Needs("audio", WITH_TOKEN, "whose frames cannot be replaced")}
    starts = {"span": 5, "layers": 2, "momentum": 0.99, "momentum_to": 0.999, "ramp": 0.5}
    scheduled = True
    adjustable = ("share", "span", "momentum", "momentum_to", "ramp", "quiet")
    preset = {
        "objective": {"span": 4, "layers": 1, "momentum": 0.9, "momentum_to": 0.99, "ramp": 0.5},
        "backbones": {"audio": TINY_SOUND | {"config": TINY_SOUND["config"] | {"num_hidden_layers": 2}}},
        "data": "speech/train",
    }  # fmt: skip

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.hear(config, towers)
        depth = self.backbone.model.config.num_hidden_layers
        if config.layers > depth:
            raise ConfigError(f"objective.layers: value {config.layers}; allowed: 1 to {depth}, the layers of backbone "
                              f"{config.backbone!r}")  # fmt: skip
        if config.momentum_to < config.momentum:
            raise ConfigError(f"objective.momentum_to: value {config.momentum_to}; allowed: >= momentum "
                              f"{config.momentum}")  # fmt: skip
        self.token = nn.Parameter(torch.rand(self.backbone.dim))
        self.head = nn.Linear(self.backbone.dim, self.backbone.dim)
        self.teacher = Ema(self.backbone, LinearRamp(config.momentum, config.momentum_to, config.ramp))

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        hidden = batch["hidden"]
        rows = torch.nonzero_static(hidden.flatten(), size=batch["asked"]).squeeze(1)
        states = encode_frames(self.backbone.model, batch, hidden, self.token).hidden.flatten(0, 1)[rows]
        wanted = self._targets(batch).flatten(0, 1)[rows]
        each = F.mse_loss(self.head(states).float(), wanted, reduction="none").mean(1)
        said = of_all({"asked": hidden.sum(), "heard": heard_frames(batch, self.steps)})
        loss, blind = mean_of_step(batch, each.sum(), mean_row_error(wanted), said["asked"])
        return Losses(
            loss, blind, "squared error", "the mean target", stats={"hidden": said["asked"] / said["heard"]},
            spread={"frames": distributed.spread(states)},
        )  # fmt: skip

    def _targets(self, batch: dict[str, Any]) -> Tensor:
        """float32 [B, F, D]."""
        with torch.no_grad():
            return self._mean(last_layers(self._slow, batch, self.config.layers), batch)

    def _mean(self, layers: list[Tensor], batch: dict[str, Any]) -> Tensor:
        heard = mask_of_frames(self.backbone.model, batch["audio_mask"], layers[0].shape[1])
        return torch.stack([normalised(each, heard) for each in layers]).mean(0)

    def teachers(self) -> dict[str, Ema]:
        return {"teacher": self.teacher}

    def guards(self) -> dict[str, Callable[[], None]]:
        def own(batch: dict[str, Any]) -> Tensor:
            return self._mean(last_layers(self.backbone.model, batch, self.config.layers), batch)

        return {"stop-gradient": lambda: setattr(self, "_targets", own)}

    @property
    def _slow(self) -> PreTrainedModel:
        model = self.teacher.module.get_submodule("model")
        assert isinstance(model, PreTrainedModel)
        return model

    def exports(self) -> dict[str, Head | Network]:
        return {f"{self.config.backbone}_teacher": Network(self.config.backbone, self._slow)}


def normalised(states: Tensor, heard: Tensor) -> Tensor:
    """float32 [B, F, D]: each dimension less its mean, over its deviation, of those frames of its sound that are heard
    (bool [B, F])."""
    states, count = states.float(), heard.sum(1)[:, None, None].clamp(min=1)
    mask = heard[..., None]
    centred = (states - (states * mask).sum(1, keepdim=True) / count) * mask
    return centred * (centred.square().sum(1, keepdim=True) / count + EPSILON).rsqrt()
