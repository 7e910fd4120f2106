"""MovieLens-100k: who watched which film, and how many stars it got."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moe_search.bench.datasets.data_files import find_file, package_folder
from moe_search.checks import require_integer

if TYPE_CHECKING:
    import pandas as pd

NAME = "MovieLens-100k"
HOW_TO_GET = (
    "it comes with recbole ('pip install --no-deps recbole==1.2.1'), or pass the folder with ml-100k.inter, "
    "ml-100k.user and ml-100k.item as path"
)
TRAIN_SHARE = 0.8
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Watches:
    """Pairs of a user and a film: rated ones, and sampled ones that the user never rated.

    Attributes
    ----------
    users, items : ndarray of int64, shape (N,)
        Numbers from 0 on, not the ids of the files.
    watched : ndarray of float32, shape (N,)
        1 for a rated pair, 0 for a sampled one: the target of the first task.
    ratings : ndarray of float32, shape (N,)
        1 to 5 stars, the target of the second task; 0 where `watched` is 0.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    watched: NDArray[np.float32]
    ratings: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class MovieLens:
    """Train, validation and test pairs, and what is known of users and films.

    Attributes
    ----------
    user_ids, item_ids : tuple of str
        The id in the files of every user and film.
    user_features : ndarray of float32, shape (U, features)
        Age, standardized; whether the gender is given as F; one column for each occupation.
    item_features : ndarray of float32, shape (I, features)
        Year, standardized, 0 where unknown; one column for each genre.
    """

    train: Watches
    validation: Watches
    test: Watches
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    user_features: NDArray[np.float32]
    item_features: NDArray[np.float32]
    user_feature_names: tuple[str, ...]
    item_feature_names: tuple[str, ...]


def load_movielens(path: str | os.PathLike[str] | None = None, *, negatives: int = 1, seed: int = 0) -> MovieLens:
    """Read MovieLens-100k as two tasks: was the film watched, and with how many stars was it rated.

    The ratings of every user are divided in the order of their time: the first 80 % are for training, the next 10 %
    for validation, the last 10 % for the test, rounded; ties stand in the order of the file. To every rating come
    sampled films that the user rated in no split, uniform, with repetition. The order of the pairs within a split is
    that of the users, and of time.

    Parameters
    ----------
    path : path-like, optional
        A folder with ``ml-100k.inter``, ``ml-100k.user`` and ``ml-100k.item``, the atomic files of RecBole; by default
        that of the installed wheel of recbole, which is not imported.
    negatives : int
        Sampled films a rating, not negative.
    seed : int
        Decides the sampled films; not negative.

    Notes
    -----
    Harper and Konstan (2015), The MovieLens datasets: history and context.
    """
    require_integer("negatives", negatives, 0)
    require_integer("seed", seed, 0)
    if path is None:
        path = package_folder("recbole", NAME, HOW_TO_GET) / "dataset_example" / "ml-100k"
    folder = Path(path)
    ratings = _read(folder, "inter", ("user_id", "item_id", "rating", "timestamp"))
    user_table = _read(folder, "user", ("user_id", "age", "gender", "occupation"))
    item_table = _read(folder, "item", ("item_id", "release_year", "class"))
    users = _numbers(ratings["user_id"], user_table["user_id"], "user")
    items = _numbers(ratings["item_id"], item_table["item_id"], "item")
    stars = ratings["rating"].astype(np.float32).to_numpy()
    times = ratings["timestamp"].astype(np.float64).to_numpy()

    order = np.lexsort((np.arange(len(users)), times, users))
    users, items, stars = users[order], items[order], stars[order]
    rated = np.zeros((len(user_table), len(item_table)), dtype=bool)
    rated[users, items] = True
    split = _split_by_user(users, len(user_table))
    generator = np.random.default_rng(seed)
    train, validation, test = (
        _with_negatives(users[split == s], items[split == s], stars[split == s], rated, negatives, generator)
        for s in range(3)
    )
    user_features, user_names = _features(
        {"age": _standardized(user_table["age"]), "female": user_table["gender"] == "F"},
        [{occupation} for occupation in user_table["occupation"]],
    )
    item_features, item_names = _features(
        {"year": _standardized(item_table["release_year"])}, [set(text.split()) for text in item_table["class"]]
    )
    return MovieLens(
        train,
        validation,
        test,
        tuple(user_table["user_id"]),
        tuple(item_table["item_id"]),
        user_features,
        item_features,
        user_names,
        item_names,
    )


