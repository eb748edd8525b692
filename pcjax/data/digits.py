"""The handwritten digits that come with scikit-learn: 1,797 images of 8 x 8."""

import importlib.metadata

import numpy as np

from pcjax.data.examples import Arrays, Splits

PATH = "sklearn/datasets/data/digits.csv.gz"


def read(name: str) -> Splits:
    """Return the digits as one split, which `load` divides; the source takes no name."""
    del name
    # Importing scikit-learn would take two seconds, and its file is all that is needed.
    path = importlib.metadata.distribution("scikit-learn").locate_file(PATH)
    rows = np.loadtxt(str(path), np.float32, delimiter=",")
    store = Arrays((rows[:, :-1] / 16).reshape(-1, 8, 8, 1), rows[:, -1].astype(np.int32))
    return Splits(store, None, None, tuple("0123456789"))
