"""Images to classes that are known by their names alone."""

from __future__ import annotations

from torch import Tensor

from bigssl.transfer.scores import Score
from bigssl.transfer.subjects import Captions, Encoded
from bigssl.transfer.zero_shot import ByTexts, class_names


class ZeroShot(ByTexts):
    """Class of an image by the nearest class name, through the projections of CLIP (Radford et al. 2021)."""

    def texts(self, captions: Captions) -> tuple[list[str], list[str]]:
        return class_names(captions.meta, self.label)

    def score(self, queries: Encoded, hits: dict[str, Tensor], classes: list[str], texts: int) -> Score:
        subject = f"of {len(queries)} unseen images get the right {self.label} of {len(classes)} from class names alone"
        return Score(f"zero-shot {self.label}: names", subject, hits, queries.groups(self.item),
                     chance=1 / len(classes), facts={"classes": len(classes), "texts": texts})  # fmt: skip
