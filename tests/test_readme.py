"""Every command and example of the README runs, and prints what stands there; links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import moe_search as ms

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\s*```text\n(.*?)```", TEXT, flags=re.DOTALL)


def printed(example, folder):
    done = subprocess.run([sys.executable, "-c", example], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(text):
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,]*\.?\d+", text)]


def test_every_example_has_its_output():
    assert len(EXAMPLES) == TEXT.count("```python") == 3


def test_the_problem_is_solved_as_well_as_it_says(tmp_path):
    example, shown = EXAMPLES[0]
    value, bound, gap = numbers(printed(example, tmp_path))
    expected = numbers(shown)
    # How far a search gets in a second depends on the machine, a bound does not.
    assert value == pytest.approx(expected[0], rel=0.02)
    assert bound == expected[1]
    assert gap == pytest.approx(expected[2], abs=2.0)


def test_search_wins(tmp_path):
    example, shown = EXAMPLES[1]
    searches, losses = zip(*(numbers(line) for line in printed(example, tmp_path).splitlines()), strict=True)
    assert searches == (0, 6)
    assert losses[1] < losses[0] / 5
    # Machines round differently, and training makes it more.
    assert losses == pytest.approx([numbers(line)[1] for line in shown.splitlines()], rel=0.2)


def test_few_experts_migrate(tmp_path):
    example, shown = EXAMPLES[2]
    before, after, migrations, slots = numbers(printed(example, tmp_path))
    expected = numbers(shown)
    assert slots == expected[3]
    # How far a search gets in its two seconds depends on the machine.
    assert [before, after] == pytest.approx(expected[:2], abs=0.01)
    assert migrations == pytest.approx(expected[2], rel=0.15)


def test_the_solve_command_runs(tmp_path):
    (command,) = re.findall(r"`(moe-search solve [^`]*)`", TEXT)
    ms.write_qaplib(tmp_path / "FILE.dat", ms.random_quadratic(9, seed=0))
    tool = Path(sys.executable).with_name("moe-search")
    done = subprocess.run([tool, *shlex.split(command)[1:]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("value", "bound", "gap"):
        assert word in done.stdout


def test_make_has_the_targets_named():
    targets = set(re.findall(r"^make ([\w-]+)", TEXT, flags=re.MULTILINE)) | set(re.findall(r"`make ([\w-]+)", TEXT))
    assert targets == {"demo", "test", "bench", "docs"}
    for target in targets:
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_figures_are_those_of_the_results():
    """The ratios of a benchmark are the ones that the README tells, but for rounding."""
    for name, told in (("tabu_speed", "8.1 / 15 / 31 times"), ("transport_speed", "9 to 56 times")):
        assert f"[{told}](bench/results/{name}.md)" in TEXT
        rows = [row.split("|") for row in (ROOT / "bench" / "results" / f"{name}.md").read_text().splitlines()[4:]]
        ratios = [float(row[4]) for row in rows if len(row) > 4]
        shown = numbers(told)
        exact = ratios if "/" in told else [min(ratios), max(ratios)]
        assert shown == pytest.approx(exact, rel=0.05)
