"""The handwritten digits that come with scikit-learn: 1,797 images of 8 x 8."""

from typing import Any

import numpy as np

from pcjax.data.examples import Arrays, Splits


def read(name: str) -> Splits:
    """Return the digits as one split, which `load` divides; the source takes no name."""
    del name
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = (digits.images / 16).astype(np.float32)[..., None]
    store = Arrays(images, digits.target.astype(np.int32))
    return Splits(store, None, None, tuple(str(name) for name in digits.target_names))
