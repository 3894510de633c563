"""DINO: all crops of a picture predict to which prototypes a slow copy of the network assigns its large crops
(https://arxiv.org/abs/2104.14294).

    picture ─┬─ 2 large crops ─┬─ teacher: moving average ── centring or Sinkhorn, temperature .04 to .07 ── p1, p2
             └─ n small crops ─┴─ student: backbone ── head ── cosines with K prototypes / .1 ── s1, ..., s2+n

    loss = mean over t of {1, 2} and s ≠ t of  −Σ_k p_t ln softmax(s_s)

The features are those that evaluations use, the mean over patches (the paper takes the class token's), so that any
backbone serves. Centring keeps one prototype from taking all samples (`spread/prototypes` and `spread/assignments`
fall), sharpening, the teacher's lower temperature, all prototypes from being alike for each sample (`assignments`).

The prototypes have the gradient 0 during the first share `freeze` of the run (the paper: the first epoch). Adam's
means of squares begin at 0 then, where in the paper's code they begin later: the first steps of the prototypes after it
are up to three times as long as usual.

The blind line is that of `Frequencies`: the mean of other samples' targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl import distributed
from bigssl.data.kinds.multicrop import MultiCropConfig
from bigssl.data.order.order import More
from bigssl.data.sample import Sample
from bigssl.nets.ema import Ema
from bigssl.nets.heads.prototypes import (
    BLIND,
    Assigned,
    CentredTargets,
    Centring,
    Frequencies,
    PrototypeHead,
    centring,
    spread_of,
    swapped,
)
from bigssl.nets.progress import CosineRamp, LinearRamp, Progress
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head, Losses, Network, Objective, ObjectiveConfig
from bigssl.objectives.needs import Needs
from bigssl.objectives.seeing import crops_for, picture_of


class OverCrops(nn.Module):
    """A backbone and a head over crops of several sides, uint8 [R, C, side, side] each -> what the head makes of all
    rows, one side after the other."""

    def __init__(self, tower: Tower, head: nn.Module) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, sides: Sequence[Tensor], *options: Any) -> Any:
        return self.head(torch.cat([self.tower.features({"image": each}) for each in sides]), *options)


class Dino(Objective):
    """Predict to which prototypes a slow copy of the network assigns large crops, from all crops (DINO)."""

    class Config(ObjectiveConfig):
        backbone: str = "image"
        prototypes: int = Field(65536, ge=2)
        hidden: int = Field(2048, ge=1, description="hidden size of the head")
        bottleneck: int = Field(256, ge=2, description="size of the embedding that is compared with prototypes")
        temperature: float = Field(0.1, gt=0, description="of the student")
        teacher_temperature: float = Field(0.07, gt=0, description="of the teacher; the student's at most")
        first_temperature: float = Field(0.04, gt=0, description="of the teacher at the start")
        warm: float = Field(0.3, ge=0, le=1, description="share of the run in which the teacher's rises")
        centring: Centring = Field("mean", description="what keeps prototypes in use; sinkhorn: DINOv2's")
        centre_momentum: float = Field(0.9, ge=0, lt=1, description="of the centre, with centring mean")
        momentum: float = Field(0.996, ge=0, lt=1, description="of the teacher at the start; 1 at the end, by a cosine")
        freeze: float = Field(0.01, ge=0, lt=1, description="share of the run in which prototypes stay as they are")
        crops: MultiCropConfig = MultiCropConfig()

        @model_validator(mode="after")
        def _sharpens(self) -> Dino.Config:
            for name in ("teacher_temperature", "first_temperature"):
                if getattr(self, name) > self.temperature:
                    raise ValueError(
                        f"{name} {getattr(self, name)} is above temperature {self.temperature}, so that targets would "
                        f"be less sharp than predictions, which are alike for all samples soon; allowed: at most "
                        f"{self.temperature}"
                    )
            if self.centring == "sinkhorn":
                self.refuse_idle("with centring sinkhorn", "centre_momentum")
            if self.warm == 0:
                self.refuse_idle("with warm 0", "first_temperature")
            return self

    takes: ClassVar[Mapping[str, Needs]] = {"backbone": Needs("image")}
    starts = {"prototypes": 1024, "hidden": 512, "bottleneck": 128, "momentum": 0.98, "freeze": 0.05}
    least = 2  # of one sample the centre is all there is
    symmetric = scheduled = True
    accumulates = True  # with centring mean: Sinkhorn compares the samples of a pass
    adjustable: ClassVar[tuple[str, ...]] = (
        "temperature", "teacher_temperature", "first_temperature", "warm", "momentum", "freeze", "crops",
    )  # fmt: skip
    preset = {
        "objective": {
            "prototypes": 16, "hidden": 16, "bottleneck": 8, "temperature": 0.2, "first_temperature": 0.06,
            "momentum": 0.9, "crops": {"small": 2},
        },
        "backbones": {"image": "vit"},
        "overfits": False,  # the loss ends at the entropy of targets, which move
    }  # fmt: skip

    def __init__(self, config: Config, towers: Mapping[str, Tower]) -> None:
        super().__init__()
        self.config = config
        self.backbone = self.backbone_of(towers, "backbone")
        self.crops = crops_for(self.backbone, config.crops, "dino")
        self.student = self._network(PrototypeHead(
            self.backbone.dim, config.hidden, config.bottleneck, config.prototypes
        ))  # fmt: skip
        self.teacher = Ema(self.student, CosineRamp(config.momentum, 1.0))
        self.assign = centring(config.centring, config.prototypes, config.centre_momentum)
        self.frequencies = Frequencies(config.prototypes)
        self.sharpness = LinearRamp(config.first_temperature, config.teacher_temperature, config.warm)

    def _network(self, head: PrototypeHead) -> nn.Module:
        return OverCrops(self.backbone, head)

    def prepare(self, sample: Sample, rng: np.random.Generator, more: More) -> dict[str, Any]:
        return self.crops.prepare(picture_of(sample, self.backbone), rng)

    def forward(self, batch: dict[str, Any], at: Progress) -> Losses:
        sides = self.crops.of(batch)
        student: Assigned = self.student(sides, self._frozen(at))
        with torch.no_grad():
            teacher: Assigned = self.teacher.module(sides[:1])
        return self._distilled(student, teacher.cosines, at)

    def _distilled(self, student: Assigned, teacher: Tensor, at: Progress) -> Losses:
        """The loss of a picture's crops, rows [(2 + n)B] of the student and cosines [2B, K] of the teacher."""
        targets = self._targets(self.assign, teacher, self.sharpness(at))
        count = len(targets) // 2
        views = targets.unflatten(0, (2, count))
        loss = swapped(views, student.cosines.unflatten(0, (-1, count)) / self.config.temperature)
        each = targets.new_full((count,), 1 / (2 * count * distributed.world()))
        return Losses(
            loss, self.frequencies(views.sum(0), each), blind_name=BLIND,
            stats=self._stats(at), spread=spread_of(targets),
            views={"projections": student.embeddings[: 2 * count].detach().unflatten(0, (2, count))},
        )  # fmt: skip

    @staticmethod
    def _targets(assign: nn.Module, cosines: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
        targets: Tensor = assign(cosines, temperature, counted)
        return targets

    def _frozen(self, at: Progress) -> bool:
        return at.step < self.config.freeze * at.steps

    def _stats(self, at: Progress) -> dict[str, Tensor]:
        device = self.frequencies.mass.device
        found = {"teacher_temperature": self.sharpness(at), "prototypes_frozen": float(self._frozen(at))}
        stats = {name: torch.tensor(value, device=device) for name, value in found.items()}
        return stats | ({"centre": self.assign.centre.norm()} if isinstance(self.assign, CentredTargets) else {})

    def teachers(self) -> dict[str, Ema]:
        return {"teacher": self.teacher}

    def guards(self) -> dict[str, Callable[[], None]]:
        def alone(assign: nn.Module, cosines: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
            targets = (cosines / temperature).softmax(-1)
            return targets if counted is None else targets * counted.unsqueeze(1)

        return {
            "centring": lambda: setattr(self, "_targets", alone),
            "sharpening": lambda: setattr(self, "sharpness", lambda at: 1.0),
        }

    def exports(self) -> dict[str, Head | Network]:
        model = self.teacher.module.get_submodule("tower.model")
        assert isinstance(model, PreTrainedModel)
        return {f"{self.config.backbone}_teacher": Network(self.config.backbone, model)}
