"""Ranks in NumPy: those of SciPy."""

import numpy as np
import pytest
from scipy.stats import rankdata

from pcjax.metrics._ranks import row_ranks


@pytest.mark.parametrize("levels", [2, 7, 10**6])
@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (40, 5), (0, 3)])
def test_they_are_scipys(levels, shape, rng):
    values = rng.integers(0, levels, shape).astype(np.float32)
    np.testing.assert_array_equal(row_ranks(values), rankdata(values, axis=1))


def test_infinite_and_missing_numbers(rng):
    values = rng.normal(size=(4, 6))
    values[0, 2], values[1, :2], values[2, 3] = np.inf, -np.inf, np.nan
    np.testing.assert_array_equal(row_ranks(values), rankdata(values, axis=1))
