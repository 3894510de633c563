"""Classification from labelled samples: what its evaluations share, whatever it is that learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from bigssl.transfer.bench import Bench
from bigssl.transfer.inputs import input_of
from bigssl.transfer.labelled.classes import LabelSet, label_target, told
from bigssl.transfer.labelled.examples import Examples, learnt_and_judged
from bigssl.transfer.labelled.rows import scored
from bigssl.transfer.labelled.section import Labelled
from bigssl.transfer.labelled.trials import Trial, outcomes, trials
from bigssl.transfer.scores import ScoreRow
from bigssl.transfer.subjects import Subject

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked


class Classifying(Labelled):
    """A section of classification by the metadata field `label`. words: what it is called in titles."""

    words: ClassVar[str]

    def check(self, seen: Checked) -> None:
        takes = input_of(seen.backbone("backbone"))
        seen.samples("train", takes, "label")
        seen.samples("queries", takes, "label", "item")
        seen.apart("train")


@dataclass(frozen=True)
class Classification:
    """train and queries: samples with their labels (those of `train` dealt anew where the section says so).
    known, asked: `LabelSet.numbers` of both."""

    subject: Subject
    train: Examples
    queries: Examples
    classes: LabelSet
    known: Tensor
    asked: Tensor

    @classmethod
    def of(cls, bench: Bench, section: Classifying) -> Classification:
        """A collective. Raises AgreedError of data that cannot be learnt from."""
        subject, target = bench.subject(section.backbone), label_target(section.label)
        train, queries = learnt_and_judged(bench, section, subject.takes, target, section.item)
        classes = LabelSet.of(bench.where, section.label, train.targets, queries.targets)
        train = train.permuted(bench.seed) if section.permuted else train
        return cls(subject, train, queries, classes, classes.numbers(train.targets), classes.numbers(queries.targets))

    def row(
        self, bench: Bench, section: Classifying, work: Mapping[str, Callable[[Trial], Tensor]], how: str,
        facts: Mapping[str, Any] | None = None,
    ) -> ScoreRow:  # fmt: skip
        """The row of a procedure. A collective.

        Args:
            work: by contender, of a trial the scores float [queries, classes] of every query.
            how: what classifies, in words, for the title and the sentence.
        """
        planned = trials(section, work, len(self.train), self.classes.strata(self.train.targets), seed=bench.seed)
        found = outcomes(bench, planned, lambda trial: self.classes.right(work[trial.contender](trial), self.asked))
        takes, count = self.subject.takes, f"{len(self.queries)} unseen {self.subject.takes.plural}"
        subject = f"of {count} get the right {section.label} of {len(self.classes)} from {how}"
        if self.classes.several:
            subject = f"label ranking precision: {len(self.classes)} {section.label} of {count}, by {how}"
        fixed = self.classes.blind(self.train.targets, self.queries.targets)
        return scored(
            f"{takes.modality} {section.words}: {section.label}", subject, found,
            self.queries.groups(section.item), fixed=fixed, **told(self.classes),
            facts={"train": len(self.train), "classes": len(self.classes), **(facts or {})},
        )  # fmt: skip

