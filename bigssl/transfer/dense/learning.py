"""What evaluations share that learn maps of pictures: a section, and a trial from the network to the last query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.config.evaluate import Item
from bigssl.transfer.bench import Bench
from bigssl.transfer.dense.maps import PATCHES, KeptMaps, Maps, patch_maps, stage_maps
from bigssl.transfer.inputs import ImageInput
from bigssl.transfer.labelled.examples import Examples, Target, learnt_and_judged
from bigssl.transfer.labelled.fit import FitBelow, Positive, fit, layer_groups
from bigssl.transfer.labelled.section import Learning
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.scores import RAW
from bigssl.transfer.subjects import Subject

CONTENDERS = ("trained", "random_net", RAW + PATCHES)


class DenseTask(Learning, FitBelow):
    """Of what learns to say what is where in pictures."""

    backbone: str = "image"
    item: Item = None
    tune: Literal["head", "all"] = Field("head", description="what is trained: a head on frozen maps, or all weights")
    lr: Positive = Field(3e-3, description="greatest learning rate, of the head")
    least_steps: Annotated[int, Field(ge=0)] = Field(
        300, description="training steps at least: of few samples there are more epochs"
    )


@dataclass(frozen=True)
class DenseJob:
    """The labelled pictures of a section, and the maps of networks that stay as they are."""

    bench: Bench
    section: DenseTask
    subject: Subject
    train: Examples
    queries: Examples
    kept: KeptMaps = field(default_factory=KeptMaps)

    @classmethod
    def of(cls, bench: Bench, section: DenseTask, target: Callable[[int], Target]) -> DenseJob:
        """target: for views of that many pixels a side. A collective. Raises AgreedError."""
        subject = bench.subject(section.backbone, "image")
        assert isinstance(subject.takes, ImageInput)
        made = target(subject.takes.size)
        train, queries = learnt_and_judged(bench, section, subject.takes, made, section.item)
        return cls(bench, section, subject, train.permuted(bench.seed) if section.permuted else train, queries)

    @property
    def size(self) -> int:
        assert isinstance(self.subject.takes, ImageInput)
        return self.subject.takes.size

    def learnt(
        self, trial: Trial, head_of: Callable[[Sequence[int]], nn.Module],
        loss: Callable[[nn.Module, Maps, list[int]], Tensor], ask: Callable[[nn.Module, Maps, list[int]], list[Any]],
    ) -> list[Any]:  # fmt: skip
        """What `ask` makes of every query after a head has learnt from the samples of the trial.

        Args:
            head_of: a head for maps of these widths.
            loss: of the head, maps of samples and their numbers in `train`.
            ask: of the head, maps of samples and their numbers in `queries`, a record of each.
        """
        network = None if trial.contender.startswith(RAW) else self.bench.network(
            self.subject, trial.contender, trial.seed).eval()  # fmt: skip
        moving = network if self.section.tune == "all" else None
        seed, rows = self.bench.seed + trial.seed, trial.rows.tolist()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = head_of([each.shape[1] for each in _maps(network, self._views(self.train, rows[:1]))])
        head.to(self.bench.device)

        def on_samples(picked: Tensor) -> Tensor:
            numbers = [rows[at] for at in picked.tolist()]
            return loss(head, self._maps(trial, network, moving is not None, "train", numbers), numbers)

        groups = [{"params": [*head.parameters()]}] if moving is None else layer_groups(
            moving, self.section.layer_decay, [*head.parameters()], self.section.below)  # fmt: skip
        module = head if moving is None else nn.ModuleList([moving, head])

        def soon(picked: Tensor) -> None:
            numbers = [rows[at] for at in picked.tolist()]
            still = network is not None and moving is None
            self.train.soon(self.kept.lacking(_network(trial), "train", numbers) if still else numbers)

        fit(module, groups, len(rows), on_samples, self.section, seed, soon=soon)
        found, batch = [], self.section.fit_batch
        with torch.no_grad():
            for begin in range(0, len(self.queries), batch):
                numbers = list(range(begin, min(begin + batch, len(self.queries))))
                found += ask(head, self._maps(trial, network, moving is not None, "queries", numbers), numbers)
        return found

    def _maps(
        self, trial: Trial, network: PreTrainedModel | None, moving: bool, part: str, rows: Sequence[int]
    ) -> Maps:  # fmt: skip
        of = self.train if part == "train" else self.queries
        if moving:
            return _maps(network, self._views(of, rows))

        def still(lacking: Sequence[int]) -> Maps:
            with torch.no_grad(), torch.autocast("cuda", enabled=False):  # in a training, too: alike for all parts
                return _maps(network, self._views(of, lacking))

        if network is None:
            return still(rows)  # faster made than kept
        return [each.to(self.bench.device) for each in self.kept.of(_network(trial), part, rows, still)]

    def _views(self, of: Examples, rows: Sequence[int]) -> dict[str, Tensor]:
        return {name: value.to(self.bench.device) for name, value in of.batch(rows).items()}


def _network(trial: Trial) -> tuple[str, int]:
    """Which one it is, as long as it stays as it is."""
    return trial.contender, trial.seed if trial.contender == "random_net" else 0


def _maps(network: PreTrainedModel | None, views: Mapping[str, Tensor]) -> Maps:
    return patch_maps(views) if network is None else stage_maps(network, views)


def rarest(classes: Sequence[Sequence[Any]]) -> list[Any]:
    """Of each sample the rarest of its classes, so that each class is in the smallest share of them; None of one
    without."""
    counts: dict[Any, int] = {}
    for each in classes:
        for name in set(each):
            counts[name] = counts.get(name, 0) + 1
    return [min(each, key=lambda name: (counts[name], name), default=None) for each in classes]

