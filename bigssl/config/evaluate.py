"""Recipe sections `probe` and `evaluate`: how what was learnt is judged.

Both map names of the reader's choice to sections of evaluations. These live with the evaluations
(`bigssl/transfer/tasks/*.py`) and are handed in by the caller, as those of the pretext tasks are.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, model_validator

from bigssl.config.section import PositiveInt, Section

EVALUATION_NAME = r"[A-Za-z0-9_][A-Za-z0-9_-]*"  # part of dotted overrides and of names of metrics
EXAMPLE = "{task: knn, bank: DIR, queries: DIR, label: FIELD}"
FEW = {"query_limit": 512, "bank_limit": 1024, "caption_limit": 1024}  # of a probe, where its section does not say

Limit = Annotated[PositiveInt | None, Field(description="samples of it, drawn by a fixed seed; default all")]
METADATA = "metadata"  # marks a section's field whose value is one
Metadata = Annotated[str, METADATA]
Label = Annotated[str, METADATA, Field(description="metadata field that is predicted")]
Item = Annotated[
    str | None, METADATA, Field(description="metadata field that samples of one item share: they count as one")
]


Parts = Annotated[
    PositiveInt | None,
    Field(description="of series and sounds: equal stretches of time of which features are the means, one after the "
                      "other; default: the mean over all, in which the order of what came is lost"),
]  # fmt: skip


class Evaluation(Section):
    """What every evaluation has; a file of `bigssl/transfer/tasks` adds what it needs. `task` is added at discovery."""

    preset: ClassVar[dict[str, Any]]
    """The section on the demo's data, all that tests/transfer/test_tasks.py is told of an evaluation: there are tiny
    backbones "image", "text", "series" (six channels, as in bigssl/demo/series/basic_motions) and "audio" (1,000
    samples, a second), with heads "clip" of the first two, "mlm", "next_sentence" and "replaced_token" of "text", and
    "pictures", a decoder of the first. A limit that it leaves out is small there. Data
    made/NAME/train and made/NAME/val is what `make` of tests/transfer/made/NAME.py writes."""

    learns_from: ClassVar[str | None] = None
    """The field of the shards that it learns from, which `bigssl evaluate --train` sets; None: it has none."""

    probes: ClassVar[bool] = True
    """Whether it can judge networks while they are trained; False of one that trains networks itself."""

    queries: str = Field(description="shards that are judged, and never trained on")
    query_limit: Limit = None
    batch: PositiveInt = Field(256, description="samples of a forward pass")

    def check(self, seen: Any) -> None:
        """Refuse, before anything is trained, what `run` could not do.

        Args:
            seen: `bigssl.engine.plan.evaluation.Checked`, which knows the networks, the heads and the shards.
        Raises:
            ConfigError: field, value, what is allowed, nearest match.
        """
        raise NotImplementedError

    def run(self, bench: Any) -> list[Any]:
        """The rows of the scorecard: `bigssl.transfer.scores.Score` each. A collective of all ranks.

        Args:
            bench: `bigssl.transfer.bench.Bench`, which has the networks and encodes.
        Raises:
            DataError: on every rank, where shards are not what `check` took them for.
        """
        raise NotImplementedError

    def unlabelled(self) -> dict[str, str]:
        """{backbone: the field with shards, no queries, from which the BatchNorm of its random twin may be set}."""
        return {}

    def metadata(self) -> list[str]:
        """The metadata fields that it reads."""
        marked = [name for name, info in type(self).model_fields.items() if METADATA in info.metadata]
        return [value for value in (getattr(self, name) for name in marked) if value is not None]

    def few(self) -> Evaluation:
        """The same on few samples, where it has no limits of its own."""
        limits = {name: most for name, most in FEW.items() if getattr(self, name, most) is None}
        return self.model_copy(update=limits)


class ProbeConfig(Section):
    """Evaluations of the live networks during training, on few samples: `{every: N, NAME: {task: ...}, ...}`. Labels
    are read here only, never by an objective. A limit that a section leaves out is 512 queries, or 1,024 others."""

    model_config = ConfigDict(extra="allow")

    every: PositiveInt = Field(description="steps between two probes; there is one at the end, too")

    @property
    def sections(self) -> dict[str, Evaluation]:
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _of_few_samples(self) -> ProbeConfig:
        if not self.__pydantic_extra__:
            raise ValueError(f"nothing is probed; allowed: {{every: {self.every}, NAME: {EXAMPLE}}}")
        if trains := ", ".join(name for name, section in self.sections.items() if not section.probes):
            raise ValueError(f"{trains}: trains networks itself, which is no probe; allowed: in `evaluate`")
        self.__pydantic_extra__.update({name: section.few() for name, section in self.sections.items()})
        return self


def probe_model(evaluations: Any) -> type[ProbeConfig]:
    """ProbeConfig with its sections typed as the union of evaluations."""
    names = {"__annotations__": {"__pydantic_extra__": dict[str, evaluations]}, "__module__": __name__}
    return type("ProbeConfig", (ProbeConfig,), names | {"__doc__": ProbeConfig.__doc__})


def named_sections(where: str, sections: Any) -> Any:
    """The mapping `probe` or `evaluate` (`where`) of a recipe, without the names that an override set to null.

    Raises:
        ValueError: something in it is no section with a name and a task, in a sentence that shows one.
    """
    if not isinstance(sections, dict):
        return sections
    kept = {name: section for name, section in sections.items() if section is not None}
    form = f"{where}: {{{'every: 100, ' if where == 'probe' else ''}NAME: {EXAMPLE}, ...}}"
    for name, section in kept.items():
        if where == "probe" and name == "every":
            continue
        if not isinstance(section, Evaluation) and not (isinstance(section, dict) and "task" in section):
            raise ValueError(f"{where}.{name}: no section with a task; allowed: {form}; tasks: `bigssl config schema`")
        if not re.fullmatch(EVALUATION_NAME, str(name)):
            raise ValueError(f"{where}: name {name!r}; allowed: letters, digits, _ and -, as in {form}")
    return kept
