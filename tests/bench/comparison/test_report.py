"""The report of a comparison, from hand-made runs; and in a real browser."""

import re
import shutil
import subprocess
from itertools import product

import numpy as np
import pandas as pd
import pytest

from moe_search.bench.comparison.comparison import Comparison, collect
from moe_search.bench.comparison.report import as_markdown, make_report, write_comparison
from moe_search.bench.comparison.scores import scores, times_to_target
from moe_search.bench.comparison.settings import ComparisonSettings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def comparison(values, *, repetitions=2, seconds=1.0, best_known=None, problem="QuadraticAssignment"):
    """Make a comparison of values[solver][dataset]: None is skipped, inf failed; a list is a curve, one value a tenth.

    Later repetitions are a little slower.
    """
    cells, rows = [], []
    for (solver, by_dataset), dataset in product(values.items(), next(iter(values.values()))):
        value = by_dataset[dataset]
        known = np.nan if best_known is None else best_known[dataset]
        cells.append({"dataset": dataset, "problem": problem, "size": 9, "best_known": known, "solver": solver})
        cells[-1]["reason"] = "not for me" if value is None else None
        if value is None or value == np.inf:
            continue
        for repetition, (step, point) in product(
            range(repetitions), enumerate(value if isinstance(value, list) else [value])
        ):
            rows.append(
                {
                    "dataset_name": dataset,
                    "solver_name": solver,
                    "idx_rep": repetition,
                    "time": 0.1 * (step + 1) * (1 + 0.1 * repetition),
                    "objective_value": float(point),
                    "objective_bound": np.nan,
                }
            )
    columns = ["dataset_name", "solver_name", "idx_rep", "time", "objective_value", "objective_bound"]
    settings = ComparisonSettings(repetitions=repetitions, seconds=seconds)
    return collect(cells, pd.DataFrame(rows, columns=columns), settings, {}), settings


def page(made):
    return as_markdown(make_report(*made, command="moe-search bench"))


THREE = {
    "quick": {"one": [12, 10], "two": [200, 200], "three": [31, 30], "four": [43, 40]},
    "slow": {"one": [15, 14, 13, 10], "two": [250, 220, 210, 210], "three": [40, 39, 30], "four": [50, 45, 41]},
    "failing": {"one": 20, "two": np.inf, "three": np.inf, "four": 80},
    "picky": {"one": 10, "two": None, "three": None, "four": None},
}


def test_scores_and_times_by_hand():
    made, _ = comparison(THREE)
    (mine,) = scores(made)
    assert mine.solvers == ("quick", "slow", "failing")
    assert mine.left_out == {"picky": "not for me"}
    assert mine.references.to_dict() == {"one": 10.0, "two": 200.0, "three": 30.0, "four": 40.0}
    medians = mine.by_dataset()
    assert medians.loc["two"].to_dict() == {"quick": 0.0, "slow": 0.05, "failing": np.inf}
    assert medians.loc["one", "failing"] == 1.0
    times = times_to_target(made, mine, 0.05)
    assert times.loc[("one", 0)].tolist() == pytest.approx([0.2, 0.4, np.inf])
    assert times.loc[("two", 1)].tolist() == pytest.approx([0.11, 0.33, np.inf])


def test_what_is_found_after_the_limit_does_not_count():
    made, _ = comparison({"late": {"one": [9, 1]}, "never": {"one": [5]}}, repetitions=1, seconds=0.1)
    runs = made.runs.set_index("solver")
    assert runs.loc["late", "value"] == 9
    made, _ = comparison({"late": {"one": [9, 1]}}, repetitions=1, seconds=0.01)
    assert list(made.runs["status"]) == ["late"]
    assert np.isinf(made.runs.loc[0, "value"])


def test_a_known_value_is_the_reference_unless_a_better_one_was_found():
    made, _ = comparison({"a": {"one": 10, "two": 10}}, best_known={"one": 8, "two": 12})
    assert scores(made)[0].references.to_dict() == {"one": 8.0, "two": 10.0}


