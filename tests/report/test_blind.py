"""A loss at its blind line is called so, however far below the logarithm of the vocabulary it ended."""

from __future__ import annotations

import math
import random

import pytest

from bigssl.report.blind import verdicts
from bigssl.report.metrics import Measure

MEASURES = {
    "loss": Measure("nats", "its parts' blind predictors"),
    "loss/views": Measure("nats", "guessing"),
    "loss/words": Measure("nats", "token frequencies"),
    "loss/sky": Measure("squared error", "each patch's mean"),
}


def records(words: float, steps: int = 370) -> list[dict[str, float]]:
    """Words that fall from 9.01 to `words` with the noise of a batch, which the blind line of the batch shares."""
    draw, rows = random.Random(0), []
    for step in range(1, steps + 1):
        batch, own = draw.gauss(0, 0.1), draw.gauss(0, 0.02)
        rows.append({
            "step": step, "loss": 3.0, "blind": 9.0, "loss/views": 2.0, "blind/views": 6.24,
            "loss/words": max(words, 9.01 - step / 40) + batch + own, "blind/words": 6.49 + batch,
            "loss/sky": 1.0, "blind/sky": 1.0,
        })  # fmt: skip
    return rows


def test_words_that_ended_above_token_frequencies_have_learnt_nothing() -> None:
    views, words, sky = verdicts(records(6.59), MEASURES)
    assert not words.below
    assert words.sentence.startswith("words: no better than token frequencies after 370 steps (6.")
    assert views.below and views.sentence == "views: 4.24 nats below its blind line (guessing, 6.24) after 370 steps"
    assert sky.sentence.endswith("each patch's mean after 370 steps (1.00 at 1.00 squared error)")


def test_a_small_gain_is_seen_through_the_noise_of_the_batches() -> None:
    assert verdicts(records(6.45), MEASURES)[1].below
    assert not verdicts(records(6.489), MEASURES)[1].below


def test_early_records_do_not_count() -> None:
    """A curve that was low once and came back."""
    rows = records(6.49)
    for row in rows[:100]:
        row["loss/words"] = 1.0
    assert not verdicts(rows, MEASURES)[1].below


def test_one_record_proves_nothing_and_none_says_nothing() -> None:
    assert [verdict.below for verdict in verdicts(records(6.0, steps=1), MEASURES)] == [False] * 3
    assert verdicts([], MEASURES) == []


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_records_that_are_no_numbers_are_left_out(broken: float) -> None:
    rows, gone = records(6.45), records(6.45)
    del gone[-3], gone[-7]
    rows[-3]["loss/words"], rows[-8]["blind/words"] = broken, broken
    assert verdicts(rows, MEASURES)[1] == verdicts(gone, MEASURES)[1]
    assert verdicts([{"step": 1, "loss/words": broken, "blind/words": 1.0}], MEASURES) == []


def test_the_only_loss_of_a_run_is_judged_by_its_total() -> None:
    (verdict,) = verdicts(records(6.0), {"loss": MEASURES["loss/views"]})
    assert verdict.sentence == "loss: 6.00 nats below its blind line (guessing, 9.00) after 370 steps"
