"""Logistic regression over a label, on frozen features of any backbone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from bigssl.config.evaluate import Parts
from bigssl.transfer.bench import Bench
from bigssl.transfer.labelled.classify import Classification, Classifying
from bigssl.transfer.labelled.probing import STRENGTHS, linear_learners
from bigssl.transfer.scores import ScoreRow
from bigssl.transfer.subjects import check_parts

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

Strength = Annotated[float, Field(gt=0)]


class LinearProbe(Classifying):
    """Label by logistic regression on frozen features, its penalty chosen on a fifth of the labelled samples."""

    preset = {"train": "bigssl/demo/emoji/train", "queries": "bigssl/demo/emoji/val", "label": "category",
              "fractions": [0.3, 1.0], "seeds": 2}  # fmt: skip
    words = "linear probe"

    backbone: str = "image"
    l2: list[Strength] = Field(
        STRENGTHS, min_length=1,
        description="penalties to choose from: of half the squared norm of the weights, beside the summed losses",
    )

    parts: Parts = None

    def check(self, seen: Checked) -> None:
        super().check(seen)
        check_parts(seen, self.parts)

    def run(self, bench: Bench) -> list[ScoreRow]:
        job = Classification.of(bench, self)
        job = replace(job, subject=job.subject.in_parts(self.parts))
        return [job.row(bench, self, linear_learners(bench, self, job, self.l2), "a linear model of its features")]
