"""The idx format of MNIST and its relatives: a big-endian header and bytes."""

import gzip
import math
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UNSIGNED_BYTES = 8
"""The third byte of an idx file of uint8 entries."""


def read_idx(path: str | os.PathLike[str], axes: int) -> NDArray[np.uint8]:
    """Read an idx file of bytes, compressed if its name ends in ``.gz``.

    Parameters
    ----------
    path : path-like
    axes : int
        How many axes the array must have.

    Returns
    -------
    ndarray of uint8

    Raises
    ------
    OSError
        If the file cannot be read, or is no gzip file.
    ValueError
        If it is no idx file of bytes, has another number of axes, or is not as long as its header says.
    """
    file = Path(path)
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except EOFError as error:
        raise ValueError(f"{file} is a truncated gzip file") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != UNSIGNED_BYTES:
        raise ValueError(f"{file} is no idx file of bytes: it must start with 00 00 08, got {data[:3].hex(' ')}")
    if data[3] != axes:
        raise ValueError(f"{file} must hold an array of {axes} axes, got {data[3]}")
    start = 4 + 4 * axes
    shape = tuple(np.frombuffer(data[4:start].ljust(4 * axes, b"\0"), dtype=">u4").tolist())
    if len(data) != start + math.prod(shape):
        raise ValueError(
            f"{file} must hold {start + math.prod(shape)} bytes for shape {shape}, got {len(data)}: it is damaged"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
