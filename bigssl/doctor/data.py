"""Would this recipe run on so many ranks, with this data? What `bigssl plan` finds, as verdicts."""

from __future__ import annotations

from bigssl.config.recipe import Recipe
from bigssl.doctor.findings import Diagnoses
from bigssl.engine.plan.checks import draft

_AHEAD = "batches prepared ahead"


def examine_data(section: Diagnoses, recipe: Recipe, world: int, per_node: int) -> int:
    """Findings of the pre-flight on `world` ranks. Returns bytes of batches that the loaders of a rank hold ahead, 0
    where they are not known."""
    paper = draft(recipe, world, per_node=per_node, device_bytes=None)
    for text in paper.failures:
        section.fail("plan", text, "`bigssl plan` and `bigssl shards verify` say more")
    for text in paper.warnings:
        section.warn("plan", text, "`bigssl plan` shows the numbers")
    for text in paper.notes:
        section.note("plan", text)
    if not paper.failures:
        sources = ", ".join(f"{name}: {row['samples']:,} samples in {row['shards']} shards"
                            for name, row in paper.sources.items())  # fmt: skip
        section.ok("plan", f"passes on {world} rank{'s' * (world > 1)}; {sources}")
    return paper.host.get(_AHEAD, 0)
