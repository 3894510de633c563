"""The class of each pixel, by a head on the maps of an image backbone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bigssl.data.kinds import decode
from bigssl.transfer.bench import Bench
from bigssl.transfer.dense.heads import SegmentHead
from bigssl.transfer.dense.learning import CONTENDERS, DenseJob, DenseTask, rarest
from bigssl.transfer.dense.maps import Maps
from bigssl.transfer.dense.seen import SeenMask, seen_mask
from bigssl.transfer.features import finite
from bigssl.transfer.inputs import ImageInput, input_of
from bigssl.transfer.labelled.rows import scored
from bigssl.transfer.labelled.trials import Trial, outcomes, trials
from bigssl.transfer.measures.iou import IGNORED, class_counts, mean_iou
from bigssl.transfer.scores import ScoreRow
from bigssl.transfer.team import AgreedError

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked


class Segment(DenseTask):
    """Class of each pixel by a linear head on maps of features, mIoU: frozen (`tune: head`) or all weights.

    Masks are seen as their pictures are: the middle square, each pixel the nearest one. The same head on patches of raw
    pixels stands beside it, and the commonest class everywhere.
    """

    preset = {"train": "made/scenes/train", "queries": "made/scenes/val", "seeds": 1, "epochs": 3, "least_steps": 0,
              "fractions": [0.25, 1.0], "fit_batch": 16}  # fmt: skip

    label: str = Field(decode.MASK, description="field with the class of each pixel, 255: not judged")

    def check(self, seen: Checked) -> None:
        takes = input_of(seen.backbone("backbone", "image"))
        assert isinstance(takes, ImageInput)
        for part in ("train", "queries"):
            seen.samples(part, takes, *(["item"] if part == "queries" else []))
            seen.readable(part, partial(seen_mask, field=self.label, size=takes.size))
        seen.apart("train")

    def run(self, bench: Bench) -> list[ScoreRow]:
        job = DenseJob.of(bench, self, lambda size: partial(seen_mask, field=self.label, size=size))
        known = sorted({number for mask in job.train.targets for number in mask.classes})
        if len(known) < 2:
            raise AgreedError(f"{bench.where}.train: masks hold the classes {known}; allowed: 2 or more (255 is none: "
                              "it means not judged)")  # fmt: skip
        if not any(mask.classes for mask in job.queries.targets):
            raise AgreedError(f"{bench.where}.queries: no pixel of the masks is judged (255); allowed: some are")
        strange = sorted({number for mask in job.queries.targets for number in mask.classes} - {*known})
        if strange:
            bench.note(f"{bench.where}.queries: classes {strange} are in no mask of train: none of their pixels can be "
                       "right, which counts.")  # fmt: skip
        numbers = np.full(256, IGNORED)
        numbers[known + strange] = range(len(known) + len(strange))
        learner = _Learner(job, numbers, len(known), len(known) + len(strange))
        planned = trials(self, CONTENDERS, len(job.train), rarest([mask.classes for mask in job.train.targets]),
                         seed=bench.seed)  # fmt: skip
        found = outcomes(bench, planned, learner.work)
        subject = f"mean IoU of the classes of the pixels of {len(job.queries)} unseen images, {len(known)} classes"
        return [scored(
            "image segment: mIoU", subject, found, job.queries.groups(self.item), measure=_measure,
            fixed={"blind": learner.blind()}, names={"blind": "the commonest class everywhere"},
            facts={"train": len(job.train), "classes": len(known), "tune": self.tune},
        )]  # fmt: skip


def _measure(counts: Sequence[np.ndarray]) -> float:
    return float(np.nan_to_num(mean_iou(counts)))  # of a draw in which no pixel is judged, alike for all


class _Learner:
    """numbers: uint8 of a mask -> number of its class; known: classes that can be learnt, of `classes` in all."""

    def __init__(self, job: DenseJob, numbers: np.ndarray, known: int, classes: int) -> None:
        self._job, self._numbers, self._known, self._classes = job, numbers, known, classes

    def work(self, trial: Trial) -> list[np.ndarray]:
        return self._job.learnt(trial, lambda widths: SegmentHead(widths, self._known), self._loss, self._ask)

    def blind(self) -> list[np.ndarray]:
        """The commonest class of the training pixels, everywhere."""
        counts: Counter[int] = Counter()
        for mask in self._job.train.targets:
            counts.update(dict(enumerate(np.bincount(self._truth(mask).ravel(), minlength=IGNORED + 1)[:IGNORED])))
        best = max(range(self._known), key=lambda name: counts[name])
        truths = map(self._truth, self._job.queries.targets)
        return [self._record(np.full_like(truth, best), truth) for truth in truths]

    def _truth(self, mask: SeenMask) -> np.ndarray:
        return np.asarray(self._numbers[mask.values()])

    def _loss(self, head: nn.Module, maps: Maps, rows: list[int]) -> Tensor:
        logits = head(maps, self._job.size)
        wanted = np.stack([self._truth(self._job.train.targets[row]) for row in rows])
        truth = torch.from_numpy(wanted).to(logits.device)
        total = F.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="sum")
        return total / (truth != IGNORED).sum().clamp(min=1)

    def _ask(self, head: nn.Module, maps: Maps, rows: list[int]) -> list[np.ndarray]:
        return [self._one(head, [each[at : at + 1] for each in maps], row) for at, row in enumerate(rows)]

    def _one(self, head: nn.Module, maps: Sequence[Tensor], row: int) -> np.ndarray:
        predicted = finite(head(maps, self._job.size)[0], "logits of pixels").argmax(0).cpu().numpy()
        return self._record(predicted, self._truth(self._job.queries.targets[row]))

    def _record(self, predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return class_counts(predicted, truth, self._classes).astype(np.int32)
