"""Boxes around objects, by a head on the maps of an image backbone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from bigssl.config.section import PositiveInt
from bigssl.transfer.bench import Bench
from bigssl.transfer.dense.detector import Wanted, detect_loss, detections
from bigssl.transfer.dense.heads import DetectHead
from bigssl.transfer.dense.learning import CONTENDERS, DenseJob, DenseTask, rarest
from bigssl.transfer.dense.maps import Maps
from bigssl.transfer.dense.seen import SeenBoxes, as_sizes, seen_boxes
from bigssl.transfer.inputs import ImageInput, input_of
from bigssl.transfer.labelled.rows import scored
from bigssl.transfer.labelled.trials import Trial, outcomes, trials
from bigssl.transfer.measures.detection import Boxes, Matched, match, mean_ap, mean_ap50
from bigssl.transfer.scores import ScoreRow
from bigssl.transfer.team import AgreedError

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked


class Detect(DenseTask):
    """Boxes of objects by a single-scale head without anchors on maps of features, AP as COCO has it: frozen (`tune:
    head`) or all weights.

    Seen and judged is what lies in the middle square of a picture; nobody is asked for a crowd, nor for a box of which
    less than half is seen. The same head on patches of raw pixels stands beside it, and the mean box of each class.
    """

    preset = {"train": "made/scenes/train", "queries": "made/scenes/val", "seeds": 1, "epochs": 3, "least_steps": 0,
              "fractions": [0.25, 1.0], "fit_batch": 16}  # fmt: skip

    label: str = Field("labels", description="metadata field with the classes of the boxes")
    boxes: str = Field("boxes", description="metadata field with the boxes: left, top, width, height in pixels")
    epochs: PositiveInt = Field(50, description="times that each sample is seen")

    def check(self, seen: Checked) -> None:
        takes = input_of(seen.backbone("backbone", "image"))
        assert isinstance(takes, ImageInput)
        for part in ("train", "queries"):
            seen.samples(part, takes, *(["item"] if part == "queries" else []))
            seen.readable(part, self._target(takes.size))
        seen.apart("train")

    def _target(self, size: int) -> partial[SeenBoxes]:
        return partial(seen_boxes, boxes=self.boxes, labels=self.label, size=size)

    def run(self, bench: Bench) -> list[ScoreRow]:
        job = DenseJob.of(bench, self, self._target)
        known = sorted({label for each in job.train.targets for label in each.labels})
        for part, of in (("train", job.train), ("queries", job.queries)):
            if not any((~each.ignored).any() for each in of.targets):
                raise AgreedError(f"{bench.where}.{part}: no picture has a box in its middle square; allowed: some do")
        strange = sorted({label for each in job.queries.targets for label in each.labels} - {*known})
        if strange:
            bench.note(f"{bench.where}.queries: the classes {', '.join(strange)} are in no picture of train: none of "
                       "their boxes can be found, which counts.")  # fmt: skip
        learner = _Learner(job, known, {name: at for at, name in enumerate(known + strange)})
        planned = trials(self, CONTENDERS, len(job.train), rarest([each.labels for each in job.train.targets]),
                         seed=bench.seed)  # fmt: skip
        found = outcomes(bench, planned, learner.work)
        blind, facts = learner.blind(), {"train": len(job.train), "classes": len(known), "tune": self.tune}
        about = f"of the boxes of {len(job.queries)} unseen images, {len(known)} classes"
        return [scored(
            f"image detect: {name}", f"{what} {about}", found, job.queries.groups(self.item), measure=measure,
            fixed={"blind": blind}, names={"blind": "the mean box of each class"}, facts=facts, row=row,
        ) for name, what, measure, row in (
            ("AP", "average precision (overlap .5 to .95)", _ap, ""), ("AP50", "average precision (overlap .5)", _ap50,
                                                                     "ap50"))]  # fmt: skip


def _ap(matched: Sequence[Matched]) -> float:
    return float(np.nan_to_num(mean_ap(matched)))  # of a draw without a box, alike for all


def _ap50(matched: Sequence[Matched]) -> float:
    return float(np.nan_to_num(mean_ap50(matched)))


class _Learner:
    """known: classes that can be learnt. numbers: of all classes."""

    def __init__(self, job: DenseJob, known: list[str], numbers: dict[str, int]) -> None:
        self._job, self._known, self._numbers = job, known, numbers

    def work(self, trial: Trial) -> list[Matched]:
        return self._job.learnt(trial, lambda widths: DetectHead(widths, len(self._known)), self._loss, self._ask)

    def blind(self) -> list[Matched]:
        """Of each class the mean of its training boxes in views, scored by how often it occurs."""
        boxes: dict[str, list[np.ndarray]] = {name: [] for name in self._known}
        for each in self._job.train.targets:
            for box, label in zip(each.boxes, each.labels, strict=True):
                boxes[label].append(box)
        counts = Counter({name: len(each) for name, each in boxes.items()})
        means = np.stack([np.mean(boxes[name], 0) for name in self._known])
        scores = np.array([counts[name] / counts.total() for name in self._known])
        classes = np.arange(len(self._known))
        return [self._record(row, means, scores, classes) for row in range(len(self._job.queries))]

    def _loss(self, head: nn.Module, maps: Maps, rows: list[int]) -> Tensor:
        wanted = [self._wanted(self._job.train.targets[row]) for row in rows]
        return detect_loss(head(maps), wanted, self._job.size)

    def _wanted(self, seen: SeenBoxes) -> Wanted:
        classes = torch.tensor([self._numbers[label] for label in seen.labels], dtype=torch.int64)
        return Wanted(torch.from_numpy(seen.boxes).float(), classes, torch.from_numpy(seen.ignored))

    def _ask(self, head: nn.Module, maps: Maps, rows: list[int]) -> list[Matched]:
        found = detections(head(maps), self._job.size)
        return [self._record(row, each.boxes.double().numpy(), each.scores.double().numpy(), each.classes.numpy())
                for row, each in zip(rows, found, strict=True)]  # fmt: skip

    def _record(self, row: int, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> Matched:
        """boxes: in pixels of the view."""
        seen: SeenBoxes = self._job.queries.targets[row]
        found = Boxes(as_sizes(seen.frame.pictured(boxes)), classes, scores)
        return match(found, seen.truth(self._numbers), len(self._numbers))
