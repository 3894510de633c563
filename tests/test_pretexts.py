"""docs/pretexts.md: its commands for pictures of one's own do what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigssl.cli.main import main

ROOT = Path(__file__).parents[1]
CLASSES = ("cat", "frog", "truck")


def commands() -> list[list[str]]:
    """Of the section, word by word."""
    page = (ROOT / "docs" / "pretexts.md").read_text()
    (part,) = re.findall(r"^## On your pictures\n(.*?)(?=^## )", page, flags=re.M | re.S)
    blocks = re.findall(r"^```bash\n(.*?)^```", part, flags=re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    typed = [each for line in lines for each in line.partition("  #")[0].split(";")]
    return [shlex.split(each) for each in typed]


def pictures(folder: Path) -> None:
    """A folder a class where it is called after CIFAR-10, else of pictures alone; each folder's are others."""
    for number in range(60):
        within = folder / CLASSES[number % 3] if "cifar10" in str(folder) else folder
        within.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng([number, len(str(folder))]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(within / f"{number}.png")


def test_its_commands_lead_to_a_run_that_can_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the training, in place of which it is checked; of a few pictures, so that the batch is smaller."""
    for name in ("bigssl", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    checked = []
    for program, *words in commands():
        words = [re.sub("DIR|OTHER", lambda found: str(tmp_path / found[0]), word) for word in words]
        if words[:2] == ["shards", "pack"]:
            pictures(Path(words[2]))
        if words[0] == "train":
            checked.append(words)
            words = ["config", "check", *words[1:], "out=run", "batch.size=8"]
        assert program == "bigssl" and main(words) == 0, (words, capsys.readouterr().err)
    own = [words for words in checked if str(tmp_path) in " ".join(words)]
    assert len(own) >= 2 and len(checked) > len(own), "with classes and without; and the demo"
