"""wav2vec 2.0: which code belongs to a frame that was hidden, among those of other hidden frames of the sound
(Baevski et al. 2020, arXiv 2006.11477)?

    audio ── convolutions ─┬─ frames, some hidden ── transformer ── linear ─── c_t ┐
                           └─ hidden frames ── codebooks (Gumbel) ── linear ── q_t ┴─ cross-entropy of q_t among
                                                                   q_t and K of the other q, by cos(c_t, ·) / κ

    loss = the mean over hidden frames + diversity · share of the codebooks that is not used

As in fairseq and transformers, a distractor of the same code as q_t does not count. Distractors are drawn with
replacement; which frames are hidden follows from the sample (stretches of `span`, shorter in short sounds), noise and
distractors from its seed. The temperature of the Gumbel softmax falls from `gumbel_from` to `gumbel_to` by the same
factor each step. How much the codebooks are used is a property of the global batch. Left out: the penalty on the
convolutions' output, and their smaller learning rate (`optim.groups` has it).

The blind line takes all that count for equally likely. `spread` is the use of the codebooks without noise, and that of
the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigssl import distributed
from bigssl.data.loading.loader import SEEDS
from bigssl.nets.chance import noise
from bigssl.nets.chance.seeds import another
from bigssl.nets.progress import Progress
from bigssl.nets.sound.codes import Codebooks, unused, use_of_words
from bigssl.nets.sound.distractors import cosines_within, distractors
from bigssl.nets.sound.frames import encode_frames
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective
from bigssl.objectives.counting import mean_of_step
from bigssl.objectives.hearing import TINY_SOUND, HidesFrames, HidingConfig, heard_frames, of_all
from bigssl.objectives.needs import Needs

KINDS = ("unispeech", "wav2vec2", "wav2vec2-conformer")


class Wav2vec2(HidesFrames, Objective):
    """Tell the code of a hidden frame from those of others (wav2vec 2.0)."""

    class Config(HidingConfig):
        distractors: int = Field(100, ge=1, description="other hidden frames of the sound that are held against it")
        codebooks: int = Field(2, ge=1)
        words: int = Field(320, ge=2, description="of each codebook")
        code_dim: int = Field(256, ge=1, description="of a code; a multiple of codebooks")
        dim: int = Field(256, ge=1, description="of the space in which codes are compared")
        temperature: float = Field(0.1, gt=0, description="of the softmax over cosines")
        gumbel_from: float = Field(2.0, gt=0, description="temperature of the choice of a word at the start")
        gumbel_to: float = Field(0.5, gt=0, description="and at the end")
        diversity: float = Field(0.1, ge=0, description="weight of the share of words that is not used")

        @model_validator(mode="after")
        def _codes_divide(self) -> Wav2vec2.Config:
            if self.code_dim % self.codebooks:
                raise ValueError(f"code_dim {self.code_dim} is no multiple of codebooks {self.codebooks}")
            return self

    takes = {"backbone": Needs("audio", KINDS, "which has no normalised frames before its transformer")}
    starts = {"words": 64, "code_dim": 64, "dim": 64, "distractors": 20, "span": 5}
    scheduled = seeded = True
    accumulates = False  # the use of the codebooks is that of all frames of a pass
    adjustable = ("share", "span", "distractors", "temperature", "gumbel_from", "gumbel_to", "diversity", "quiet")
    preset = {
        "objective": {"words": 8, "code_dim": 16, "dim": 16, "distractors": 8, "span": 4},
        "backbones": {"audio": TINY_SOUND}, "data": "speech/train",
    }  # fmt: skip

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.hear(config, towers)
        width = self.backbone.model.config.conv_dim[-1]
        self.token = nn.Parameter(torch.rand(self.backbone.dim))
        self.codebooks = Codebooks(width, config.codebooks, config.words, config.code_dim)
        self.project_hid = nn.Linear(self.backbone.dim, config.dim)
        self.project_q = nn.Linear(config.code_dim, config.dim)

    def assemble(self, by_source: dict[str, Any]) -> dict[str, Any]:
        """Adds how many frames are hidden of one sound at most, too."""
        batch = super().assemble(by_source)
        return batch | {"most": int(batch["hidden"].sum(1).max())}

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        config, hidden = self.config, batch["hidden"]
        heard = encode_frames(self.backbone.model, batch, hidden, self.token)
        rows = torch.nonzero_static(hidden.flatten(), size=batch["asked"]).squeeze(1)  # [N] of B · F
        seeds = another(batch[SEEDS][:, None], torch.arange(hidden.shape[1], device=hidden.device)).flatten()[rows]
        temperature = config.gumbel_from * (config.gumbel_to / config.gumbel_from) ** (at.step / at.steps)
        drawn = noise.gumbel(seeds, "codes", config.codebooks * config.words)
        coded = self.codebooks(heard.latents.flatten(0, 1)[rows], drawn, temperature)
        contexts = self.project_hid(heard.hidden.flatten(0, 1)[rows])
        targets = self.project_q(coded.vectors)
        others = distractors(hidden, rows, seeds, config.distractors)  # [N, K] of N
        cosines = cosines_within(contexts, targets, hidden, rows, others, batch["most"])  # [N, 1 + K]
        same = F.pad((coded.ids[others] == coded.ids[:, None]).all(-1), (1, 0))
        logits = (cosines / config.temperature).masked_fill(same, -torch.inf)
        blind = (~same).sum(1).float().log().sum()
        said = of_all({"blind": blind, "asked": hidden.sum(), "heard": heard_frames(batch, self.steps)})
        loss, line = mean_of_step(batch, self._told_apart(logits).sum(), said["blind"] / said["asked"], said["asked"])
        idle = unused(coded.logits)
        return Losses(
            loss + config.diversity * idle, line + config.diversity * idle.detach(),
            parts={"contrast": Losses(loss.detach(), line)},
            stats={"unused": idle.detach(), "hidden": said["asked"] / said["heard"],
                   "gumbel": torch.tensor(temperature, device=idle.device)},
            spread={"codes": use_of_words(coded.logits), "targets": distributed.spread(targets)},
        )  # fmt: skip

    def _told_apart(self, logits: Tensor) -> Tensor:
        """[N] of logits [N, 1 + K]: the cross-entropy of the first."""
        return logits.logsumexp(1) - logits[:, 0]

    def guards(self) -> dict[str, Callable[[], None]]:
        return {"negatives": lambda: setattr(self, "_told_apart", lambda logits: -logits[:, 0])}

    def exports(self) -> dict[str, Head | Network]:
        """By the names of transformers' Wav2Vec2ForPreTraining: with them and the backbone it is that model."""
        tensors: dict[str, Tensor] = {f"quantizer.{name}": value for name, value in self.codebooks.named_parameters()}
        tensors |= {f"{part}.{name}": value for part in ("project_hid", "project_q")
                    for name, value in getattr(self, part).named_parameters()}  # fmt: skip
        tensors["wav2vec2.masked_spec_embed"] = self.token
        return {"wav2vec2": Head("wav2vec2", {"audio": self.config.backbone}, tensors)}
