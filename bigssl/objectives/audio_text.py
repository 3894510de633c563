"""CLIP of sounds and texts: a spoken caption finds its text, and a text what was said, among the global batch
(https://arxiv.org/abs/2103.00020; of sounds e.g. CLAP, https://arxiv.org/abs/2206.04769).

    sound ── changed ── audio backbone ── linear ── z_audio ┐
    caption ─────────── text backbone ─── linear ── z_text ─┴─ symmetric cross-entropy, learned scale capped at 100

A sound is trimmed, and each time that it is seen said at another speed, with a band of frequencies and a stretch left
out (`augment`); of one that is longer than the backbone's length, a window is drawn. Equal captions in one
batch (a word said by several voices) count as different, as equal captions of pictures do in CLIP.
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


class AudioText(Contrasting, Objective):
    """Match sounds and captions (CLIP)."""

    class Config(ObjectiveConfig):
        audio: str = Field("audio", description="audio backbone")
        text: str = Field("text", description="text backbone")
        dim: int = Field(128, ge=1, description="size of the shared space")
        quiet: float | None = Field(QUIET, gt=0, description=CUT_OFF)
        augment: SoundAugmentConfig = SoundAugmentConfig()

    sides = ("audio", "text")
    takes = {"audio": Needs("audio"), "text": Needs("text", sees="both")}
    least = 2  # one sample is compared with itself
    adjustable = ("quiet", "augment")
    preset = {
        "objective": {"dim": 8}, "backbones": {"audio": TINY_SOUND, "text": "bert"}, "data": "speech/train",
        "collapses": 120, "rate": 0.002,
    }  # fmt: skip

    def exports(self) -> dict[str, Head | Network]:
        return {"audio_text": self.head("pair", capped_scale(self.log_scale))}
