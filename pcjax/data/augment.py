"""Random changes to a batch of images."""

import numpy as np
from jaxtyping import Bool, Int, Shaped


def random_crop(
    images: Shaped[np.ndarray, "n h w c"], offsets: Int[np.ndarray, "n 2"], *, padding: int
) -> Shaped[np.ndarray, "n h w c"]:
    """Cut a window of the image's own size out of every image with zeros around it.

    y[i, a, b] = x[i, a + offsets[i, 0] - padding, b + offsets[i, 1] - padding], which is 0 outside
    the image.

    Args:
      images: (n, height, width, channels).
      offsets: (n, 2), from 0 to 2 padding: where each window begins; `padding` leaves an image
        unchanged.
      padding: rows and columns of zeros on each side.

    Returns:
      The windows, in new memory.

    >>> images = np.arange(1, 5).reshape(1, 2, 2, 1)
    >>> random_crop(images, np.array([[2, 1]]), padding=1)[0, :, :, 0]
    array([[3, 4],
           [0, 0]])
    """
    n, height, width, channels = images.shape
    padded = np.zeros((n, height + 2 * padding, width + 2 * padding, channels), images.dtype)
    padded[:, padding : padding + height, padding : padding + width] = images
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, (height, width, channels), axis=(1, 2, 3)
    )
    return windows[np.arange(n), offsets[:, 0], offsets[:, 1], 0]


def horizontal_flip(
    images: Shaped[np.ndarray, "n h w c"], flipped: Bool[np.ndarray, " n"]
) -> Shaped[np.ndarray, "n h w c"]:
    """Exchange left and right in some of the images.

    Args:
      images: (n, height, width, channels).
      flipped: (n,), True for the images to flip.

    Returns:
      The images, in new memory.

    >>> horizontal_flip(np.arange(4).reshape(2, 1, 2, 1), np.array([True, False]))[..., 0]
    array([[[1, 0]],
           [[2, 3]]])
    """
    result = images.copy()
    result[flipped] = images[flipped, :, ::-1]
    return result
