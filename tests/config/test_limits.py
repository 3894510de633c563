"""Limits: one setting per process, inherited by forks, and messages that say what to change."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from bigssl.cli.main import main
from bigssl.config import limits
from bigssl.config.limits import Limits
from bigssl.config.recipe import DataConfig
from bigssl.data.tools.jobs import each


def test_over_names_value_limit_and_what_to_change() -> None:
    assert limits.over("member_bytes", limits.current().member_bytes) == ""
    message = limits.over("member_bytes", (1 << 30) + 1)
    assert message.startswith("1073741825 is over the limit member_bytes = 1073741824 (bytes of one file")
    assert message.endswith("raise data.limits.member_bytes of the recipe or --limit member_bytes=N")


def test_applied_ends_with_its_block_also_after_an_error() -> None:
    before = limits.current()
    with pytest.raises(KeyError), limits.applied(Limits(ratio=3)):
        assert limits.over("ratio", 4)
        raise KeyError
    assert limits.current() is before


def test_forked_workers_inherit_them() -> None:
    with limits.applied(Limits(image_pixels=7)):
        assert list(each(lambda task: limits.current().image_pixels, range(2), 2)) == [7, 7]


def test_they_are_a_section_of_the_recipe() -> None:
    data = DataConfig.model_validate({"sources": {}, "limits": {"sample_bytes": 5}})
    assert data.limits == Limits(sample_bytes=5)
    assert DataConfig.model_validate({"sources": {}}).limits == Limits()
    for wrong in ({"sample_bytes": 0}, {"samples": 1}, {"ratio": "9"}, {"image_pixels": 10**9}):
        with pytest.raises(ValidationError):
            Limits.model_validate(wrong)


def test_commands_that_read_a_recipe_set_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    command = ["config", "check", "launch/recipes/demo.yaml", "--world", "7", f"out={tmp_path}"]  # which does not fit
    with limits.applied(Limits()):
        assert main([*command, "data.limits.audio_values=77"]) == 2
        assert limits.current() == Limits(audio_values=77)
