"""Another recipe, version or data on one rank is refused by all, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigssl import distributed
from bigssl.config.recipe import Recipe, recipe_model
from bigssl.engine import zero
from bigssl.engine.meeting import alike, versions
from bigssl.engine.meeting.versions import PACKAGES, fingerprint
from bigssl.objectives.base import config_union

FACTS = {"data": {"emoji": "1f2e"}, "shapes": [[8, 8], [4]]}


def compare(recipes: list[dict[str, Any]], facts: list[dict[str, Any]], versions: list[dict[str, str]]) -> str:
    """What a rank is told, each with its own."""
    zero.start()
    mine, before = distributed.rank(), alike.fingerprint
    alike.fingerprint = lambda: before() | versions[mine]
    try:
        alike.check_alike(recipe_model(config_union()).model_validate(recipes[mine]), facts[mine])
    except alike.Unlike as error:
        return str(error)
    finally:
        alike.fingerprint = before
    return ""


@pytest.fixture
def told(crew: Any, recipe: Callable[..., Recipe]) -> Callable[..., str]:
    """What both ranks are told, where the second differs by these."""

    def tell(changes: Any = None, facts: Any = None, version: Any = None) -> str:
        first = recipe().model_dump(mode="json", exclude_unset=True)
        recipes, both = [first, first | (changes or {})], [FACTS, FACTS | (facts or {})]
        one, other = crew(compare, 2, recipes, both, [{}, version or {}])
        assert one == other
        return str(one)

    return tell


def test_ranks_that_are_alike_go_on(told: Any) -> None:
    assert told() == ""


@pytest.mark.parametrize(("changes", "said"), [
    ({"changes": {"optim": {"lr": 0.02, "warmup": 2}}}, "optim.lr is 0.02, on rank 0 0.01"),
    ({"changes": {"steps": 7}}, "steps is 7, on rank 0 6"),
    ({"facts": {"data": {"emoji": "3a4b"}}}, "facts.data.emoji is 3a4b, on rank 0 1f2e"),
    ({"version": {"torch": "2.0.1"}}, "torch is 2.0.1, on rank 0 "),
    ({"version": {"bigssl": "1 (files 0)"}}, "bigssl is 1 (files 0), on rank 0 "),
])  # fmt: skip
def test_what_one_rank_has_otherwise_is_named_to_all(told: Any, changes: dict[str, Any], said: str) -> None:
    text = told(**changes)
    assert text.startswith("rank 1 on ") and f": {said}" in text, text
    assert text.endswith("; allowed: the same on every machine")


def test_of_many_differences_a_few_are_named(told: Any) -> None:
    text = told(version=dict.fromkeys(["bigssl", "numpy", "pillow", "python", "torch"], "0"))
    assert text.count("on rank 0") == 3 and "; and 2 more; allowed" in text


def test_a_machine_may_keep_its_data_elsewhere_and_read_it_its_own_way(told: Any, tmp_path: Path) -> None:
    there = {"emoji": {"url": str(tmp_path / "emoji")}}
    assert told({"data": {"sources": there, "workers": 3, "watchdog": 7.0, "watchdog_abort": 70.0}}) == ""


def test_a_password_is_not_told(told: Any) -> None:
    text = told(facts={"data": {"emoji": "https://me:secret@host/x?token=hidden"}})
    assert "facts.data.emoji is https://" in text and "secret" not in text and "hidden" not in text


def test_a_rank_alone_is_like_itself(recipe: Callable[..., Recipe]) -> None:
    alike.check_alike(recipe(), FACTS)


def test_a_changed_file_of_this_package_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "engine" / "meeting" / "versions.py"))
    (tmp_path / "one.py").write_text("a = 1")
    before = fingerprint()
    assert {"bigssl", "python", *PACKAGES} == before.keys() and before["torch"] not in ("", "not installed")
    assert fingerprint() == before
    (tmp_path / "one.py").write_text("a = 2")
    changed = fingerprint()["bigssl"]
    assert changed != before["bigssl"]
    (tmp_path / "one.py").rename(tmp_path / "two.py")
    assert fingerprint()["bigssl"] not in (changed, before["bigssl"])
