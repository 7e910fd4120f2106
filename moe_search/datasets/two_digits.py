"""Two handwritten digits on one canvas: two tasks, made from the 1,797 real images of scikit-learn."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

DIGIT_PIXELS = 8
"""Width and height of one source image."""

DARKEST = 16.0
"""The largest pixel value of a source image."""

TRAIN_SHARE = 0.6
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class TwoDigitsSplit:
    """The canvases of one split.

    Attributes
    ----------
    images : ndarray of float32, shape (N, canvas, canvas)
        Pixels in [0, 1], 1 is ink.
    labels : ndarray of int64, shape (N, 2)
        The digit in the upper left corner and the one in the lower right corner.
    sources : ndarray of int64, shape (N, 2)
        Which images of ``load_digits`` each canvas was made of.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    sources: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class TwoDigits:
    """Train, validation and test canvases that share no source image."""

    train: TwoDigitsSplit
    validation: TwoDigitsSplit
    test: TwoDigitsSplit


def load_two_digits(
    num_train: int = 4000,
    num_validation: int = 1000,
    num_test: int = 1000,
    *,
    canvas: int = 12,
    seed: int = 0,
) -> TwoDigits:
    """Overlay pairs of real handwritten digits, shifted to opposite corners of a canvas.

    The construction is that of MultiMNIST (Sabour, Frosst and Hinton 2017, section 6) with the 8 x 8 images of
    ``sklearn.datasets.load_digits``: each pixel is the maximum of the two shifted images, and each corner is a
    classification task of its own. The source images are divided first (60 % train, 20 % validation, 20 % test)
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
    TwoDigits

    Raises
    ------
    ValueError
        If a count, the canvas or the seed is out of range.
    """
    for name, count in (("num_train", num_train), ("num_validation", num_validation), ("num_test", num_test)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if canvas <= DIGIT_PIXELS:
        raise ValueError(f"canvas must be at least {DIGIT_PIXELS + 1} pixels for two corners to differ, got {canvas}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    digits = load_digits()
    pixels = (digits.images / DARKEST).astype(np.float32)
    classes = digits.target.astype(np.int64)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(pixels))
    first_validation = round(TRAIN_SHARE * len(order))
    first_test = round((TRAIN_SHARE + VALIDATION_SHARE) * len(order))
    train, validation, test = np.split(order, [first_validation, first_test])
    return TwoDigits(
        train=_overlay(pixels, classes, _pairs(train, num_train, generator), canvas),
        validation=_overlay(pixels, classes, _pairs(validation, num_validation, generator), canvas),
        test=_overlay(pixels, classes, _pairs(test, num_test, generator), canvas),
    )


def _pairs(pool: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Ordered pairs of two different members of the pool, uniform over all such pairs."""
    first = generator.integers(len(pool), size=count)
    offset = generator.integers(1, len(pool), size=count)
    return pool[np.stack([first, (first + offset) % len(pool)], axis=1)]


def _overlay(
    pixels: NDArray[np.float32], classes: NDArray[np.int64], sources: NDArray[np.int64], canvas: int
) -> TwoDigitsSplit:
    upper_left = np.zeros((len(sources), canvas, canvas), dtype=np.float32)
    lower_right = np.zeros_like(upper_left)
    upper_left[:, :DIGIT_PIXELS, :DIGIT_PIXELS] = pixels[sources[:, 0]]
    lower_right[:, -DIGIT_PIXELS:, -DIGIT_PIXELS:] = pixels[sources[:, 1]]
    return TwoDigitsSplit(np.maximum(upper_left, lower_right), classes[sources], sources)
