"""What a task asks of a backbone: said once by its class, for the check of a recipe and for `bigssl init`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bigssl.config.errors import ConfigError, nearest
from bigssl.data.kinds.text import lacking
from bigssl.nets.modality import MODALITIES
from bigssl.nets.modality.kinds import ENCODER_DECODER, tells_segments
from bigssl.nets.towers import Tower


class Needs(NamedTuple):
    """What a backbone has to be.

    Attributes:
        modality: a name in MODALITIES.
        kinds: transformers model types; empty: all of the modality but those with a decoder, which has to be trained.
        why: what the others are or do, where `kinds` says something; as in "it is of type beit, WHY".
        sees: "both" where a token has to see both its sides, "before" where only those before it.
        tokens: what the tokenizer has to have, such as "mask_token".
        segments: whether it has to tell two pieces of a text apart by their ids.
    """

    modality: str = "image"
    kinds: tuple[str, ...] = ()
    why: str = "which it is not made for"
    sees: str | None = None
    tokens: tuple[str, ...] = ()
    segments: bool = False

    def pick(self, towers: Mapping[str, Tower], name: str, field: str) -> Tower:
        """The backbone `name`, which the recipe's `field` asks for.

        Raises:
            ConfigError: naming the field, the value and the backbones that can serve.
        """
        reasons = {each: self._unfit(towers[each]) for each in towers}
        fitting = sorted(each for each, reason in reasons.items() if not reason)
        if name in fitting:
            return towers[name]
        reason = reasons.get(name) or "there is none"
        allowed = ", ".join(fitting) or f"{self._described}, of which there is none that fits"
        raise ConfigError(f"{field}: backbone {name!r}: {reason}; allowed: {allowed}{nearest(name, fitting)}")

    @property
    def _described(self) -> str:
        described = MODALITIES[self.modality].described
        return f"{described} of type {', '.join(self.kinds)}" if self.kinds else described

    def _unfit(self, tower: Tower) -> str:
        """Why a task cannot use it; empty where it can."""
        kind = tower.model.config.model_type
        if tower.modality != self.modality:
            return f"it is not {MODALITIES[self.modality].described}, but takes {MODALITIES[tower.modality].takes}"
        if self.kinds and kind not in self.kinds:
            return f"it is of type {kind}, {self.why}"
        if not self.kinds and kind in ENCODER_DECODER:
            return f"it is of type {kind}, whose decoder this task would not train (denoise does)"
        if self.sees is not None and tower.sees != self.sees:
            side = "those before it only" if tower.sees == "before" else "both its sides"
            return f"it is of type {kind}, in which each token sees {side}"
        if self.segments and not tells_segments(tower.model):
            return f"it is of type {kind}, which has no two segments (token_type_ids, config: type_vocab_size)"
        return lacking(tower.tokenizer, self.tokens) if self.tokens else ""
