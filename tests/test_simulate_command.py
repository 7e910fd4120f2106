"""The command that plays a trace through, from a file of loads to a page."""

import re

import numpy as np
import pytest
from ctrl_c import ctrl_c_after
from typer.testing import CliRunner

import moe_search as ms
from moe_search.bench.commands import app

pytestmark = pytest.mark.slow  # compiles kernels

RNG = np.random.default_rng(0)
TRACE = np.exp(RNG.normal(size=(2, 16)) + RNG.normal(scale=0.2, size=(12, 2, 16)).cumsum(axis=0))


def run(*arguments, columns=80):
    return CliRunner().invoke(app, ["simulate", *map(str, arguments)], env={"COLUMNS": str(columns)})


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.npz"
    np.savez(path, load=TRACE)
    return path


def test_a_table_of_80_columns_an_advice_and_a_page(trace, tmp_path):
    page = tmp_path / "page.html"
    arguments = ("--devices", 4, "--slots", 20, "--merge", 2, "--tolerance", "5%", "--budget", "10%", "--average", 0)
    told = run(trace, *arguments, "--report", page)
    assert told.exit_code == 0, told.stderr
    assert max(map(len, told.stdout.splitlines()[:-1])) <= 80
    rows = {re.split(r"  | \*", line.strip())[0]: line for line in told.stdout.splitlines()}
    policies = ["static", "EPLB anew", "search anew", "tolerance 5%", "budget 10%", "had it been known"]
    assert [name for name in rows if name in policies] == policies
    pairs = TRACE.reshape(6, 2, 2, 16).sum(axis=1)
    played = ms.serving.simulate(pairs, ms.Cluster(4, 5), [ms.serving.Policy(tolerance=0.05)])
    assert f"{played.outcomes[0].balance.mean():.4f}" in rows["tolerance 5%"]
    assert f"{played.outcomes[0].migrations.sum()}" == rows["tolerance 5%"].split()[-1]
    assert "Advised: " in told.stdout
    text = page.read_text()
    assert text.count("<svg") == 3
    assert "trace.npz, 2 windows in one: 2 layers, 4 rebalances" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--slots", 21), "--slots must be a multiple of --devices, 4, got 21"),
        (("--slots", 12), "the devices must have a slot for each of 16 experts, got 12 slots"),
        (("--slots", 20, "--merge", 6), "loads must hold 3 windows with any load at least"),
        (("--slots", 20, "--merge", 99), "--merge must be at most the "),
        (("--slots", 20, "--last", 11), "loads must hold 13 windows with any load at least"),
        (("--slots", 20, "--tolerance", "2"), "--tolerance must be a percentage such as 2%"),
        (("--slots", 20, "--budget", "-1%"), "--budget must be a percentage such as 2%"),
        (("--slots", 20, "--average", 1), "--average must be a number below 1, got 1"),
        (("--slots", 20, "--groups", 3), "num_groups must divide the number of experts, 16"),
        (("--slots", 20, "--report", "/"), "--report must be a file, got the folder /"),
    ],
)
def test_bad_arguments_end_in_a_line(trace, arguments, message):
    result = run(trace, "--devices", 4, *arguments)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert message in result.stderr


def test_ctrl_c_ends_it_without_a_table(trace):
    arguments = (trace, "--devices", 4, "--slots", 20)
    run(*arguments, "--turns", 1)
    with ctrl_c_after(0.3):
        result = run(*arguments, "--turns", 100_000)
    assert (result.exit_code, result.stdout) == (130, "")
