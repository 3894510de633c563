"""Settings of which one makes another meaningless, or the task another one, are refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bigssl.cli.main import main

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("dino", {"teacher_temperature": 0.3}, "teacher_temperature 0.3 is above temperature 0.2, so that targets"),
    ("dino", {"first_temperature": 0.25}, "first_temperature 0.25 is above temperature 0.2, so that targets"),
    ("ibot", {"temperature": 0.05}, "teacher_temperature 0.07 is above temperature 0.05, so that targets"),
    ("dino", {"centring": "sinkhorn", "centre_momentum": 0.5}, "centre_momentum 0.5 has no effect with centring sinkh"),
    ("moco", {"momentum": 1.0}, "objective.momentum: value 1.0: input should be less than 1; "),
    ("simclr", {"learn_temperature": True, "temperature": 0.001}, "temperature 0.001 is no beginning with learn_temp"),
    ("swav", {"queue": 0, "queue_from": 0.5}, "queue_from 0.5 has no effect with queue 0"),
    ("dino", {"warm": 0.0}, "first_temperature 0.06 has no effect with warm 0"),
    ("moco", {"layers": 1}, "hidden 16 has no effect with layers 1 and no predictor"),
    ("simclr", {"layers": 1}, "hidden 16 has no effect with layers 1"),
    ("simclr", {"layers": 1, "hidden": 512, "norm": False}, "norm False has no effect with layers 1"),
    ("inpainting", {"decoder_dim": 15}, "objective.decoder_dim: value 15: input should be greater than or equal to 16"),
    ("jigsaw", {"grid": 3, "permutations": 20_000}, "objective.permutations: value 20000: input should be less than "),
    ("swav", {"crops": {"small_size": 7}}, "objective.crops.small_size: value 7, but a place of the backbone's last "
     "map covers 8 pixels a side: of so few, its last layers would see nothing but padding; allowed: >= 8"),
    ("dino", {"crops": {"device": "accelerator", "canvas": 31}}, "objective.crops.canvas: value 31, but views of 32 "),
    ("simclr", {"augment": {"device": "accelerator", "canvas": 8}}, "objective.augment.canvas: value 8, but views of "
     "32 pixels a side are made of it; allowed: >= 32"),
]


@pytest.mark.parametrize(("name", "fields", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_meant_is_refused(
    name: str, fields: dict[str, Any], words: str, recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = recipe(name, str(tmp_path / "run"))
    values["objective"] |= fields
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert main(["config", "check", str(tmp_path / "recipe.yaml")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
