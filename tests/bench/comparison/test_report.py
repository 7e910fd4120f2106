"""The report of a comparison, from hand-made runs; and in a real browser."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from itertools import product

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from moe_search.bench.commands import app
from moe_search.bench.comparison.comparison import Comparison, collect
from moe_search.bench.comparison.report import as_markdown, make_report, write_comparison
from moe_search.bench.comparison.scores import excess_over_time, scores, times_to_target
from moe_search.bench.comparison.settings import SUITES, ComparisonSettings

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
    tables = ["report.html", "report.md", "runs.parquet", "curves.parquet"]
    assert [path.name for path in paths] == [*tables, "excess_over_time.png", "profiles.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[4:])
    pd.testing.assert_frame_equal(pd.read_parquet(paths[2]), made.runs)
    again = Comparison(pd.read_parquet(paths[2]), pd.read_parquet(paths[3]), made.seconds)
    assert page((again, settings)) == page((made, settings))


# Measures what was laid out, and tells it to the page around; it stands in a copy, for the report itself has no script.
MEASURE = """<script>
const all = (names) => [...document.querySelectorAll(names)];
const lines = (node, start, end) => {
  const range = document.createRange();
  range.setStart(node, start);
  range.setEnd(node, end);
  return new Set([...range.getClientRects()].map((each) => each.top)).size;
};
const words = all("th").flatMap((cell) => [...cell.firstChild.data.matchAll(/[^\\s-]+/g)].map((word) =>
  lines(cell.firstChild, word.index, word.index + word[0].length)));
const wide = all("details").map((each) => each.open = true) && all(".wide");
parent.document.body.setAttribute(`data-at-${innerWidth}`, JSON.stringify({
  page: document.documentElement.scrollWidth > innerWidth,
  hidden: all("figure svg").filter((each) => each.getBoundingClientRect().height < 100).length,
  cut: all("p, li, h2, h3, th, td").filter((each) => each.scrollWidth > each.clientWidth + 1).length,
  broken: words.filter((count) => count > 1).length,
  words: words.length > 100,
  scrolls: wide.some((each) => each.scrollWidth > each.clientWidth),
  sticky: all("th:first-child").every((each) => getComputedStyle(each).position == "sticky"),
  figures: all("figure svg").length,
}));
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_shows_the_report_on_a_desk_and_on_a_telephone(tmp_path):
    # Names as long as those of our solvers: a header that does not fit runs into the next one.
    made, settings = comparison(THREE | {"IteratedLocalSearch": THREE["quick"], "SimulatedAnnealing": THREE["slow"]})
    path, *_ = write_comparison(made, make_report(made, settings, "moe-search bench"), tmp_path)
    report = path.read_text(encoding="utf-8")
    framed = escape(report.replace("</body>", MEASURE))
    both = tmp_path / "both.html"
    # A window cannot be as narrow as a telephone, a frame can.
    frames = (f'<iframe srcdoc="{framed}" width="{width}" height="2400"></iframe>' for width in (1280, 390))
    both.write_text(f'<meta charset="utf-8"><body>{"".join(frames)}</body>', encoding="utf-8")
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet, "--timeout=20000"]
    size = ["--window-size=1800,2400", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, *size, "--dump-dom", both.as_uri()], capture_output=True, text=True, timeout=100)
    measured = {
        int(width): json.loads(unescape(text))
        for width, text in re.findall(r'data-at-(\d+)="([^"]*)"', done.stdout.split("<iframe")[0])
    }
    laid_out = {"page": False, "hidden": 0, "cut": 0, "broken": 0, "words": True, "sticky": True, "figures": 3}
    assert measured == {1280: laid_out | {"scrolls": False}, 390: laid_out | {"scrolls": True}}
    assert not re.search(r"(src|href)=.?https?://", report.split("<body>")[1])


