"""The advice for a card, as text for people and as values for JSON."""

from __future__ import annotations

from typing import Any

from bigssl.engine.plan.cards.advise import Advice, gigabytes
from bigssl.engine.plan.cards.table import Card


def advice_text(advice: Advice) -> list[str]:
    """Lines: the card, what fits by level, what to type, and what to know."""
    lines = [_card(advice.card)]
    for fit in advice.by_level:
        mark = "  <- the cheapest that fits" if fit is advice.chosen else ""
        mark = mark if fit.need <= advice.card.usable else "  too much"
        split = f"{fit.micro:>6} samples x {fit.accum} passes a rank"
        lines.append(f"  {fit.level:18} {split}: {gigabytes(fit.need):>9}{mark}")
    lines += [f"  {level:18} not for this recipe: {why}" for level, why in advice.refused.items()]
    if advice.chosen is not None:
        lines.append(f"  give: {' '.join(map(_quoted, advice.chosen.overrides))}")
    return lines + [f"  note: {text}" for text in advice.notes]


def _card(card: Card) -> str:
    bf16 = "no bf16" if card.bf16 is None else f"bf16 {card.bf16:g}"
    rates = f"{bf16}, fp32 {card.fp32:g} TFLOP/s; {card.bandwidth:,} GB/s; {'NVLink' if card.nvlink else 'PCIe only'}"
    return f"card {card.name}: {card.gigabytes:g} GB, {card.usable / 1e9:g} to plan with; {rates} ({card.source})"


def _quoted(override: str) -> str:
    return f"'{override}'" if "{" in override or " " in override else override


def advice_values(advice: Advice) -> dict[str, Any]:
    """Sizes in bytes; by level whether it fits."""
    fits = {fit.level: vars(fit) | {"fits": fit.need <= advice.card.usable} for fit in advice.by_level}
    chosen = None if advice.chosen is None else vars(advice.chosen)
    return {"card": vars(advice.card) | {"usable": advice.card.usable}, "by_level": fits, "chosen": chosen,
            "refused": advice.refused, "lacking": advice.lacking, "notes": advice.notes}  # fmt: skip