def _read(folder: Path, suffix: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """Return an atomic file: tab-separated, columns named ``name:type``; all entries as texts."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            "MovieLens is read with pandas, which is missing: pip install 'moe-search[experiments]'"
        ) from error
    file = find_file(folder, (f"ml-100k.{suffix}",), NAME, HOW_TO_GET)
    # 3 is csv.QUOTE_NONE: quotation marks are part of titles.
    table = pd.read_csv(file, sep="\t", dtype=str, quoting=3, keep_default_na=False)
    table.columns = pd.Index([column.split(":")[0] for column in table.columns])
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"{file} must have the columns {', '.join(columns)}, got none named {', '.join(missing)}")
    if table.empty:
        raise ValueError(f"{file} must hold at least one row, got none")
    return table


def _numbers(ids: pd.Series, known: pd.Series, what: str) -> NDArray[np.int64]:
    """Return the row of every id in the table of all of its kind."""
    import pandas as pd

    if not known.is_unique:
        raise ValueError(f"ids of ml-100k.{what} must differ, got {known[known.duplicated()].iloc[0]} twice")
    numbers = pd.Index(known).get_indexer(pd.Index(ids)).astype(np.int64)
    if (numbers < 0).any():
        stray = ids.iloc[int(np.argmax(numbers < 0))]
        raise ValueError(f"ids of ml-100k.inter must stand in ml-100k.{what}, got {what} {stray}")
    return numbers


def _split_by_user(users: NDArray[np.int64], num_users: int) -> NDArray[np.int64]:
    """Return 0, 1 or 2 for train, validation and test, of ratings sorted by user and time."""
    counts = np.bincount(users, minlength=num_users)
    first = np.cumsum(counts) - counts
    rank = np.arange(len(users)) - first[users]
    ends = [np.round(share * counts)[users] for share in (TRAIN_SHARE, TRAIN_SHARE + VALIDATION_SHARE)]
    return (rank >= ends[0]).astype(np.int64) + (rank >= ends[1])


def _with_negatives(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    stars: NDArray[np.float32],
    rated: NDArray[np.bool_],
    negatives: int,
    generator: np.random.Generator,
) -> Watches:
    full = np.flatnonzero(rated[users].all(axis=1)) if negatives else np.empty(0)
    if len(full):
        raise ValueError(
            f"every user must leave a film unrated for negatives to be sampled, got user {users[int(full[0])]} "
            "with all rated; pass negatives=0"
        )
    sampled_users = np.repeat(users, negatives)
    sampled = generator.integers(rated.shape[1], size=len(sampled_users))
    while len(again := np.flatnonzero(rated[sampled_users, sampled])):
        sampled[again] = generator.integers(rated.shape[1], size=len(again))
    watched = np.concatenate([np.ones(len(users)), np.zeros(len(sampled))]).astype(np.float32)
    return Watches(
        np.concatenate([users, sampled_users]),
        np.concatenate([items, sampled]),
        watched,
        np.concatenate([stars, np.zeros(len(sampled), dtype=np.float32)]),
    )


def _features(numbers: dict[str, Any], words: list[set[str]]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Return some numbers and, for every word of a row, whether the row has it, as columns with their names."""
    known = sorted(set().union(*words))
    columns = [*numbers.values(), *([word in own for own in words] for word in known)]
    return np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1), (*numbers, *known)


def _standardized(texts: pd.Series) -> NDArray[np.float64]:
    """Return numbers less their mean, in standard deviations; 0 for a text that is none."""
    import pandas as pd

    values = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
    known = np.isfinite(values)
    if not known.any():
        return np.zeros(len(values))
    spread = values[known].std()
    return np.where(known, (values - values[known].mean()) / (spread if spread > 0 else 1.0), 0.0)