def test_the_report_holds_ranks_tests_wins_and_faults():
    text = page(comparison(THREE))
    assert "QuadraticAssignment: 4 data sets" in text
    assert "picky (not for me)" in text
    assert re.search(r"\| quick \| 1\.\d\d \|", text)
    assert "Friedman's test over 4 data sets" in text
    assert "| quick | - |" in text
    assert "quick before slow" in text
    assert "| failing | two | 0 | failed |" in text
    assert "Runs: 26 done" not in text
    assert "Runs: 22 done, 4 failed, 6 skipped." in text


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"a": {"one": 1, "two": 2}}, "one solver only"),
        ({"a": {"one": 1}, "b": {"one": 2}}, "one data set only"),
        ({"a": {"one": 1, "two": 2}, "b": {"one": 1, "two": 2}}, "equal values on every data set"),
        ({name: {"one": np.inf, "two": np.inf} for name in "ab"}, "equal values on every data set"),
        ({"a": {"one": None, "two": 1}, "b": {"one": 1, "two": None}}, "No solver took every data set"),
        ({"a": {"one": 0, "two": 0}, "b": {"one": 1, "two": 0}}, "With two solvers Wilcoxon's test stands alone"),
        ({"a": {"one": -5, "two": -7}, "b": {"one": -4, "two": -7}}, "With two solvers Wilcoxon's test stands alone"),
    ],
)
def test_degenerate_comparisons_give_sentences(values, sentence):
    text = page(comparison(values))
    assert sentence in text
    assert "nan" not in text.lower()


def test_the_files_are_written(tmp_path):
    made, settings = comparison(THREE)
    paths = write_comparison(made, make_report(made, settings, "moe-search bench"), tmp_path)
    assert [path.name for path in paths] == ["report.html", "report.md", "runs.parquet", "curves.parquet"]
    pd.testing.assert_frame_equal(pd.read_parquet(paths[2]), made.runs)
    again = Comparison(pd.read_parquet(paths[2]), pd.read_parquet(paths[3]), made.seconds)
    assert page((again, settings)) == page((made, settings))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_shows_the_report(tmp_path):
    # Names as long as those of our solvers: a header that does not fit runs into the next one.
    made, settings = comparison(THREE | {"IteratedLocalSearch": THREE["quick"], "SimulatedAnnealing": THREE["slow"]})
    html, *_ = write_comparison(made, make_report(made, settings, "moe-search bench"), tmp_path)
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet, "--timeout=20000"]
    profile, picture = tmp_path / "profile", tmp_path / "report.png"
    # The script measures what was laid out; it stands in a copy, since the report itself has none.
    script = """<script>
    const wide = document.documentElement.scrollWidth > window.innerWidth;
    const hidden = [...document.querySelectorAll("figure svg")].filter(e => e.getBoundingClientRect().height < 100);
    const cut = [...document.querySelectorAll("p, li, h2, th, td")].filter(e => e.scrollWidth > e.clientWidth + 1);
    document.body.dataset.laidOut = JSON.stringify([wide, hidden.length, cut.length,
      document.querySelectorAll("figure svg").length, document.querySelectorAll("tbody tr").length]);
    </script></body>"""
    copy = tmp_path / "measured.html"
    copy.write_text(html.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    size = ["--window-size=1200,2400", f"--user-data-dir={profile}"]
    shown = [f"--screenshot={picture}", "--dump-dom", copy.as_uri()]
    done = subprocess.run([*command, *size, *shown], capture_output=True, text=True, timeout=100)
    assert picture.stat().st_size > 20_000, done.stderr
    if "data-laid-out" not in done.stdout:
        done = subprocess.run(
            [*command, *size, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=100
        )
    assert 'data-laid-out="[false,0,0,2,' in done.stdout
    assert "Friedman" in done.stdout
    assert not re.search(r"(src|href)=.?https?://", html.read_text(encoding="utf-8").split("<body>")[1])
