"""R² against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import r2_score

from bigssl.transfer.measures.regression import Predicted, r_squared

tables = arrays(np.float64, st.tuples(st.just(5), st.shared(st.integers(1, 3), key="width")),
                elements=st.sampled_from([-2.0, 0.0, 0.5, 3.0]))  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(tables, tables)
def test_it_is_that_of_scikit_learn(truth: np.ndarray, said: np.ndarray) -> None:
    found = r_squared([Predicted(*each) for each in zip(truth.tolist(), said.tolist(), strict=True)])
    assert found == pytest.approx(r2_score(truth, said))
