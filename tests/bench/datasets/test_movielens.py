import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from moe_search.bench.datasets import load_movielens

USERS = """user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token
7\t20\tM\tartist\t1
3\t40\tF\tdoctor\t2
9\t30\tM\tartist\t3
"""
ITEMS = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
50\t"Quoted\t1990\tDrama
51\tPlain\t1994\tComedy Drama
52\tNo year\t\tWar
53\tFour\t1992\tWar
54\tFive\t1992\tComedy
55\tSix\t1992\tComedy
"""
# The ten ratings of user 3 are of four films; user 9 rated nothing.
RATINGS = [("3", str(50 + i % 4), str(1 + i % 5), str(1000 - 10 * i)) for i in range(10)]
RATINGS += [("7", "50", "4", "5"), ("7", "54", "2", "5")]


@pytest.fixture
def folder(tmp_path):
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *("\t".join(row) for row in RATINGS)]
    (tmp_path / "ml-100k.inter").write_text("\n".join(lines) + "\n")
    (tmp_path / "ml-100k.user").write_text(USERS)
    (tmp_path / "ml-100k.item").write_text(ITEMS)
    return tmp_path


def positives(split, user):
    chosen = (split.watched == 1) & (split.users == user)
    return list(zip(split.items[chosen].tolist(), split.ratings[chosen].tolist(), strict=True))


def test_ratings_of_a_user_are_divided_in_the_order_of_time(folder):
    data = load_movielens(folder, negatives=0)
    # Latest first in the file: time runs from its last row of user 3 to its first.
    expected = [(i % 4, 1.0 + i % 5) for i in reversed(range(10))]
    user = data.user_ids.index("3")
    assert user == 1
    assert positives(data.train, user) == expected[:8]
    assert positives(data.validation, user) == expected[8:9]
    assert positives(data.test, user) == expected[9:]
    # Two ratings at one time stand in the order of the file.
    assert positives(data.train, 0) == [(0, 4.0), (4, 2.0)]


def test_sampled_films_are_rated_in_no_split(folder):
    data = load_movielens(folder, negatives=30, seed=1)
    rated = {(int(user), int(item)) for s in ("train", "validation", "test") for user, item in pairs(data, s, 1)}
    assert len(rated) == 4 + 2
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        assert (split.watched == 0).sum() == 30 * (split.watched == 1).sum()
        assert not rated & set(pairs(data, name, 0))
        assert np.all(split.ratings[split.watched == 0] == 0)
    assert {item for user, item in pairs(data, "train", 0) if user == 1} == {4, 5}


def pairs(data, name, watched):
    split = getattr(data, name)
    chosen = split.watched == watched
    return list(zip(split.users[chosen].tolist(), split.items[chosen].tolist(), strict=True))


def test_seed_decides_the_sampled_films_only(folder):
    first, again, other = (load_movielens(folder, negatives=3, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.train.items, again.train.items)
    assert not np.array_equal(first.train.items, other.train.items)
    assert pairs(first, "train", 1) == pairs(other, "train", 1)


def test_features(folder):
    data = load_movielens(folder)
    assert data.user_feature_names == ("age", "female", "artist", "doctor")
    spread = np.std([20, 40, 30])
    np.testing.assert_allclose(
        data.user_features, [[-10 / spread, 0, 1, 0], [10 / spread, 1, 0, 1], [0, 0, 1, 0]], rtol=1e-6
    )
    assert data.item_feature_names == ("year", "Comedy", "Drama", "War")
    assert data.item_features[:, 1:].tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0], [1, 0, 0]]
    assert data.item_features[2, 0] == 0  # its year is not known
    assert data.item_features[1, 0] == -data.item_features[0, 0] > 0
    assert data.item_ids == ("50", "51", "52", "53", "54", "55")


def test_types(folder):
    split = load_movielens(folder).train
    assert len(split) == 2 * 10
    assert (split.users.dtype, split.items.dtype) == (np.int64, np.int64)
    assert {split.watched.dtype, split.ratings.dtype} == {np.dtype(np.float32)}


def test_default_folder_is_that_of_the_installed_wheel(folder, tmp_path, monkeypatch):
    place = tmp_path / "site" / "recbole" / "dataset_example"
    place.mkdir(parents=True)
    (place / "ml-100k").symlink_to(folder)
    found = SimpleNamespace(submodule_search_locations=[str(place.parent)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "recbole" else None)
    assert len(load_movielens(negatives=0).train) == 10


def test_without_the_wheel_the_message_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps recbole==1.2.1"):
        load_movielens()
    with pytest.raises(FileNotFoundError, match=r"no file ml-100k.inter there: .*pip install --no-deps recbole"):
        load_movielens(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negatives": -1}, "negatives must be an integer >= 0, got -1"),
        ({"seed": -2}, "seed must be an integer >= 0, got -2"),
    ],
)
def test_arguments_out_of_range(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_movielens(folder, **arguments)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("inter", "rating:float", "stars:float", "must have the columns .*, got none named rating"),
        ("user", "3\t40", "4\t40", "must stand in ml-100k.user, got user 3"),
        ("item", "54\tFive", "56\tFive", "must stand in ml-100k.item, got item 54"),
        ("user", "9\t30", "3\t30", "ids of ml-100k.user must differ, got 3 twice"),
    ],
)
def test_damaged_files(folder, file, old, new, message):
    path = folder / f"ml-100k.{file}"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_movielens(folder)


def test_a_file_without_rows(folder):
    path = folder / "ml-100k.inter"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="must hold at least one row"):
        load_movielens(folder)


def test_a_user_who_rated_every_film_leaves_nothing_to_sample(folder):
    path = folder / "ml-100k.inter"
    path.write_text(path.read_text() + "".join(f"9\t{item}\t3\t1\n" for item in range(50, 56)))
    with pytest.raises(ValueError, match=r"leave a film unrated .* got user 2"):
        load_movielens(folder)
    assert len(load_movielens(folder, negatives=0).train) == 15
