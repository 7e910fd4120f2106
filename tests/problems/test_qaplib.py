import csv

import numpy as np
import pytest
from qaplib_files import FOLDER, needs_qaplib

from moe_search.problems import (
    QuadraticAssignment,
    random_linear,
    random_quadratic,
    read_qaplib,
    read_qaplib_solution,
    write_qaplib,
    write_qaplib_solution,
)


@pytest.mark.parametrize("linear", [False, True])
def test_round_trip(tmp_path, linear):
    problem = random_quadratic(7, seed=1, symmetric=False, linear=linear)
    write_qaplib(tmp_path / "x.dat", problem)
    again = read_qaplib(tmp_path / "x.dat")
    for name in ("flow", "distance", "linear"):
        np.testing.assert_array_equal(getattr(again, name), getattr(problem, name))
    permutation = np.array([2, 0, 1, 5, 6, 3, 4])
    write_qaplib_solution(tmp_path / "x.sln", problem.value(permutation), permutation)
    read = read_qaplib_solution(tmp_path / "x.sln", problem)
    assert read[0] == problem.value(read[1])
    assert read[1].tolist() == permutation.tolist()


def test_a_third_matrix_is_the_linear_term(tmp_path):
    path = tmp_path / "x.dat"
    path.write_text("2\n0 3\n3 0\n\n0 2\n2 0\n\n100 10\n 7 1000")
    problem = read_qaplib(path)
    assert problem.value([1, 0]) == 12 + 10 + 7
    assert problem.value([0, 1]) == 12 + 100 + 1000


def test_an_inverse_in_a_file_is_told_by_its_value(tmp_path):
    problem = QuadraticAssignment([[0, 1, 2], [0, 0, 5], [0, 0, 0]], [[0, 10, 30], [70, 0, 20], [60, 90, 0]])
    # Facility 0 at location 1, 1 at 2, 2 at 0: 1 * 20 + 2 * 70 + 5 * 60. Read the other way: 1 * 60 + 2 * 90 + 5 * 10.
    path = tmp_path / "x.sln"
    path.write_text("3 460\n2 3 1\n")
    assert read_qaplib_solution(path, problem)[1].tolist() == [1, 2, 0]
    path.write_text("3 290\n2,3,1\n")
    with pytest.warns(UserWarning, match=r"x\.sln holds the facility of every location, which has the value 460"):
        value, permutation = read_qaplib_solution(path, problem)
    assert (value, permutation.tolist()) == (290, [2, 0, 1])
    assert problem.value(permutation) == 290
    path.write_text("3 461\n2 3 1\n")
    with pytest.raises(ValueError, match="states the value 461, but its permutation has 460, the inverse 290"):
        read_qaplib_solution(path, problem)
    with pytest.raises(ValueError, match=r"x\.sln must be a solution of size 4, got size 3"):
        read_qaplib_solution(path, random_quadratic(4, seed=0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a size n >= 1 first, got an empty file"),
        ("0", "expected a size n >= 1 first, got 0"),
        ("-3 1 2", "got -3"),
        ("2 1 2 3 4 5 6 7", "truncated: n = 2 needs 9 integers"),
        ("2 1 2 3 4 5 6 7 8 9", "of no right length: n = 2 needs 9 integers"),
        ("2" + 13 * " 1", "too long: n = 2 needs 9 integers .* or 13 with a linear matrix, got 14"),
        ("2 1 2 x 4 5 6 7 8", "expected integers only"),
        *(
            (f"2 1 2 {word} 4 5 6 7 8", "expected integers only")
            for word in ("3.5", "1_000", "nan", "0x1", "+-1", "１")
        ),
        ("1 99999999999999999999 1", "must hold integers of 64 bits, got 99999999999999999999"),
        ("1 1 -9223372036854775809", "must hold integers of 64 bits, got -9223372036854775809"),
    ],
)
def test_malformed_instances(tmp_path, text, message):
    path = tmp_path / "broken.dat"
    path.write_text(text, encoding="utf-8")
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
        read_qaplib_solution(path, random_quadratic(3, seed=0))


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_qaplib(tmp_path / "none.dat")


def test_only_what_the_format_holds_is_written(tmp_path):
    with pytest.raises(ValueError, match="problem must hold integers to be written as a QAPLIB file, got floats"):
        write_qaplib(tmp_path / "x.dat", random_quadratic(3, seed=0, integral=False))
    with pytest.raises(ValueError, match="must be one of 0"):
        write_qaplib_solution(tmp_path / "x.sln", 1, [1, 2])
    with pytest.raises(ValueError, match=r"permutation must be one of 0 .. n - 1, got \[0\.0, 1\.0\]"):
        write_qaplib_solution(tmp_path / "x.sln", 1, [0.0, 1.0])
    with pytest.raises(TypeError, match=r"value must be an integer, got 3\.7"):
        write_qaplib_solution(tmp_path / "x.sln", 3.7, [0, 1])
    with pytest.raises(TypeError, match="problem must be a QuadraticAssignment, got LinearAssignment"):
        write_qaplib(tmp_path / "x.dat", random_linear(2, seed=0))


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
        value, permutation = read_qaplib_solution(path, problem)
        assert isinstance(problem, QuadraticAssignment)
        assert problem.value(permutation) == value == int(table[path.stem]["sln_value"]), path.stem
