"""Two pieces of clothing on one canvas: two tasks, made from the 70,000 real images of Fashion-MNIST."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_search.bench.datasets.canvases import CanvasCounts, Canvases, overlay_pairs
from moe_search.bench.datasets.idx_file import read_idx

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist puts its files."""

BRIGHTEST = 255.0
VALIDATION_SHARE = 1 / 6
"""Of the training file: as many images as the test file holds."""


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

    The construction is that of MultiMNIST (`moe_search.bench.datasets.canvases.overlay_pairs`) with the images of
    Fashion-MNIST (Xiao, Rasul and Vollgraf 2017). Test canvases are made of the images of its test file; those of its
    training file are divided first (five sixths train, one sixth validation) and paired afterwards, so that no source
    image appears in two splits.

    Parameters
    ----------
    num_train, num_validation, num_test : int
        Canvases per split, at least 1.
    canvas : int
        Width and height of a canvas in pixels; wider than a source image, which is 28 / `shrink`.
    shrink : int
        Squares of `shrink` x `shrink` pixels of a source image are averaged into one; divides 28.
    seed : int
        Decides the split and the pairs; not negative.
    path : path-like, optional
        A folder with the four files ``train-images-idx3-ubyte.gz`` and so on, compressed or not; that of the Debian
        package dataset-fashion-mnist by default.

    Returns
    -------
    Canvases
        Sources are numbers of images of the training file and, after these, the test file.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message says how to get it.
    ValueError
        If a number is out of range, or a file is damaged.
    """
    counts = CanvasCounts(num_train, num_validation, num_test, canvas, seed)
    folder = DEBIAN_FOLDER if path is None else Path(path)
    train_pixels, train_classes = _read(folder, "train", shrink)
    test_pixels, test_classes = _read(folder, "t10k", shrink)
    counts.require_corners(train_pixels.shape[1])
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(train_pixels))
    train, validation = np.split(order, [round((1 - VALIDATION_SHARE) * len(order))])
    test = len(order) + np.arange(len(test_pixels))
    return overlay_pairs(
        np.concatenate([train_pixels, test_pixels]),
        np.concatenate([train_classes, test_classes]),
        (train, validation, test),
        counts,
        generator,
    )


def _read(folder: Path, name: str, shrink: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    images = read_idx(_find(folder, f"{name}-images-idx3-ubyte"), axes=3)
    labels = read_idx(_find(folder, f"{name}-labels-idx1-ubyte"), axes=1)
    count, height, width = images.shape
    if len(labels) != count:
        raise ValueError(f"{folder} must hold one label for each image of {name}, got {len(labels)} for {count}")
    if height != width:
        raise ValueError(f"images of {name} in {folder} must be square, got {height} x {width} pixels")
    if shrink < 1 or width % shrink:
        raise ValueError(f"shrink must divide the {width} pixels of an image, got {shrink}")
    side = width // shrink
    # In float32 from the start: the mean of all bytes in float64 would take gigabytes.
    shrunk = images.reshape(count, side, shrink, side, shrink).mean(axis=(2, 4), dtype=np.float32)
    return shrunk / np.float32(BRIGHTEST), labels.astype(np.int64)


def _find(folder: Path, name: str) -> Path:
    for file in (folder / f"{name}.gz", folder / name):
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"Fashion-MNIST must lie in {folder}, got no file {name}.gz there: install it with "
        "'apt-get install dataset-fashion-mnist' (Debian, Ubuntu), or pass the folder of its four files as path"
    )
