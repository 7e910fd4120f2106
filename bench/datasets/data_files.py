"""Files of data sets: where they lie, how to get them, the formats they come in, and how samples are divided."""

from __future__ import annotations

import gzip
import importlib.util
import io
import math
import os
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UNSIGNED_BYTES = 8
"""The third byte of an idx file of uint8 entries."""


def divide(count: int, shares: Sequence[float], generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Return the numbers below `count` in a random order, cut into parts of these shares and a last one of the rest."""
    return np.split(generator.permutation(count), [round(share * count) for share in np.cumsum(shares)])


def find_file(path: str | os.PathLike[str], names: Sequence[str], what: str, how_to_get: str) -> Path:
    """Return a path that is a file, or the first of some names (or patterns of names) in the folder that it is.

    The error where there is none names `what` is missing and says how to get it.
    """
    place = Path(path)
    if place.is_file():
        return place
    for name in names:
        if found := sorted(place.glob(name)):
            return found[-1]
    raise FileNotFoundError(f"{what} must lie at {place}, got no file {' or '.join(names)} there: {how_to_get}")


def package_folder(package: str, what: str, how_to_get: str) -> Path:
    """Return the folder of an installed package, which is not imported; `what` it brings is for the error."""
    # find_spec of a top-level package imports nothing.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"{what} must be installed or its path given, got no package {package}: {how_to_get}")
    return Path(spec.submodule_search_locations[0])


def read_members(name: str, data: bytes, wanted: Sequence[str]) -> dict[str, bytes]:
    """Return the members of an archive whose paths end in a wanted one, by that; nothing is unpacked to disk.

    The file name of the archive tells its format: .zip, .whl, or else a compressed tar. `data` is its content.
    """
    found: dict[str, bytes] = {}
    try:
        if name.endswith((".zip", ".whl")):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for path in archive.namelist():
                    found |= {each: archive.read(path) for each in wanted if f"/{path}".endswith(f"/{each}")}
        else:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for member in archive.getmembers():
                    content = archive.extractfile(member)
                    if content is not None:
                        found |= {each: content.read() for each in wanted if f"/{member.name}".endswith(f"/{each}")}
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{name} must be a .zip, .whl or .tar.gz file, it cannot be read as one: {error}") from error
    return found


def read_idx(path: str | os.PathLike[str], axes: int) -> NDArray[np.uint8]:
    """Read an idx file of bytes with so many axes, the format of MNIST; compressed if its name ends in ``.gz``."""
    file = Path(path)
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except EOFError as error:
        raise ValueError(f"{file} is a truncated gzip file") from error
    return parse_idx(data, str(file), axes)


def parse_idx(data: bytes, name: str, axes: int) -> NDArray[np.uint8]:
    """Return the bytes of an idx file with so many axes as an array; `name` is for the error."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != UNSIGNED_BYTES:
        raise ValueError(f"{name} is no idx file of bytes: it must start with 00 00 08, got {data[:3].hex(' ')}")
    if data[3] != axes:
        raise ValueError(f"{name} must hold an array of {axes} axes, got {data[3]}")
    start = 4 + 4 * axes
    shape = tuple(np.frombuffer(data[4:start].ljust(4 * axes, b"\0"), dtype=">u4").tolist())
    if len(data) != start + math.prod(shape):
        raise ValueError(
            f"{name} must hold {start + math.prod(shape)} bytes for shape {shape}, got {len(data)}: it is damaged"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
