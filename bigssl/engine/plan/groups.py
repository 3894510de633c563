"""The optimizer's groups as `bigssl plan` shows them: a row each, rates by depth as a range."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bigssl.config.optim import OptimConfig
from bigssl.engine.groups import REST, Treatment, asked_groups, treatments
from bigssl.engine.optim import settings_of_group


@dataclass(frozen=True)
class GroupRow:
    """pattern: of the group that asked, empty for the rest; field: where it was asked for; parameters: elements;
    tensors: how many; lr: least and greatest, at the top of the schedule; alone: clipped by a norm of its own."""

    pattern: str
    field: str
    treatment: str
    tensors: int
    parameters: int
    lr: tuple[float, float]
    weight_decay: float
    clip: float
    alone: bool


def group_rows(module: nn.Module, config: OptimConfig) -> list[GroupRow]:
    """Raises ConfigError as `treatments`."""
    asked = asked_groups(module, config)
    members: dict[tuple[int, str], list[tuple[Treatment, int]]] = {}
    for parameter, treatment in treatments(module, config).items():
        key = (treatment.role, _words(treatment, config))
        members.setdefault(key, []).append((treatment, int(getattr(parameter, "ds_numel", parameter.numel()))))
    rows = []
    for (role, words), held in sorted(members.items()):
        settings = [settings_of_group(treatment, [each.group for each in asked], config) for treatment, _ in held]
        rates = [each["lr"] for each in settings]
        rows.append(GroupRow(
            pattern=asked[role].group.pattern if role != REST else "",
            field=asked[role].field if role != REST else "optim", treatment=words,
            tensors=len(held), parameters=sum(count for _, count in held), lr=(min(rates), max(rates)),
            weight_decay=settings[0]["weight_decay"], clip=settings[0]["clip"],
            alone=settings[0]["clip_group"] != REST,
        ))  # fmt: skip
    return rows


def _words(treatment: Treatment, config: OptimConfig) -> str:
    """What tells rows of one group apart."""
    half = ("muon" if treatment.muon else "adamw") if config.name == "muon" else ""
    return ", ".join(word for word in (half, "" if treatment.decayed else "not decayed") if word)


def group_table(rows: list[GroupRow]) -> list[str]:
    """Lines of text."""
    names = [", ".join(word for word in (row.pattern or "all others", row.treatment) if word) for row in rows]
    width = max(map(len, names)) + 2
    lines = [f"{'parameter groups':{width + 2}}{'parameters':>15}{'lr':>22}{'decay':>9}{'clip':>8}"]
    for name, row in zip(names, rows, strict=True):
        least, most = row.lr
        rate = f"{most:g}" if least == most else f"{least:.3g} to {most:g}"
        clip = f"{row.clip:g}" if row.clip else "none"
        lines.append(f"  {name:{width}}{row.parameters:15,}{rate:>22}{row.weight_decay:>9g}{clip:>8}"
                     + ("  by its own norm" if row.alone and row.clip else ""))  # fmt: skip
    return lines
