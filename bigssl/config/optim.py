"""The section `optim` of a recipe: the optimizer, its schedule, and parameters with settings of their own."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, field_validator, model_validator

from bigssl.config.section import Fraction, Section

Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running mean: 1 would never take anything in
WITHOUT_BETAS = ("lars", "sgd")  # momentum, and nothing of Adam
NOT_DECAYED = [  # as timm has it; parameters of fewer than two dimensions need no pattern
    r"\.bias$",
    r"(cls|class|distillation|mask|register)_tokens?$",
    r"position_embeddings$",  # of image networks; the tables of text networks end in .weight, and BERT decays its own
    r"position_embedding\.weight$",  # CLIP, SigLIP: image networks too
    r"position_enc$",
    r"relative_position_bias_table$",
    r"attention_biases$",
    r"relative_attention_bias\.weight$",
    r"continuous_position_bias_mlp\.",
    r"log(it)?_scale$",
    r"layer_scale(_\w+)?$",
    r"\.grn\.weight$",
]


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return text


class _WithBetas(Section):
    """A section whose `betas` are a list in YAML."""

    @model_validator(mode="before")
    @classmethod
    def _betas_from_yaml(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("betas"), list):
            return {**values, "betas": tuple(values["betas"])}
        return values


class Group(_WithBetas):
    """Parameters with settings of their own; what is left out is the recipe's."""

    pattern: str = Field(description="regular expression, searched in the names of the objective's parameters")
    lr: Annotated[float, Field(gt=0)] = Field(1.0, description="factor on optim.lr")
    betas: tuple[Decay, Decay] | None = Field(None, description="of the AdamW half where optim.name is muon")
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(None, description="of what optim.no_decay does not name")
    clip: Annotated[float, Field(ge=0)] | None = Field(
        None, description="the norm is taken over this group alone; 0: not clipped; left out: optim.clip, with others"
    )

    _checked = field_validator("pattern")(_pattern)

    def matches(self, name: str) -> bool:
        """Whether a parameter of the objective belongs here, as far as its name goes."""
        return re.search(self.pattern, name) is not None

    def inside(self, prefix: str) -> PartGroup:
        """The same for a part of an objective, whose parameters begin with `prefix`; the pattern sees the rest."""
        return PartGroup(**self.model_dump(), prefix=prefix)


class PartGroup(Group):
    """A group that a part of an objective asks for: its pattern never reaches the parameters of another part."""

    prefix: str

    def matches(self, name: str) -> bool:
        return name.startswith(self.prefix) and super().matches(name.removeprefix(self.prefix))


class OptimConfig(_WithBetas):
    name: Literal["adamw", "lamb", "lars", "muon", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    momentum: Decay = Field(0.9, description="lars, muon and sgd")
    trust: Annotated[float, Field(gt=0)] = Field(
        1e-3, description="lars: η, the step of a layer as a share of its norm, before lr"
    )
    adam_lr: Annotated[float, Field(gt=0)] | None = Field(None, description="muon: rate of its AdamW half; default lr")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="not applied to norms, biases and `no_decay`")
    no_decay: list[str] = Field(
        default_factory=NOT_DECAYED.copy,
        description="regular expressions of parameters that are not decayed, beside all of fewer than two dimensions",
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="factor on the rate for each block of a backbone below its output; 1: the same rate for all"
    )
    clip: Annotated[float, Field(ge=0)] = Field(1.0, description="gradient norm clipping; 0 switches it off")
    groups: list[Group] = Field(
        default_factory=list,
        description="parameters with settings of their own; the first match counts, before the objective's own groups",
    )
    warmup: Annotated[float, Field(ge=0), PlainSerializer(lambda value: value)] = Field(
        0, description="steps of linear warm-up, or below 1 their share of all steps"
    )
    schedule: Literal["constant", "cosine", "wsd", "polynomial"] = "cosine"
    decay: Annotated[float, Field(gt=0, le=1)] = Field(0.2, description="wsd: last share of the steps that decays")
    power: Annotated[float, Field(gt=0)] = Field(1.0, description="polynomial: exponent")
    final: Fraction = Field(0.0, description="learning rate at the end as a share of lr")

    def warmup_steps(self, steps: int) -> int:
        """Steps of linear warm-up in a run of `steps`."""
        return int(self.warmup if self.warmup >= 1 else self.warmup * steps)

    @field_validator("warmup")
    @classmethod
    def _whole_steps(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("is no whole number of steps; allowed: one, or a share below 1")
        return int(value) if value == int(value) else value  # 3 is 3 steps, in messages and in the resolved recipe

    @field_validator("no_decay")
    @classmethod
    def _are_patterns(cls, patterns: list[str]) -> list[str]:
        return [_pattern(text) for text in patterns]
