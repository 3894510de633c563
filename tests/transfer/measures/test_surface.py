"""VUS-PR against its definition in loops, and against numbers of the authors' program."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bigssl.transfer.measures.surface import vus_pr

lengths = st.shared(st.integers(2, 30), key="length")
levels = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0])


def slow(truth: np.ndarray, scores: np.ndarray, widest: int, thresholds: int) -> float:
    areas = []
    for width in range(widest + 1):
        runs, half = [], width // 2
        for step, value in enumerate(truth):
            if value and (step == 0 or not truth[step - 1]):
                runs.append([step, step])
            if value:
                runs[-1][1] = step
        weight = [1.0 if value else 0.0 for value in truth]
        wide: list[set[int]] = []
        for first, last in runs:
            for step in range(len(truth)):
                distance = max(first - step, step - last)
                if 0 < distance <= half:
                    weight[step] += math.sqrt(1 - distance / width)
            steps = {step for step in range(len(truth)) if first - half <= step <= last + half}
            if wide and wide[-1] & steps:
                steps |= wide.pop()
            wide.append(steps)
        weight = [min(1.0, each) for each in weight]
        before, area = 0.0, 0.0
        for number in range(thresholds):
            rank = int(number * (len(truth) - 1) / (thresholds - 1))
            level = sorted(scores, reverse=True)[rank]
            called = [step for step in range(len(truth)) if scores[step] >= level]
            caught = sum(weight[step] for step in called)
            positives = sum(truth) + sum(weight[step] for step in called if not truth[step]) / 2
            found = sum(1 for steps in wide if steps & set(called)) / len(wide)
            recall = min(caught / positives, 1) * found
            area += (recall - before) * caught / len(called)
            before = recall
        areas.append(area)
    return sum(areas) / len(areas)


@settings(max_examples=40, deadline=None)
@given(arrays(bool, lengths).filter(np.any), arrays(np.float64, lengths, elements=levels), st.integers(0, 7))
def test_it_is_its_definition(truth: np.ndarray, scores: np.ndarray, widest: int) -> None:
    assert vus_pr(truth, scores, widest, thresholds=9) == pytest.approx(slow(truth, scores, widest, 9), abs=1e-12)


KNOWN = {  # (seed, widest): of vus 0.0.6, `get_metrics(scores, truth, "vus", slidingWindow=widest)["VUS_PR"]`
    (0, 0): 0.382986538356, (0, 20): 0.522190800282, (1, 33): 0.508748885534, (2, 100): 0.375791041883,
}  # fmt: skip


@pytest.mark.parametrize(("seed", "widest"), KNOWN)
def test_it_is_what_the_authors_program_says(seed: int, widest: int) -> None:
    assert vus_pr(*series(seed), widest) == pytest.approx(KNOWN[seed, widest], abs=1e-9)


def series(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Anomalies of 1 to 60 steps, at the beginning and the end too, near each other and apart; scores that see them a
    little late, with ties."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(1500, dtype=bool)
    for first, length in [(0, 5), (200, 60), (275, 1), (700, 30), (1100, 20), (1125, 12), (1499, 1)][seed % 3 :]:
        truth[first : first + length] = True
    scores = rng.normal(size=1500) + 2 * np.roll(np.convolve(truth, np.ones(9) / 9, "same"), 4)
    return truth, np.round(scores, 1)
