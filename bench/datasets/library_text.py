"""Texts that every installation has, of four kinds, as tokens: for small language models of several domains."""

from __future__ import annotations

import pydoc_data.topics
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_search.checks import require_integer

CODE = ("asyncio", "concurrent", "email", "importlib", "json", "logging", "multiprocessing", "unittest")
"""The packages of the standard library whose code is read."""


@dataclass(frozen=True, eq=False)
class LibraryText:
    """Sequences of tokens, kinds of text mixed.

    Attributes
    ----------
    train, test : ndarray of int64, shape (sequences, tokens)
        They share no sequence.
    vocabulary : int
        Number of tokens there are.
    """

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    vocabulary: int


def load_library_text(
    *, tokens: int, vocabulary: int, characters: int, sequences: int, test_share: float, seed: int = 0
) -> LibraryText:
    """Read documentation and code of Python, headers of numpy and tables of encodings, and take them apart.

    Parameters
    ----------
    tokens : int
        Tokens of a sequence.
    vocabulary : int
        Most tokens that byte pairs are merged to, at least the 256 bytes.
    characters, sequences : int
        The most of every kind.
    test_share : float
        The part of the sequences that is for tests.
    seed : int
        Draws which.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    for name, number in (("tokens", tokens), ("characters", characters), ("sequences", sequences)):
        require_integer(name, number)
    texts = {kind: "\n".join(parts)[:characters] for kind, parts in _texts().items()}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts.values(), trainer)
    rng, parts = np.random.default_rng(seed), []
    for text in texts.values():
        ids = np.array(tokenizer.encode(text).ids)
        cut = rng.permutation(ids[: len(ids) // tokens * tokens].reshape(-1, tokens))[:sequences]
        parts.append(np.split(cut, [round((1 - test_share) * len(cut))]))
    train, test = (np.concatenate([part[which] for part in parts]) for which in (0, 1))
    return LibraryText(train, rng.permutation(test), tokenizer.get_vocab_size())


def _texts() -> dict[str, list[str]]:
    library = Path(sysconfig.get_path("stdlib"))
    return {
        "documentation": [text for _, text in sorted(pydoc_data.topics.topics.items())],
        "code": _read(path for name in CODE for path in sorted((library / name).glob("*.py"))),
        "headers": _read(sorted(Path(np.get_include()).rglob("*.h"))),
        "tables": _read(sorted((library / "encodings").glob("*.py"))),
    }


def _read(paths: Iterable[Path]) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in paths]
