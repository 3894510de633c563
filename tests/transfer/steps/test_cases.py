"""Forecasts that need no network against loops, and the linear one against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from bigssl.data.errors import DataError
from bigssl.transfer.steps.cases import LinearForecast, cases_of, errors_of, last_period, last_value, own_past
from bigssl.transfer.steps.series import LongSeries, Scale

PAST, FUTURE = 12, 5


@pytest.fixture
def lines() -> list[LongSeries]:
    rng = np.random.default_rng(0)
    values = (np.sin(np.arange(90) / 3)[:, None] * [2, 5] + rng.normal(size=(90, 2)) + [3, -40]).astype(np.float32)
    return [LongSeries("a", 0, values[:50]), LongSeries("b", 100, values[50:])]


def test_windows_are_what_stands_in_the_series(lines: list[LongSeries]) -> None:
    scale = Scale.of("", lines)
    found = cases_of(lines, scale, PAST, FUTURE, 4)
    begins = [(line, begin) for line in lines for begin in range(0, len(line) - PAST - FUTURE + 1, 4)]
    assert len(found) == len(begins) and found.groups == [line.name for line, _ in begins]
    for number, (line, begin) in enumerate(begins):
        whole = line.values[begin : begin + PAST + FUTURE]
        np.testing.assert_array_equal(found.seen[number], whole[:PAST])
        np.testing.assert_allclose(found.future[number].T, (whole[PAST:] - scale.mean) / scale.std, atol=1e-4)
    one = cases_of(lines[:1], scale, PAST, FUTURE, 4)
    assert [group.split("/")[1] for group in one.groups] == [str(begin * 4 // 17) for begin in range(len(one))]


def test_naive_forecasts_and_errors_are_those_of_loops(lines: list[LongSeries]) -> None:
    lines[0].values[[3, 11, 14, 20], [0, 1, 1, 0]] = np.nan
    lines[1].values[:8, 1] = np.nan
    found = cases_of(lines, Scale.of("", lines), PAST, FUTURE, 3)
    naive, seasonal = last_value(found), last_period(found, 4)
    errors = errors_of(naive, found)
    for window in range(len(found)):
        off = []
        for channel in range(2):
            past = found.past[window, channel].tolist()
            known = [value for value in past if value == value]
            filled = []
            for value in past:
                filled.append(value if value == value else (filled[-1] if filled else known[0]))
            assert naive[window, channel].tolist() == [known[-1]] * FUTURE
            assert seasonal[window, channel].tolist() == [filled[-4:][step % 4] for step in range(FUTURE)]
            off += [known[-1] - value for value in found.future[window, channel].tolist() if value == value]
        assert errors[0, window].item() == pytest.approx(sum(each**2 for each in off) / len(off), rel=1e-5)
        assert errors[1, window].item() == pytest.approx(sum(map(abs, off)) / len(off), rel=1e-5)


def test_the_linear_forecast_is_ridge_regression_of_what_its_past_lacks(lines: list[LongSeries]) -> None:
    found = cases_of(lines, Scale.of("", lines), PAST, FUTURE, 1)
    rows = torch.arange(0, len(found), 2)
    head = LinearForecast.fitted(own_past(found), found, rows, [3.0])
    past, future = found.past.double().numpy(), found.future.double().numpy()
    level = past.mean(2, keepdims=True)
    spread = np.sqrt(past.var(2, keepdims=True) + 1e-5)
    features = (past - level) / spread
    seen = features[rows].reshape(-1, PAST)
    x = np.concatenate([(features - seen.mean(0)) / seen.std(0) * spread, spread], 2)
    ridge = Ridge(alpha=3.0).fit(x[rows].reshape(-1, PAST + 1), (future - level)[rows].reshape(-1, FUTURE))
    want = level + ridge.predict(x.reshape(-1, PAST + 1)).reshape(future.shape)
    np.testing.assert_allclose(head(own_past(found), found), want, atol=1e-4)


def test_no_forecast_knows_the_future_that_is_judged(lines: list[LongSeries]) -> None:
    scale = Scale.of("", lines)
    train, before = (cases_of([line], scale, PAST, FUTURE, 1) for line in lines)
    head = LinearForecast.fitted(own_past(train), train, torch.arange(len(train)), [1.0, 10.0])
    lines[1].values[:] = np.where(np.arange(40)[:, None] >= PAST, 1e6, lines[1].values)
    after = cases_of(lines[1:], scale, PAST, FUTURE, 1)
    for forecast in (last_value, lambda cases: last_period(cases, 4), lambda cases: head(own_past(cases), cases)):
        assert torch.equal(forecast(before)[:1], forecast(after)[:1])
    assert not torch.equal(before.future[:1], after.future[:1])


def test_a_channel_without_a_past_is_not_judged_and_one_without_values_is_refused(lines: list[LongSeries]) -> None:
    scale = Scale.of("", lines)
    lines[0].values[:PAST, 1] = np.nan
    found = cases_of(lines[:1], scale, PAST, FUTURE, 50)
    assert found.future[0, 1].isnan().all() and errors_of(last_value(found), found).isfinite().all()
    with pytest.raises(DataError, match="of 1 windows to learn from none has a future without missing values"):
        lines[0].values[PAST + 1] = np.nan
        broken = cases_of(lines[:1], scale, PAST, FUTURE, 50)
        LinearForecast.fitted(own_past(broken), broken, torch.tensor([0]), [1.0])
    lines[0].values[PAST : PAST + FUTURE] = np.nan
    assert len(cases_of(lines[:1], scale, PAST, FUTURE, 50)) == 0
