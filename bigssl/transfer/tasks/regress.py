"""Real values of samples, by a linear model of frozen features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bigssl.data.errors import DataError
from bigssl.data.sample import Sample
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import metadata
from bigssl.transfer.inputs import input_of
from bigssl.transfer.labelled.examples import learnt_and_judged
from bigssl.transfer.labelled.logistic import fit_ridge
from bigssl.transfer.labelled.probing import HELD_OUT, STRENGTHS, learnables, of_fresh
from bigssl.transfer.labelled.rows import scored
from bigssl.transfer.labelled.section import Labelled
from bigssl.transfer.labelled.trials import Trial, held_out, outcomes, trials
from bigssl.transfer.labelled.vectors import Learnable
from bigssl.transfer.measures.regression import Predicted, r_squared
from bigssl.transfer.scores import ScoreRow
from bigssl.transfer.team import AgreedError

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked


class Regress(Labelled):
    """One or several real values of each sample, by ridge regression on frozen features.

    Errors are in standard deviations of the training labels, the mean over the values where there are several; R² is
    that of the queries.
    """

    preset = {"train": "made/regress/train", "queries": "made/regress/val", "label": "levels", "seeds": 2,
              "fractions": [0.2, 1.0]}  # fmt: skip

    backbone: str = "image"
    l2: list[Annotated[float, Field(gt=0)]] = Field(
        STRENGTHS, min_length=1, description="penalties of which the best on a fifth of the samples is taken"
    )

    def check(self, seen: Checked) -> None:
        takes = input_of(seen.backbone("backbone"))
        seen.samples("train", takes, "label")
        seen.samples("queries", takes, "label", "item")
        for part in ("train", "queries"):
            seen.readable(part, partial(_numbers, self.label))
        seen.apart("train")

    def run(self, bench: Bench) -> list[ScoreRow]:
        subject = bench.subject(self.backbone)
        read = partial(_numbers, self.label)
        train, queries = learnt_and_judged(bench, self, subject.takes, read, self.item)
        train = train.permuted(bench.seed) if self.permuted else train
        known, truth = _scaled(bench.where, self.label, train.targets, queries.targets)
        vectors = learnables(bench, self, subject, train, queries)
        vectors["random_net"] = of_fresh(bench, self, subject, train, queries, vectors["random_net"])
        work = {name: self._learner(bench, each, known) for name, each in vectors.items()}
        planned = trials(self, work, len(train), seed=bench.seed)
        found = outcomes(bench, planned, lambda trial: work[trial.contender](trial))
        return self._rows(f"{len(queries)} unseen {subject.takes.plural}", found, truth, queries.groups(self.item),
                          {"train": len(train), "values": truth.shape[1]})  # fmt: skip

    def _learner(self, bench: Bench, vectors: Learnable, known: Tensor) -> Callable[[Trial], Tensor]:
        """Of a trial, what is said of the queries: float32 [N, V]."""

        def learn(trial: Trial) -> Tensor:
            learnt, judged = vectors.of(trial)
            held = held_out([0] * len(trial.rows), HELD_OUT, (bench.seed, trial.seed))
            choice: dict[str, Any] = {"l2": self.l2, "valid": held}
            if not len(held):
                choice = {"l2": [sorted(self.l2)[len(self.l2) // 2]]}
            model = fit_ridge(learnt.to(bench.device), known[trial.rows].to(bench.device), **choice)
            return model(judged.to(bench.device)).cpu()

        return learn

    def _rows(
        self, what: str, found: Mapping[Trial, Tensor], truth: Tensor, groups: list[str], facts: Mapping[str, Any]
    ) -> list[ScoreRow]:
        rest: dict[str, Any] = {"names": {"blind": "the mean of the training part"}, "facts": facts}
        blind = torch.zeros_like(truth)

        def mean(row: str, words: str, unit: str, error: Callable[[Tensor], Tensor]) -> ScoreRow:
            return scored(
                f"{self.label}: {words}", f"is the mean {words} of {self.label} of {what}",
                {trial: error(said - truth).mean(1) for trial, said in found.items()}, groups,
                fixed={"blind": error(truth).mean(1)}, unit=unit, higher_is_better=False, row=row, **rest,
            )  # fmt: skip

        def records(said: Tensor) -> list[Predicted]:
            return [Predicted(*each) for each in zip(truth.tolist(), said.tolist(), strict=True)]

        share = scored(
            f"{self.label}: R²", f"of {self.label} of {what}", {trial: records(said) for trial, said in found.items()},
            groups, fixed={"blind": records(blind)}, measure=r_squared, unit="R²", row="r2", **rest,
        )  # fmt: skip
        return [mean("mse", "squared error", "squared deviations", torch.square),
                mean("mae", "absolute error", "deviations", torch.abs), share]  # fmt: skip


def _numbers(label: str, sample: Sample) -> list[float]:
    """Raises DataError: no such field, or what is no number."""
    found = metadata(sample)
    if label not in found:
        raise DataError(f"no metadata field {label!r}; it has {', '.join(sorted(found)) or 'none'}")
    values = found[label] if isinstance(found[label], list) else [found[label]]
    try:
        numbers = [float(value) for value in values if not isinstance(value, bool)]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != len(values) or not numbers or not np.isfinite(numbers).all():
        raise DataError(f"{label} is {str(found[label])[:40]!r}; allowed: a finite number, or a list of them")
    return numbers


def _scaled(where: str, label: str, train: list[Any], queries: list[Any]) -> tuple[Tensor, Tensor]:
    """float32 [M, V] and [N, V], in deviations from the mean of the training part. Raises AgreedError."""
    sizes = sorted({len(values) for values in [*train, *queries]})
    if len(sizes) > 1:
        raise AgreedError(f"{where}.label: value {label!r}: lists of {' and '.join(map(str, sizes))} numbers; allowed: "
                          "as many of each sample")  # fmt: skip
    known, truth = (np.array(values, dtype=np.float64) for values in (train, queries))
    mean, std = known.mean(0), known.std(0)
    if (constant := np.flatnonzero(std <= 1e-9 * np.abs(known).max(0))).size:
        which = f" number {constant[0]}" if sizes[0] > 1 else ""
        raise AgreedError(f"{where}.label: value {label!r}:{which} is {known[0, constant[0]]:g} in all {len(train)} "
                          "samples of train; allowed: values that differ")  # fmt: skip
    return tuple(torch.from_numpy((values - mean) / std).float() for values in (known, truth))  # type: ignore[return-value]
