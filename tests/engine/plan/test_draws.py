"""A task that draws further samples is refused, before anything starts, where there are none to draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bigssl.config.errors import ConfigError
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.engine.plan import preflight
from bigssl.engine.plan.checks import draft
from bigssl.objectives.simclr import Simclr

DEMO = Path(__file__).parents[3] / "bigssl" / "demo"


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Any]:
    """Data sections by what is wrong with them, and one without a fault."""
    _, _, members = DatasetIndex.load(DEMO / "emoji" / "train").entry(0)
    pack([Item("k", "k", lambda: dict.fromkeys(members, b"not looked at"))], tmp_path / "one", name="x")
    good = str(DEMO / "emoji" / "train")
    (tar,) = (tmp_path / "one").glob("*.tar")
    return {
        "good": {"url": good},
        "one": {"url": str(tmp_path / "one"), "batch": 1},
        "mixed": {"mix": {"a": {"url": good, "weight": 31}, "b": {"url": str(tmp_path / "one"), "weight": 1}}},
        "passing": {"url": str(tar), "sequential": True, "samples": 100},
    }


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("one", "data.sources.emoji.url: .* holds 1 sample, but simclr draws another one beside each; allowed: >= 2"),
        ("mixed", r"data.sources.emoji.mix.b: \S*/one holds 1 sample, but simclr draws"),
        ("passing", "data.sources.emoji.sequential: value true, but simclr draws further samples, .*`bigssl shards"),
        ("good", ""),
    ],
)
def test_check_and_plan_refuse_it_alike(
    source: str, words: str, sources: dict[str, Any], recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Simclr, "least", 1)
    data = {"workers": 0, "sources": {"emoji": sources[source]}}
    used = recipe(data=data, batch={"size": 8})
    assert not any("draws" in text for text in draft(used, 1, per_node=8, device_bytes=None).failures)
    monkeypatch.setattr(Simclr, "draws_more", True)
    paper = draft(used, 1, per_node=8, device_bytes=None)
    if not words:
        preflight.plan(used, 1)
        assert not paper.failures and any("simclr draws beside another is one more read" in n for n in paper.notes)
        return
    with pytest.raises(ConfigError, match=words) as caught:
        preflight.plan(used, 1)
    assert "\n" not in str(caught.value) and str(caught.value) in paper.failures
