"""Sentences of film reviews with the sentiment that people read in them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_search.bench.datasets.data_files import divide, find_file, read_members
from moe_search.checks import require_integer

TEXT_FILE = "movieReviewSnippets_GroundTruth.txt"
INNER_ARCHIVE = "hutto_ICWSM_2014.tar.gz"
FILES = ("vaderSentiment-0.5.zip", "vaderSentiment-0.5.tar.gz", INNER_ARCHIVE, TEXT_FILE)
HOW_TO_GET = (
    "get vaderSentiment-0.5.zip with "
    "'pip download --no-deps --no-binary :all: --no-build-isolation vaderSentiment==0.5'"
)
TRAIN_SHARE = 0.8
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class SnippetSplit:
    """The snippets of one split.

    Attributes
    ----------
    scores : ndarray of float32, shape (N,)
        Mean sentiment of about 20 readers, -4 (very negative) to 4 (very positive).
    sources : ndarray of int64, shape (N,)
        Rows of the file, from 0.
    """

    texts: tuple[str, ...]
    scores: NDArray[np.float32]
    sources: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Snippets:
    """Train, validation and test snippets that share no row of the file."""

    train: SnippetSplit
    validation: SnippetSplit
    test: SnippetSplit


def load_snippets(path: str | os.PathLike[str], *, seed: int = 0) -> Snippets:
    """Read the film review snippets that come with the source archive of vaderSentiment 0.5.

    10,605 sentences of rotten.tomatoes.com, each rated by about 20 people: Hutto and Gilbert (2014), VADER, after Pang
    and Lee (2004). Nothing is unpacked to disk.

    Parameters
    ----------
    path : path-like
        ``vaderSentiment-0.5.zip`` (or the same as ``.tar.gz``), the archive ``hutto_ICWSM_2014.tar.gz`` in it, or the
        text file ``movieReviewSnippets_GroundTruth.txt`` itself: a line a snippet, with number, score and text between
        tabs; or the folder of one of them.
    seed : int
        Decides the split, 80 % train, 10 % validation, 10 % test; not negative.
    """
    require_integer("seed", seed, 0)
    file = find_file(path, FILES, "the film review snippets", HOW_TO_GET)
    texts, scores = _parse(_text(file.name, file.read_bytes()), file)
    parts = divide(len(texts), (TRAIN_SHARE, VALIDATION_SHARE), np.random.default_rng(seed))
    return Snippets(*(SnippetSplit(tuple(texts[row] for row in rows), scores[rows], rows) for rows in parts))


def _text(name: str, data: bytes) -> str:
    """Return the text file, opening archives in archives by the names they have."""
    if name.endswith(".txt"):
        return data.decode("utf-8")
    members = read_members(name, data, (TEXT_FILE, INNER_ARCHIVE))
    for member in (TEXT_FILE, INNER_ARCHIVE):
        if member in members:
            return _text(member, members[member])
    raise ValueError(f"{name} must hold {TEXT_FILE}, or {INNER_ARCHIVE} with it, got neither: {HOW_TO_GET}")


def _parse(text: str, file: Path) -> tuple[list[str], NDArray[np.float32]]:
    texts, scores = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        parts = line.split("\t")
        try:
            _, score, snippet = parts
            scores.append(float(score))
        except ValueError as error:
            raise ValueError(
                f"line {number} of {TEXT_FILE} in {file} must hold number, score and text between tabs, "
                f"got {len(parts)} parts: {line[:60]!r}"
            ) from error
        texts.append(snippet.strip())
    if len(texts) < 10:
        raise ValueError(f"{TEXT_FILE} in {file} must hold at least 10 snippets to be split, got {len(texts)}")
    return texts, np.array(scores, dtype=np.float32)
