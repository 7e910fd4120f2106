"""The check of CUDA where there is none: every part at its smallest, and what happens to one that fails."""

import csv
import math
import re
import subprocess
import sys

import pandas as pd
import pytest

from moe_search.bench.speed import cuda_check, cuda_parts
from moe_search.bench.speed.cuda_check import (
    COLUMNS,
    NEEDED,
    OPTIONAL,
    PARTS,
    Part,
    main,
    row,
    run_part,
)


def test_all_parts_on_the_cpu_at_their_smallest(tmp_path, capsys):
    assert main(["--device", "cpu", "--smallest", "--output", str(tmp_path)]) == 0, capsys.readouterr().out
    found = pd.read_parquet(tmp_path / "cuda_check.parquet")
    assert tuple(found.columns) == COLUMNS
    assert set(found["part"]) == {part.name for part in PARTS}
    text = (tmp_path / "cuda_check.md").read_text(encoding="utf-8")
    assert all(f"## {part.title}" in text for part in PARTS)
    assert "- Device: cpu: the numbers tell nothing of CUDA" in text
    assert "0 of " in text
    assert "## Failed" not in text


def test_the_parts_are_functions_whose_times_fit_into_the_whole():
    assert all(callable(getattr(cuda_parts, part.name)) for part in PARTS)
    assert cuda_check.TOTAL_SECONDS < 480
    assert all(part.seconds > cuda_check.TO_START for part in PARTS)


@pytest.mark.parametrize(
    ("part", "seconds", "note"),
    [
        (Part("nothing", "", 60.0), 60.0, "ended with 1: .*AttributeError: .*'nothing'"),
        (Part("comet", "", 60.0), 0.2, "not done after 0 seconds"),
    ],
)
def test_a_part_that_fails_or_hangs_is_a_row(part, seconds, note):
    [found] = run_part(part, "cpu", True, seconds)
    assert found["fine"] is False
    assert re.search(note, found["note"])


def test_the_rows_before_a_crash_are_kept(tmp_path):
    def rows():
        yield row("first", "measure", 1.5)
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="gone"):
        cuda_check.write_rows(rows(), tmp_path / "rows")
    assert '"first"' in (tmp_path / "rows").read_text(encoding="utf-8")


def test_what_ends_the_script_leaves_the_page_of_the_parts_before(tmp_path, monkeypatch):
    def run(part, *_):
        if part.name == "ranks":
            raise KeyboardInterrupt
        return [{"part": part.name} | row("n=4", "times", 2.0)]

    monkeypatch.setattr(cuda_check, "run_part", run)
    with pytest.raises(KeyboardInterrupt):
        main(["--device", "cpu", "--only", "comet", "--only", "ranks", "--output", str(tmp_path)])
    assert "| n=4 | times | 2 | - |" in (tmp_path / "cuda_check.md").read_text(encoding="utf-8")
    assert pd.read_parquet(tmp_path / "cuda_check.parquet")["part"].tolist() == ["comet"]


def test_the_page_tells_what_failed_first():
    rows = [
        {"part": "comet"} | row("n=4", "times", 2.0),
        {"part": "ranks"} | row("gloo", "map", fine=False, note="a | b"),
    ]
    text = cuda_check.page(rows, {"Device": "none"})
    assert "1 of 1 checks failed." in text
    assert text.index("**Failed**") < text.index("## COMET") < text.index("## Process groups")
    assert "| ranks | gloo | map | - | NO | a / b |" in text
    assert "| n=4 | times | 2 | - |  |" in text


def test_without_pyarrow_the_table_is_csv(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = cuda_check.write_table([{"part": "comet"} | row("n=4", "times", 2.0, True)], tmp_path)
    assert path.name == "cuda_check.csv"
    with path.open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {"part": "comet", "case": "n=4", "measure": "times", "value": "2.0", "fine": "True", "note": ""}
        ]
    assert math.isnan(row("", "")["value"])


def test_the_wheels_to_carry_are_all_that_is_imported(capsys):
    assert main(["--wheels"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*NEEDED, *(name for names in OPTIONAL.values() for name in names)))
    # What moe-search requires beside them, and what it can do without, is not there.
    absent = ["pandas", "pyarrow", "sklearn", "joblib", "ortools", "matplotlib", "jinja2", "rich", "typer", "pytest"]
    code = f"""
import sys
sys.modules |= dict.fromkeys({[*absent, "hypothesis", "transformers", "mixture_of_experts"]})
from moe_search.bench.speed import cuda_parts
for part in (cuda_parts.equality, cuda_parts.dispatch, cuda_parts.search, cuda_parts.comet):
    rows = list(part("cpu", True, float("inf")))
    assert rows and not any(each["fine"] is False for each in rows), rows
"""
    subprocess.run([sys.executable, "-c", code], check=True)
