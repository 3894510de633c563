"""Masked spectra: stretches of a sound are silenced, and their log-mel spectra predicted (Mockingjay, Liu et al. 2020,
arXiv 1910.12638; TERA, Liu et al. 2021, arXiv 2007.06028; here from the waveform).

    audio ─┬─ stretches set to 0 ── audio backbone ── layer, GELU, norm, layer ─┐
           └─ log-mel spectra, a window for each frame of the backbone ─────────┴─ squared error on hidden frames

What a hidden frame sees is 0, to the last sample: neither convolutions that reach over from its neighbours nor a norm
over the whole sound can tell what was there. The windows of the spectra are what a frame sees, so that none reaches
into what is shown. Log power is taken less CENTRE and over SCALE, which for speech is near mean 0 and variance 1.

The blind line is the mean spectrum of hidden frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.nets.progress import Progress
from bigssl.nets.remaking.lines import mean_row_error
from bigssl.nets.sound.frames import WITH_TOKEN, silenced
from bigssl.nets.sound.mel import log_mel, mel_filters
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective
from bigssl.objectives.counting import mean_of_step
from bigssl.objectives.hearing import TINY_SOUND, HidesFrames, HidingConfig, heard_frames, of_all
from bigssl.objectives.needs import Needs

CENTRE, SCALE = -7.0, 4.0


class MaskedSpectrogram(HidesFrames, Objective):
    """Predict the log-mel spectra of silenced stretches of a sound (Mockingjay, TERA)."""

    class Config(HidingConfig):
        bands: int = Field(80, ge=1, description="of the mel spectra")

    takes = {"backbone": Needs("audio", WITH_TOKEN, "whose frames are not those of its convolutions")}
    starts = {"span": 5, "bands": 40}
    adjustable = ("share", "span", "quiet")
    cannot_collapse = True  # one sound's spectra are not another's
    preset = {
        "objective": {"bands": 12, "span": 4}, "backbones": {"audio": TINY_SOUND}, "data": "speech/train",
        "rate": 0.002,
    }  # fmt: skip

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.hear(config, towers)
        size, dim = 1 << (self.steps.seen - 1).bit_length(), self.backbone.dim
        if (empty := int((mel_filters(config.bands, size, self.backbone.rate).sum(0) == 0).sum())) > 0:
            raise ConfigError(f"objective.bands: value {config.bands}, of which {empty} lie between two frequencies of "
                              f"a window of {self.steps.seen} samples; allowed: fewer, or a backbone whose frames see "
                              "more")  # fmt: skip
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, config.bands))

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        hidden, (seen, stride) = batch["hidden"], self.steps
        rows = torch.nonzero_static(hidden.flatten(), size=batch["asked"]).squeeze(1)
        states = self.backbone.hidden(batch | {"audio": silenced(batch["audio"], hidden, self.steps)})
        predicted = self.head(states.flatten(0, 1)[rows]).float()
        spectra = (log_mel(batch["audio"], self.config.bands, self.backbone.rate, seen, stride) - CENTRE) / SCALE
        wanted = spectra.flatten(0, 1)[rows]
        said = of_all({"asked": hidden.sum(), "heard": heard_frames(batch, self.steps)})
        each = F.mse_loss(predicted, wanted, reduction="none").mean(1)
        loss, blind = mean_of_step(batch, each.sum(), mean_row_error(wanted), said["asked"])
        return Losses(
            loss, blind, "squared error", "the mean spectrum", stats={"hidden": said["asked"] / said["heard"]},
            spread={"features": distributed.spread(states.mean(1))},
        )  # fmt: skip

    def exports(self) -> dict[str, Head | Network]:
        tensors: dict[str, Tensor] = dict(self.head.named_parameters())
        return {"spectra": Head("spectra", {"audio": self.config.backbone}, tensors, {"bands": self.config.bands})}
