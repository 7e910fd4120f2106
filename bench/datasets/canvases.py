"""Two images on one canvas: the construction of MultiMNIST, for images from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CanvasSplit:
    """The canvases of one split.

    Attributes
    ----------
    images : ndarray of float32, shape (N, canvas, canvas)
        Pixels in [0, 1], 1 is ink.
    labels : ndarray of int64, shape (N, 2)
        The class of the image in the upper left corner and of the one in the lower right corner.
    sources : ndarray of int64, shape (N, 2)
        Which source images each canvas was made of.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    sources: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Canvases:
    """Train, validation and test canvases that share no source image."""

    train: CanvasSplit
    validation: CanvasSplit
    test: CanvasSplit


@dataclass(frozen=True)
class CanvasCounts:
    """How many canvases of which size are made, and from which seed.

    Attributes
    ----------
    num_train, num_validation, num_test : int
        Canvases per split, at least 1.
    canvas : int
        Width and height of a canvas in pixels.
    seed : int
        Decides the pairs; not negative.

    Raises
    ------
    ValueError
        If a count or the seed is out of range.
    """

    num_train: int
    num_validation: int
    num_test: int
    canvas: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("num_train", "num_validation", "num_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")

    def require_corners(self, pixels: int) -> None:
        """Raise ValueError if both corners of the canvas are the same for images of `pixels` x `pixels`."""
        if self.canvas <= pixels:
            raise ValueError(
                f"canvas must be at least {pixels + 1} pixels for two corners to differ, got {self.canvas}"
            )


def overlay_pairs(
    pixels: NDArray[np.float32],
    classes: NDArray[np.int64],
    pools: Sequence[NDArray[np.int64]],
    counts: CanvasCounts,
    generator: np.random.Generator,
) -> Canvases:
    """Overlay pairs of images, shifted to opposite corners of a canvas.

    Sabour, Frosst and Hinton (2017), Dynamic routing between capsules, section 6: each pixel is the maximum of the two
    shifted images, and each corner is a classification task of its own.

    Parameters
    ----------
    pixels : ndarray of float32, shape (S, P, P)
        Source images, in [0, 1].
    classes : ndarray of int64, shape (S,)
    pools : sequence of three ndarrays of int64
        The sources of train, validation and test, at least two each: a canvas pairs two different members of its pool.
    counts : CanvasCounts
        With a canvas wider than P.
    generator : numpy.random.Generator
        Draws the pairs.

    Returns
    -------
    Canvases
    """
    numbers = (counts.num_train, counts.num_validation, counts.num_test)
    train, validation, test = (
        _overlay(pixels, classes, _pairs(pool, number, generator), counts.canvas)
        for pool, number in zip(pools, numbers, strict=True)
    )
    return Canvases(train, validation, test)


def _pairs(pool: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Ordered pairs of two different members of the pool, uniform over all such pairs."""
    first = generator.integers(len(pool), size=count)
    offset = generator.integers(1, len(pool), size=count)
    return pool[np.stack([first, (first + offset) % len(pool)], axis=1)]


def _overlay(
    pixels: NDArray[np.float32], classes: NDArray[np.int64], sources: NDArray[np.int64], canvas: int
) -> CanvasSplit:
    side = pixels.shape[1]
    upper_left = np.zeros((len(sources), canvas, canvas), dtype=np.float32)
    lower_right = np.zeros_like(upper_left)
    upper_left[:, :side, :side] = pixels[sources[:, 0]]
    lower_right[:, -side:, -side:] = pixels[sources[:, 1]]
    return CanvasSplit(np.maximum(upper_left, lower_right), classes[sources], sources)
