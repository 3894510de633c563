"""Images to classes known by the mean of labelled captions: a nearest class mean, which is no zero-shot, for the
captions are labelled; so is the training set of its baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from bigssl.data.kinds import decode
from bigssl.transfer.bench import Bench
from bigssl.transfer.cosines import unit
from bigssl.transfer.features import column, holds
from bigssl.transfer.inputs import ImageInput
from bigssl.transfer.raw import PIXELS
from bigssl.transfer.scores import RAW, Score
from bigssl.transfer.subjects import Captions, Encoded
from bigssl.transfer.zero_shot import ByTexts, class_sums, nearest_class

NO_PICTURES = "The captions have no pictures beside them, so there are no class means of raw pixels to compare with."


class ClassMean(ByTexts):
    """Class of an image by the nearest mean of captions that carry the label, through the projections of CLIP."""

    def texts(self, captions: Captions) -> tuple[list[str], list[str]]:
        return captions.texts, captions.columns[self.label]

    def score(self, queries: Encoded, hits: dict[str, Tensor], classes: list[str], texts: int) -> Score:
        subject = f"of {len(queries)} unseen images get the right {self.label} of {len(classes)} from the nearest " \
                  "mean of captions with that label"
        return Score(f"class mean of captions: {self.label}", subject, hits, queries.groups(self.item),
                     chance=1 / len(classes), names={"raw": "class means of raw pixels"},
                     facts={"classes": len(classes), "texts": texts})  # fmt: skip

    def raw(self, bench: Bench, queries: Encoded, classes: list[str], asked: Tensor) -> dict[str, Tensor]:
        """The supervised baseline: the nearest class mean of the raw pixels of the pictures that the captions belong
        to, all centred by their mean. Nothing where they have no pictures."""
        index = bench.index(self.captions)
        if not bench.team.each(lambda: holds(index, decode.IMAGES)):
            bench.note(NO_PICTURES)
            return {}
        matrix = queries.matrices[RAW + PIXELS]
        mean, directions = self._means(bench, queries, classes, matrix.width)
        return {"raw": nearest_class(bench, matrix, lambda piece: piece - mean, directions) == asked}

    def _means(self, bench: Bench, queries: Encoded, classes: list[str], width: int) -> tuple[Tensor, Tensor]:
        """(mean [D] of all pictures, direction [classes, D] of each class's mean from it). A collective."""
        sums, counts = torch.zeros(len(classes), width), torch.zeros(len(classes))
        place = {name: i for i, name in enumerate(classes)}
        takes = queries.subject.takes
        assert isinstance(takes, ImageInput)
        batches = bench.views(takes, self.captions, self.caption_limit, "captions")

        def add() -> None:
            for batch in batches:
                labels = torch.tensor([place[name] for name in column(batch.keys, batch.meta, self.label)])
                sums.add_(class_sums(takes.raws(batch.arrays)[PIXELS].float() / 255, labels, len(classes)))
                counts.add_(torch.bincount(labels, minlength=len(classes)))

        bench.team.gather(add)
        sums, counts = bench.team.total(sums), bench.team.total(counts)
        mean = sums.sum(0) / counts.sum()
        return mean, unit(sums / counts[:, None].clamp(min=1) - mean)
