"""The section of an evaluation that learns, as a rule from labels."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from bigssl.config.evaluate import Evaluation, Item, Label, Limit
from bigssl.config.section import PositiveInt

Share = Annotated[float, Field(gt=0, le=1)]


class Learning(Evaluation):
    """What is learnt from shares of the samples `train`, several times over, and judged on `queries`. Where the samples
    themselves say what is to be learnt (the future of a series), there is no label."""

    learns_from: ClassVar[str | None] = "train"
    probes: ClassVar[bool] = False

    backbone: str
    train: str = Field(description="shards that are learnt from")
    train_limit: Limit = None
    seeds: PositiveInt = Field(3, description="times that all is repeated: other samples, fresh weights, another order")
    fractions: list[Share] = Field(
        [0.01, 0.1, 1.0], min_length=1, description="shares of the samples, ascending; the last one counts"
    )
    permuted: bool = Field(False, description="deal the labels anew among the samples: what beats chance is a leak")

    @field_validator("fractions")
    @classmethod
    def _ascending(cls, values: list[float]) -> list[float]:
        if values != sorted(set(values)):
            raise ValueError(f"needed are ascending shares, each once, as in {sorted(set(values))}")
        return values

    def unlabelled(self) -> dict[str, str]:
        return {self.backbone: "train"}


class Labelled(Learning):
    """The same from samples with a label in their metadata."""

    label: Label = "label"
    item: Item = None