def test_the_page_begins_with_who_came_first_and_the_peers_are_rows():
    made, settings = comparison(THREE)
    report = make_report(made, settings, "moe-search bench")
    (headline,) = report.headlines
    assert headline == (
        "QuadraticAssignment: first quick, 0 % above the best; then slow, 1.250 % above the best. "
        "0 of 3 pairs of solvers are told apart."
    )
    table = next(table for table in report.sections[0].tables if table.title == "Median excess by data set")
    assert table.columns == ("solver", "one", "two", "three", "four")
    assert [row[0] for row in table.rows] == ["quick", "slow", "failing"]


def test_the_excess_over_time_by_hand():
    made, _ = comparison({"a": {"one": [20, 10]}, "b": {"one": [30, 15, 10]}}, repetitions=1)
    (mine,) = scores(made)
    over_time = excess_over_time(made, mine)
    assert over_time.index[-1] == pytest.approx(1.0)
    for seconds, expected in ((0.05, [np.inf, np.inf]), (0.15, [1.0, 2.0]), (0.25, [0.0, 0.5]), (0.5, [0.0, 0.0])):
        assert over_time[over_time.index >= seconds].iloc[0].tolist() == expected


def test_runs_stand_beside_what_articles_report():
    best_known = {"qaplib[tai100a]": 21_044_752, "qaplib[tai40a]": 3_139_370, "qaplib[scr12]": 31_410}
    made, settings = comparison(
        {"ours": {"qaplib[tai100a]": [21_300_000, 21_255_200], "qaplib[tai40a]": 3_139_370, "qaplib[scr12]": 31_410}},
        best_known=best_known,
    )
    text = page((made, settings)).split("## Beside the literature")[1].split("##")[0]
    bma, kmm, da3 = text.split("Beside ")[1:]
    # BMA's mean value of 0.405 % above 21,052,466; ours twice 21,255,200, found after .2 and .22 s.
    assert "| qaplib[tai100a] | 21,044,752 | BMA | 0.442 % | 44.1 min |" in bma
    assert "|  |  | ours | 1.000 % | 0.21 s |" in bma
    assert "Expert Systems with Applications 42" in bma
    # KMM's mean value of 3,194,672, DA3's of 0.07 % above; neither ran tai100a.
    assert "| qaplib[tai40a] | 3,139,370 | BMA | 0.059 % | 8.1 min |" in bma
    assert "| qaplib[tai40a] | 3,139,370 | KMM | 1.762 % | 5.41 s |" in kmm
    assert "| qaplib[tai40a] | 3,139,370 | DA3 | 0.070 % | 48 s |" in da3
    assert "|  |  | ours | 0 % |" in da3
    assert "tai100a" not in kmm + da3
    assert "scr12" not in text
    assert "Beside the literature" not in page(comparison(THREE))


def test_the_command_prints_every_article_in_80_columns(monkeypatch, tmp_path):
    made, _ = comparison({"ours": {"qaplib[tai40a]": 3_139_370}}, best_known={"qaplib[tai40a]": 3_139_370})
    monkeypatch.setattr("moe_search.bench.comparison.comparison.run_comparison", lambda settings: made)
    result = CliRunner().invoke(app, ["bench", "--output", str(tmp_path / "out")], env={"COLUMNS": "80"})
    articles = result.output.split("Beside ")[1:]
    assert [text.split()[0] for text in articles] == ["BMA", "KMM", "DA3"]
    assert all(len(line) <= 80 for text in articles for line in text.split("written:")[0].splitlines())


def test_the_suite_of_the_literature_has_the_instances_of_the_articles(tmp_path):
    settings = ComparisonSettings("literature", qaplib=tmp_path)
    (pattern,) = SUITES["literature"].datasets
    assert "[tai40a,tai50a," in pattern
    assert pattern.endswith(",rou20]]")
    assert pattern.count("tai40a") == 1
    assert (settings.limit, settings.runs_of_each) == (60.0, 10)
