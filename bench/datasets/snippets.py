"""Sentences of film and product reviews with the sentiment that people read in them."""

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
PRODUCT_FILE = "amazonReviewSnippets_GroundTruth.txt"
ARCHIVES = ("vaderSentiment-0.5.zip", "vaderSentiment-0.5.tar.gz", INNER_ARCHIVE)
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


@dataclass(frozen=True)
class ProductSentences:
    """The sentences of product reviews.

    Attributes
    ----------
    scores : ndarray of float32, shape (N,)
        Mean sentiment of at least 20 readers, -4 (very negative) to 4 (very positive).
    reviews : ndarray of int64, shape (N,)
        The review that a sentence is of.
    """

    texts: tuple[str, ...]
    scores: NDArray[np.float32]
    reviews: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)


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
    file = find_file(path, (*ARCHIVES, TEXT_FILE), "the film review snippets", HOW_TO_GET)
    _, texts, scores = _parse(_text(file.name, file.read_bytes(), TEXT_FILE), TEXT_FILE, file)
    parts = divide(len(texts), (TRAIN_SHARE, VALIDATION_SHARE), np.random.default_rng(seed))
    return Snippets(*(SnippetSplit(tuple(texts[row] for row in rows), scores[rows], rows) for rows in parts))


def load_product_sentences(path: str | os.PathLike[str]) -> ProductSentences:
    """Read the sentences of product reviews that come with the source archive of vaderSentiment 0.5, in their order.

    3,708 sentences of 300 reviews of five products, each rated by about 20 people: Hutto and Gilbert (2014), VADER,
    after Hu and Liu (2004). Nothing is unpacked to disk.

    Parameters
    ----------
    path : path-like
        As for `load_snippets`, the text file being ``amazonReviewSnippets_GroundTruth.txt``, whose numbers are those of
        review and sentence, ``12_3``.
    """
    file = find_file(path, (*ARCHIVES, PRODUCT_FILE), "the sentences of product reviews", HOW_TO_GET)
    numbers, texts, scores = _parse(_text(file.name, file.read_bytes(), PRODUCT_FILE), PRODUCT_FILE, file)
    _, reviews = np.unique([number.partition("_")[0] for number in numbers], return_inverse=True)
    return ProductSentences(tuple(texts), scores, reviews.astype(np.int64))


def _text(name: str, data: bytes, wanted: str) -> str:
    """Return the text file, opening archives in archives by the names they have."""
    if name.endswith(".txt"):
        return data.decode("utf-8")
    members = read_members(name, data, (wanted, INNER_ARCHIVE))
    for member in (wanted, INNER_ARCHIVE):
        if member in members:
            return _text(member, members[member], wanted)
    raise ValueError(f"{name} must hold {wanted}, or {INNER_ARCHIVE} with it, got neither: {HOW_TO_GET}")


def _parse(text: str, name: str, file: Path) -> tuple[list[str], list[str], NDArray[np.float32]]:
    """Return numbers, texts and scores."""
    numbers, texts, scores = [], [], []
    for line_number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        parts = line.split("\t")
        try:
            number, score, snippet = parts
            scores.append(float(score))
        except ValueError as error:
            raise ValueError(
                f"line {line_number} of {name} in {file} must hold number, score and text between tabs, "
                f"got {len(parts)} parts: {line[:60]!r}"
            ) from error
        numbers.append(number)
        texts.append(snippet.strip())
    if len(texts) < 10:
        raise ValueError(f"{name} in {file} must hold at least 10 snippets to be split, got {len(texts)}")
    return numbers, texts, np.array(scores, dtype=np.float32)
