"""Grey pictures, of more bits than bytes have, are what every task of pictures trains on by a network of one channel,
or says why not when the recipe is checked."""

from __future__ import annotations

import io
from typing import Any

import conftest
import numpy as np
import pytest
import torch
from PIL import Image

from bigssl.config.errors import ConfigError
from bigssl.data.loading.collate import collate
from bigssl.data.loading.loader import SEEDS
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.objectives.base import Objective, discover
from bigssl.objectives.seeing import picture_of

SEEING = sorted((name, kind) for name, kind in discover().items() if not kind.__dict__.get("composite")
                and any(takes.modality == "image" for takes in kind.takes.values())
                and not any(takes.modality == "audio" for takes in kind.takes.values()))  # fmt: skip
REFUSING = {"colorization": "objective.backbone: .* has channels 1, so that its pictures have no colours to predict"}


def deep_sample(number: int) -> Sample:
    """Squares of 12 bits on a plate of noise, as a scanner stores them in 16."""
    rng, file = np.random.default_rng(number), io.BytesIO()
    values = rng.integers(900, 1100, (48, 64)).astype(np.uint16)
    values[10 : 20 + number, 5 : 30 + number] += 2000
    Image.fromarray(values).save(file, "PNG")
    words = f"a square of {20 + number} in the upper half of a plate"
    return Sample(f"s{number}", {"png": file.getvalue(), "txt": words.encode()}, number, 0, "x.tar", "emoji")


def more(_: np.random.Generator) -> Sample:
    return deep_sample(99)


@pytest.fixture
def grey(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets' networks of pictures take one channel and see a window."""
    plain = conftest.section_of

    def one_channel(kind: str | dict[str, Any]) -> Any:
        section = plain(kind)
        return section if section.size is None else section.model_copy(
            update={"channels": 1, "window": [800.0, 3350.0]})  # fmt: skip

    monkeypatch.setattr(conftest, "section_of", one_channel)


@pytest.mark.parametrize(("name", "kind"), SEEING, ids=[name for name, _ in SEEING])
def test_a_task_trains_on_deep_grey_pictures_or_says_why_not(
    name: str, kind: type[Objective], grey: None
) -> None:
    if name in REFUSING:
        with pytest.raises(ConfigError, match=REFUSING[name]):
            conftest.make_objective(kind, name)
        return
    task = conftest.make_objective(kind, name)
    samples = [deep_sample(number) for number in range(8)]
    prepared = [task.prepare(sample, np.random.default_rng(n), more) for n, sample in enumerate(samples)]
    assert not task.unfit(prepared)
    (source,) = task.sources()
    batch = task.assemble({source: {**collate(prepared), SEEDS: torch.arange(8)}})
    losses = task(batch, Progress(10, 100))
    losses.total.backward()
    assert losses.total.isfinite()
    for part in task.parameters():
        assert part.grad is None or part.grad.isfinite().all()
    (tower,) = (each for each in task.modules() if getattr(each, "modality", None) == "image" and each.channels)
    first = picture_of(samples[0], tower)
    expected = (np.asarray(Image.open(io.BytesIO(samples[0].fields["png"]))).astype(float) - 800) / 10
    assert first.dtype == np.uint8 and first.shape == (48, 64, 1)
    np.testing.assert_allclose(first[..., 0], expected, atol=0.51)
