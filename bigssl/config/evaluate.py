"""Recipe sections `probe` and `evaluate`: how what was learnt is judged."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from bigssl.config.section import PositiveInt, Section


class ProbeConfig(Section):
    """Online kNN probe of an image backbone; labels are read here only, never by an objective."""

    every: PositiveInt
    backbone: str = "image"
    bank: str
    queries: str
    label: str = Field(description="metadata field that is predicted")
    k: PositiveInt = 20
    bank_limit: PositiveInt = 1024
    query_limit: PositiveInt = 512
    batch: PositiveInt = 128


BankLimit = Annotated[PositiveInt | None, Field(description="samples of the bank, drawn by a fixed seed; default all")]
QueryLimit = Annotated[PositiveInt | None, Field(description="samples judged, drawn by a fixed seed; default all")]


class EvalImages(Section):
    """kNN over a label and retrieval of the same item in its other view, on images never trained on."""

    backbone: str = "image"
    bank: str
    queries: str
    label: str = Field(description="metadata field that is predicted")
    pair: str | None = Field(None, description="metadata field that views of one item share; default: no retrieval")
    view: str | None = Field(None, description="metadata field that tells the views of an item apart; only with pair")
    k: PositiveInt = 20
    bank_limit: BankLimit = None
    query_limit: QueryLimit = None

    @model_validator(mode="after")
    def _pair_and_view(self) -> EvalImages:
        if self.pair is not None and self.view is None:
            raise ValueError(f"pair {self.pair!r} is given without view; allowed: both, or neither for no retrieval")
        if self.pair is None and self.view is not None:
            raise ValueError(f"view {self.view!r} is given without pair; allowed: both, or neither for no retrieval")
        return self


class EvalText(Section):
    backbone: str = "text"
    bank: str
    queries: str
    label: str = Field(description="metadata field that is predicted")
    k: PositiveInt = 20
    bank_limit: BankLimit = None
    query_limit: QueryLimit = None


class EvalLanguage(Section):
    """Loss on masked tokens of held-out documents, beside token frequencies and a random network."""

    head: str = Field("mlm", description="name under export/heads of the head of masked language modelling")
    backbone: str = "text"
    bank: str = Field(description="documents trained on, whose token frequencies are the line to beat")
    queries: str = Field(description="held-out documents")
    bank_limit: BankLimit = None
    query_limit: QueryLimit = None


class EvalZeroShot(Section):
    """Images to classes known by texts: by their names alone, and by the mean of captions that carry the label."""

    heads: str = Field("clip", description="name under export/heads of the two projections")
    image_backbone: str = "image"
    text_backbone: str = "text"
    queries: str
    captions: str = Field(description="shards whose captions and labels describe the classes")
    label: str = Field(description="metadata field that is predicted")
    caption_limit: BankLimit = None
    query_limit: QueryLimit = None


class Evaluate(Section):
    """The scorecard. Picture sizes and lengths of texts are those of the exported backbones."""

    images: EvalImages | None = None
    text: EvalText | None = None
    language: EvalLanguage | None = None
    zero_shot: EvalZeroShot | None = None
    batch: PositiveInt = 256
