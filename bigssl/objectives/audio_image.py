"""CLIP of sounds and pictures: a spoken caption finds its picture without a word of text, and a picture what is said of
it, among the global batch (https://arxiv.org/abs/2103.00020; of speech and pictures Harwath et al. 2018, arXiv
1804.01452).

    sound ── changed ── audio backbone ── linear ── z_audio ─┐
    image ── crop ───── image backbone ── linear ── z_image ─┴─ symmetric cross-entropy, learned scale capped at 100
"""

from __future__ import annotations

from pydantic import Field

from bigssl.data.kinds.sound.augment import SoundAugmentConfig
from bigssl.data.kinds.sound.windows import QUIET
from bigssl.objectives.base import Head, Network, Objective, ObjectiveConfig
from bigssl.objectives.clip import Contrasting
from bigssl.objectives.hearing import CUT_OFF, TINY_SOUND
from bigssl.objectives.needs import Needs
from bigssl.objectives.scale import capped_scale


class AudioImage(Contrasting, Objective):
    """Match sounds and pictures (CLIP)."""

    class Config(ObjectiveConfig):
        audio: str = Field("audio", description="audio backbone")
        image: str = Field("image", description="image backbone")
        dim: int = Field(128, ge=1, description="size of the shared space")
        quiet: float | None = Field(QUIET, gt=0, description=CUT_OFF)
        augment: SoundAugmentConfig = SoundAugmentConfig()
        min_scale: float = Field(0.6, gt=0, le=1, description="smallest share of the image that a crop keeps")
        flip: bool = Field(False, description="mirror images (wrong where captions say left and right)")

    sides = ("audio", "image")
    takes = {"audio": Needs("audio"), "image": Needs("image")}
    least = 2  # one sample is compared with itself
    adjustable = ("quiet", "augment", "min_scale", "flip")
    preset = {
        "objective": {"dim": 8}, "backbones": {"audio": TINY_SOUND, "image": "resnet"}, "data": "speech/train",
        "collapses": 120, "rate": 0.002,
    }  # fmt: skip

    def exports(self) -> dict[str, Head | Network]:
        return {"audio_image": self.head("pair", capped_scale(self.log_scale))}
