"""Two handwritten digits on one canvas: two tasks, made from the 1,797 real images of scikit-learn."""

import numpy as np
from sklearn.datasets import load_digits

from moe_search.bench.datasets.canvases import CanvasCounts, Canvases, overlay_pairs

DIGIT_PIXELS = 8
"""Width and height of one source image."""

DARKEST = 16.0
"""The largest pixel value of a source image."""

TRAIN_SHARE = 0.6
VALIDATION_SHARE = 0.2


def load_two_digits(
    num_train: int = 4000,
    num_validation: int = 1000,
    num_test: int = 1000,
    *,
    canvas: int = 12,
    seed: int = 0,
) -> Canvases:
    """Overlay pairs of real handwritten digits, shifted to opposite corners of a canvas.

    The construction is that of MultiMNIST (`moe_search.bench.datasets.canvases.overlay_pairs`) with the 8 x 8 images of
    ``sklearn.datasets.load_digits``. The source images are divided first (60 % train, 20 % validation, 20 % test)
    and paired afterwards, so that no source image appears in two splits.

    Parameters
    ----------
    num_train, num_validation, num_test : int
        Canvases per split, at least 1.
    canvas : int
        Width and height of a canvas in pixels; from 9 (the corners must differ) upwards. The digits overlap by
        ``16 - canvas`` pixels in each direction where that is positive.
    seed : int
        Decides the split and the pairs; not negative.

    Returns
    -------
    Canvases
        Sources are numbers of images of ``load_digits``.

    Raises
    ------
    ValueError
        If a count, the canvas or the seed is out of range.
    """
    counts = CanvasCounts(num_train, num_validation, num_test, canvas, seed)
    counts.require_corners(DIGIT_PIXELS)
    digits = load_digits()
    pixels = (digits.images / DARKEST).astype(np.float32)
    classes = digits.target.astype(np.int64)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(pixels))
    first_validation = round(TRAIN_SHARE * len(order))
    first_test = round((TRAIN_SHARE + VALIDATION_SHARE) * len(order))
    pools = np.split(order, [first_validation, first_test])
    return overlay_pairs(pixels, classes, pools, counts, generator)
