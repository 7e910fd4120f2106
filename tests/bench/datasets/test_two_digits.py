import numpy as np
import pytest
from sklearn.datasets import load_digits

from moe_search.bench.datasets import load_two_digits


def test_no_source_image_is_in_two_splits():
    data = load_two_digits(num_train=3000, num_validation=800, num_test=800, seed=3)
    train, validation, test = (set(split.sources.ravel()) for split in (data.train, data.validation, data.test))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(train) > 1000  # the pairs draw on the whole share, not on a corner of it
    assert len(train | validation | test) <= 1797


def test_canvas_is_the_pixelwise_maximum_of_both_shifted_sources():
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


def test_shapes_types_and_range():
    data = load_two_digits(num_train=30, num_validation=20, num_test=10, canvas=12)
    for split, count in ((data.train, 30), (data.validation, 20), (data.test, 10)):
        assert len(split) == count
        assert split.images.shape == (count, 12, 12)
        assert split.images.dtype == np.float32
        assert split.labels.shape == (count, 2)
        assert 0 <= split.images.min() < split.images.max() <= 1


def test_seed_decides_everything():
    first, again, other = (load_two_digits(50, 20, 20, seed=seed) for seed in (7, 7, 8))
    assert np.array_equal(first.train.images, again.train.images)
    assert np.array_equal(first.test.sources, again.test.sources)
    assert not np.array_equal(first.train.sources, other.train.sources)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train must be at least 1, got 0"),
        ({"num_test": -3}, "num_test must be at least 1, got -3"),
        ({"canvas": 8}, "canvas must be at least 9 pixels"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_two_digits(**arguments)
