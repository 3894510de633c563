"""Images, or sounds, to classes known by the mean of labelled captions: a nearest class mean, which is no zero-shot,
for the captions are labelled; so is the training set of its baseline."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from bigssl.data.kinds import decode
from bigssl.transfer.bench import Bench
from bigssl.transfer.cosines import unit
from bigssl.transfer.features import column, holds
from bigssl.transfer.inputs import Input
from bigssl.transfer.scores import RAW, Score
from bigssl.transfer.subjects import Captions, Encoded
from bigssl.transfer.zero_shot import ByTexts, class_sums, nearest_class

ALONE = "The captions have no {} beside them, so there are no class means of raw ones to compare with."


class ClassMean(ByTexts):
    """Class of an image or a sound by the nearest mean of captions with the label, through the projections of CLIP."""

    def texts(self, captions: Captions) -> tuple[list[str], list[str]]:
        return captions.texts, captions.columns[self.label]

    def score(self, queries: Encoded, hits: dict[str, Tensor], classes: list[str], texts: int) -> Score:
        subject = f"of {len(queries)} unseen {queries.subject.takes.plural} get the right {self.label} of " \
                  f"{len(classes)} from the nearest mean of captions with that label"
        return Score(f"class mean of captions: {self.label}", subject, hits, queries.groups(self.item),
                     chance=1 / len(classes),
                     facts={"classes": len(classes), "texts": texts})  # fmt: skip

    def raw(self, bench: Bench, queries: Encoded, classes: list[str], asked: Tensor) -> dict[str, Tensor]:
        """The supervised baselines: the nearest class mean of the raw images or sounds that the captions belong to, all
        centred by their mean. Nothing where captions are alone."""
        takes, index = queries.subject.takes, bench.index(self.captions)
        if not bench.team.each(lambda: holds(index, decode.FIELDS[takes.modality])):
            bench.note(ALONE.format(takes.plural))
            return {}
        widths = {name.removeprefix(RAW): matrix.width
                  for name, matrix in queries.matrices.items() if name.startswith(RAW)}  # fmt: skip
        found = {}
        for name, (mean, directions) in self._means(bench, takes, classes, widths).items():
            into = partial(torch.sub, other=mean)
            hits = nearest_class(bench, queries.matrices[RAW + name], into, directions) == asked
            found[f"{RAW}class means of {name}"] = hits
        return found

    def _means(
        self, bench: Bench, takes: Input, classes: list[str], widths: Mapping[str, int]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """By raw baseline: (mean [D] of all samples, direction [classes, D] of each class's mean from it). A
        collective."""
        sums = {name: torch.zeros(len(classes), width) for name, width in widths.items()}
        counts, place = torch.zeros(len(classes)), {name: i for i, name in enumerate(classes)}
        batches = bench.views(takes, self.captions, self.caption_limit, "captions")

        def add() -> None:
            for batch in batches:
                labels = torch.tensor([place[name] for name in column(batch.keys, batch.meta, self.label)])
                counts.add_(torch.bincount(labels, minlength=len(classes)))
                for name, values in takes.raws(batch.arrays).items():
                    sums[name].add_(class_sums(_scaled(values), labels, len(classes)))

        bench.team.gather(add)
        counts, found = bench.team.total(counts), {}
        for name in sums:
            total = bench.team.total(sums[name])
            mean = total.sum(0) / counts.sum()
            found[name] = mean, unit(total / counts[:, None].clamp(min=1) - mean)
        return found


def _scaled(values: Tensor) -> Tensor:
    return values.float() / 255 if values.dtype == torch.uint8 else values.float()
