"""CLIP's captions: the whole one, or a random part of its words each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigssl.data.index import DatasetIndex
from bigssl.data.stream import in_order
from bigssl.objectives.base import discover

DEMO = Path(__file__).parents[2] / "bigssl" / "demo"


@pytest.mark.parametrize(("dropout", "share"), [(0.0, 1.0), (0.5, 0.5)])
def test_word_dropout_hides_words_from_attention_alone(objective: Any, dropout: float, share: float) -> None:
    task = objective(discover()["clip"], "clip", word_dropout=dropout)
    seen = words = 0
    for number, sample in enumerate(in_order(DatasetIndex.load(str(DEMO / "emoji" / "train")), 200)):
        given = task.prepare(sample, np.random.default_rng(number))
        special = np.isin(given["input_ids"], task.text.tokenizer.all_special_ids)
        assert given["attention_mask"][0] == 1 and not given["attention_mask"][given["input_ids"] == 0].any()
        seen += int(given["attention_mask"][~special].sum())
        words += int((~special).sum())
    assert seen / words == pytest.approx(share, abs=0.04)
