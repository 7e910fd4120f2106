import csv

import numpy as np
import pytest
from qaplib_files import FOLDER, needs_qaplib

from moe_search.problems import (
    QuadraticAssignment,
    random_quadratic,
    read_qaplib,
    read_qaplib_solution,
    write_qaplib,
    write_qaplib_solution,
)


def test_round_trip(tmp_path):
    problem = random_quadratic(7, seed=1, symmetric=False)
    write_qaplib(tmp_path / "x.dat", problem)
    again = read_qaplib(tmp_path / "x.dat")
    np.testing.assert_array_equal(again.flow, problem.flow)
    np.testing.assert_array_equal(again.distance, problem.distance)
    write_qaplib_solution(tmp_path / "x.sln", 123, [2, 0, 1])
    value, permutation = read_qaplib_solution(tmp_path / "x.sln")
    assert (value, permutation.tolist()) == (123, [2, 0, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a size n >= 1 first, got an empty file"),
        ("0", "expected a size n >= 1 first, got 0"),
        ("-3 1 2", "got -3"),
        ("2 1 2 3 4 5 6 7", "truncated: n = 2 needs 9 integers"),
        ("2 1 2 3 4 5 6 7 8 9", "too long: n = 2 needs 9 integers"),
        ("2 1 2 x 4 5 6 7 8", "expected integers only"),
        ("2 1 2 3.5 4 5 6 7 8", "expected integers only"),
        ("1 99999999999999999999 1", "must hold integers of 64 bits, got 99999999999999999999"),
        ("1 1 -9223372036854775809", "must hold integers of 64 bits, got -9223372036854775809"),
    ],
)
def test_malformed_instances(tmp_path, text, message):
    path = tmp_path / "broken.dat"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_qaplib(path)
    assert "broken.dat" in str(caught.value)


def test_a_binary_file_is_malformed(tmp_path):
    path = tmp_path / "broken.dat"
    path.write_bytes(b"\x00\xff\xfe")
    with pytest.raises(ValueError, match=r"broken\.dat is no QAPLIB file"):
        read_qaplib(path)


@pytest.mark.parametrize("text", ["3 10 1 2", "3 10 1 2 2", "3 10 0 1 2", "3"])
def test_malformed_solutions(tmp_path, text):
    path = tmp_path / "broken.sln"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.sln"):
        read_qaplib_solution(path)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_qaplib(tmp_path / "none.dat")


def test_only_what_the_format_holds_is_written(tmp_path):
    with pytest.raises(ValueError, match="two integer matrices and no linear term"):
        write_qaplib(tmp_path / "x.dat", random_quadratic(3, seed=0, integral=False))
    with pytest.raises(ValueError, match="two integer matrices and no linear term"):
        write_qaplib(tmp_path / "x.dat", random_quadratic(3, seed=0, linear=True))
    with pytest.raises(ValueError, match="must be one of 0"):
        write_qaplib_solution(tmp_path / "x.sln", 1, [1, 2])


def test_a_qap_that_overflows_is_refused(tmp_path):
    path = tmp_path / "huge.dat"
    path.write_text(f"2 0 {2**40} {2**40} 0 0 {2**40} {2**40} 0")
    with pytest.raises(ValueError, match="overflows 64-bit integers"):
        read_qaplib(path)


@needs_qaplib
def test_every_published_solution_has_its_published_value():
    with (FOLDER / "best_known.csv").open() as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    solutions = sorted(FOLDER.glob("*.sln"))
    assert len(solutions) >= 25
    for path in solutions:
        problem = read_qaplib(path.with_suffix(".dat"))
        value, permutation = read_qaplib_solution(path)
        assert isinstance(problem, QuadraticAssignment)
        assert problem.value(permutation) == value == int(table[path.stem]["sln_value"]), path.stem
