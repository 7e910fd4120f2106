import io
import logging
import re
import sys
import types

import pytest

import moe_search as ms
from moe_search.display import shortened

PROBLEM = ms.random_quadratic(20, seed=0)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def solve(**options):
    return ms.solve(PROBLEM, ms.LocalSearch(), ms.MaxIterations(300_000), seed=3, **options)


def what_counts(result):
    return [result.permutation.tolist(), result.bound, result.iterations, [p.value for p in result.trajectory]]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_file_gets_plain_lines_and_the_result_is_the_same(capsys):
    quiet = solve()
    assert capsys.readouterr() == ("", "")
    shown = solve(display=True)
    assert what_counts(shown) == what_counts(quiet)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "\x1b" not in printed.err
    first, second, *_, last = printed.err.splitlines()
    assert [first, second] == ["QuadraticAssignment(size=20, integral, symmetric)", f"by {shown.solver}"]
    assert last == f"{shown.outcome()}, 300,000 iterations in {shown.runtime:.3f} s"


def test_a_run_that_takes_long_prints_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr("moe_search.display.FIRST_LINE_AFTER", 0.001)
    solve(display=True)
    lines = capsys.readouterr().err.splitlines()[2:-1]
    assert lines
    for line in lines:
        assert re.fullmatch(r"time \S.*  value \S+  bound \S+  gap \S.*  iterations \S+", line)


@pytest.mark.parametrize(
    ("solver", "headline"),
    [
        (ms.TabuSearch(), "TabuSearch(tenure=(0.0, 8.0), aspiration=5.0)"),
        (ms.IteratedLocalSearch(), "IteratedLocalSearch(neighborhood='swap', improvement='first', strength=5, ..."),
        (ms.MultiStart(ms.MemeticSearch()), "MultiStart(solver=MemeticSearch, runs=4, n_jobs=-1, share_every=None)"),
        (
            ms.MultiStart([ms.TabuSearch(), ms.MemeticSearch()]),
            "MultiStart(solver=(TabuSearch, MemeticSearch), runs=4, n_jobs=-1, ...",
        ),
        (
            ms.MultiStart([ms.TabuSearch(), ms.LocalSearch()] * 9),
            "MultiStart(solver=(TabuSearch, LocalSearch, TabuSearch, LocalSearch, ...",
        ),
    ],
)
def test_what_searches_is_told_in_80_columns(solver, headline):
    assert shortened(f"by {solver!r}") == f"by {headline}"
    assert len(headline) <= 77


def test_runs_on_threads_are_shown_while_they_run(capsys, monkeypatch):
    monkeypatch.setattr("moe_search.display.FIRST_LINE_AFTER", 0.01)
    ms.solve(PROBLEM, ms.LocalSearch(), ms.MaxRuntime(0.3), display=True, n_jobs=2)
    _, headline, *lines, _ = capsys.readouterr().err.splitlines()
    assert headline == "by MultiStart(solver=LocalSearch, runs=2, n_jobs=2, share_every=None)"
    assert re.search(r"value \d\S+  bound \d\S+  gap \d.*  iterations [1-9]", lines[-1])


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("seconds", [0.3, None])
def test_a_terminal_gets_a_bar_of_one_line_and_the_outcome_stays(monkeypatch, columns, seconds):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "25"}.items():
        monkeypatch.setenv(name, value)
    stop = ms.MaxIterations(300_000) if seconds is None else ms.MaxRuntime(seconds)
    result = ms.solve(PROBLEM, ms.LocalSearch(), stop, seed=3, display=True)
    text = terminal.getvalue()
    assert text.endswith(f"{result.outcome()}, {result.iterations:,} iterations in {result.runtime:.3f} s\n")
    drawn = [ESCAPES.sub("", each) for each in re.split("[\r\n]", text) if "━" in each]
    assert drawn
    for line in drawn:
        assert len(line) <= columns
        assert len(re.findall("[━╸╺]", line)) >= 10
        assert re.search(r"value \S+ +bound \S+ +gap \S+( %)?" + r" +\S+ iterations" * (columns > 100), line)
        assert "…" not in line


def test_a_notebook_gets_one_table_that_is_written_anew(monkeypatch, capsys):
    written = []
    handle = types.SimpleNamespace(update=lambda data, raw: written.append(data))

    def display(data, raw, display_id):
        written.append(data)
        return handle

    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    result = solve(display=True)
    assert len(written) >= 2
    assert written[-1]["text/plain"].endswith(f"iterations in {result.runtime:.3f} s")
    assert f">{result.outcome()}, 300,000 iterations" in written[-1]["text/html"]
    assert "<table>" in written[0]["text/html"]
    assert capsys.readouterr() == ("", "")


def test_an_exception_ends_the_display_and_arrives(capsys):
    def fail(incumbent):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        solve(display=True, on_improvement=fail)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_the_logger_is_told_start_and_outcome(caplog):
    with caplog.at_level(logging.DEBUG, "moe_search"):
        result = solve()
    start, end = (each for each in caplog.records if each.name == "moe_search" and each.module == "api")
    assert (start.levelname, end.levelname) == ("DEBUG", "INFO")
    assert start.message == f"solving QuadraticAssignment(size=20, integral, symmetric) with {result.solver}"
    assert result.outcome() in end.message
    # A library leaves it to the program where its messages go.
    assert not logging.getLogger("moe_search").handlers
