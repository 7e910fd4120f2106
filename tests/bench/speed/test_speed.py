import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from moe_search.bench.speed import __main__ as speed


def test_speed_benchmarks_are_found_without_importing_them(tmp_path):
    (tmp_path / "one.py").write_text('raise RuntimeError\nTITLE = "x"\ndef measure(qaplib, seconds): ...\n')
    (tmp_path / "two.py").write_text('TITLE: str = "x"\ndef measure(qaplib, seconds): ...\n')
    (tmp_path / "no_title.py").write_text("def measure(qaplib, seconds): ...\n")
    (tmp_path / "no_measure.py").write_text('TITLE = "x"\n')
    assert speed.speed_benchmarks(tmp_path) == ("one", "two")
    assert "local_search_speed" in speed.speed_benchmarks()
    assert "speed" not in speed.speed_benchmarks()


def test_measurements_are_written_with_the_facts(tmp_path):
    measured = pd.DataFrame({"instance": ["a|b", "c"], "ours": [1234567.0, 0.012345], "bar": [6.0, np.nan]})
    measured["met"] = [True, False]
    table = speed.as_table("A title", measured)
    assert table.rows == (("a|b", "1,234,567", "6", "yes"), ("c", "0.01235", "-", "no"))
    speed.write_measurements("name", table, measured, {"Processor": "mine"}, tmp_path / "results", "- A note.\n")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "results" / "name.parquet"), measured)
    text = (tmp_path / "results" / "name.md").read_text()
    assert "| a\\|b | 1,234,567 | 6 | yes |" in text
    assert "\n\n- A note.\n- Processor: mine\n" in text


def test_a_benchmark_that_raises_does_not_keep_the_others_from_running(monkeypatch, tmp_path):
    def broken(qaplib, seconds):
        raise RuntimeError("the kernels disagree")

    monkeypatch.setattr("moe_search.bench.speed.local_search_speed.measure", broken)
    monkeypatch.setattr(
        "moe_search.bench.speed.tabu_speed.measure", lambda qaplib, seconds: pd.DataFrame({"ours": [1.0]})
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench" / "results").mkdir(parents=True)
    with pytest.raises(SystemExit) as ended:
        run(["--only", "local_search_speed", "--only", "tabu_speed"])
    assert ended.value.code == 1
    # What is checked in, in bench/results, is left alone unless --output names it.
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert written == {"moe-search-speed/tabu_speed.parquet", "moe-search-speed/tabu_speed.md"}


def run(arguments):
    import typer

    app = typer.Typer()
    app.command()(speed.main)
    raise SystemExit(CliRunner().invoke(app, arguments).exit_code)


def test_unknown_benchmarks_and_folders_are_refused(tmp_path):
    for arguments in (["--only", "magic"], ["--qaplib", "/nowhere"]):
        with pytest.raises(SystemExit) as ended:
            run([*arguments, "--output", str(tmp_path / "results")])
        assert ended.value.code == 2
    assert not (tmp_path / "results").exists()
