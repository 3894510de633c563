"""Against scikit-learn, and against the definition in loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from bigssl.transfer.measures.ranking import (
    StepCounts,
    area_under_curve,
    average_precision,
    marked_stretches,
    point_adjusted,
)

lengths = st.shared(st.integers(1, 40), key="length")
truths = arrays(bool, lengths)
ties = arrays(np.float64, lengths, elements=st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 2.0]))


@settings(max_examples=80, deadline=None)
@given(truths, ties)
def test_f1_and_average_precision_are_those_of_scikit_learn(truth: np.ndarray, scores: np.ndarray) -> None:
    called = scores > 0.3
    assert StepCounts.of(truth, called).f1 == pytest.approx(f1_score(truth, called, zero_division=0))
    if truth.any():
        assert average_precision(truth, scores) == pytest.approx(average_precision_score(truth, scores))
    if truth.any() and not truth.all():
        assert area_under_curve(truth, scores) == pytest.approx(roc_auc_score(truth, scores))


@settings(max_examples=80, deadline=None)
@given(truths, ties)
def test_a_stretch_with_one_called_step_is_called_whole(truth: np.ndarray, scores: np.ndarray) -> None:
    called = scores > 0.3
    wanted = list(called)
    for step in range(len(truth)):
        first = last = step
        while truth[step] and first > 0 and truth[first - 1]:
            first -= 1
        while truth[step] and last + 1 < len(truth) and truth[last + 1]:
            last += 1
        wanted[step] = bool(called[step] or (truth[step] and any(called[first : last + 1])))
    before = called.copy()
    assert point_adjusted(truth, called).tolist() == wanted and (called == before).all()
    inside = [step for first, stop in marked_stretches(truth) for step in range(first, stop)]
    assert inside == np.flatnonzero(truth).tolist()
