"""The examples of the pages run, in the order in which they stand, and the pages name what there is."""

import re
from pathlib import Path

import numpy as np
import pytest
from packages import PACKAGES

import moe_search as ms

ROOT = Path(__file__).parents[1]

# They compile kernels, and one imports Lightning and Transformers.
pytestmark = pytest.mark.slow


def page(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def run(name):
    scope = {"__name__": name}
    for block in re.findall(r"```python\n(.*?)```", page(name), flags=re.DOTALL):
        exec(block, scope)
    return scope


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_getting_started(capsys):
    scope = run("getting_started.md")
    assert scope["search"].history[0].outcome == "committed"
    assert "gap" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")  # of Lightning and Transformers
def test_training(capsys):
    pytest.importorskip("lightning")
    pytest.importorskip("transformers")
    scope = run("training.md")
    assert [record.step for record in scope["search"].history] == [8, 16, 24, 32]
    reports = r"^(.*): test loss ([\d.]+), (\d) searches, new map at (\[.*\])$"
    shown = re.findall(reports, page("training.md"), flags=re.MULTILINE)
    printed = re.findall(reports, capsys.readouterr().out, flags=re.MULTILINE)
    assert [(name, *counts) for name, _, *counts in printed] == [(name, *counts) for name, _, *counts in shown]
    assert [float(loss) for _, loss, *_ in printed] == pytest.approx([float(loss) for _, loss, *_ in shown], rel=0.25)
    assert [record.outcome for record in scope["token_search"].history] == ["committed"] * 2
    losses = {name: float(loss) for name, loss, *_ in printed}
    assert max(losses[name] for name in ("with search", "Lightning", "Transformers")) < losses["gradient alone"] / 5
    code = "\n".join(re.findall(r"```(?:python|{.*} python)\n(.*?)```", page("training.md"), flags=re.DOTALL))
    assert max(map(len, code.splitlines())) <= 88


@pytest.mark.filterwarnings("ignore")  # of Transformers
def test_huggingface(capsys):
    pytest.importorskip("transformers")
    scope = run("huggingface.md")
    assert scope["loaded"].config.num_local_experts == 4
    assert "MoELayer(name='model.layers.0.mlp', num_experts=8, top_k=2, num_groups=1)" in capsys.readouterr().out


def test_dense_to_moe():
    pytest.importorskip("transformers")
    scope = run("dense_to_moe.md")
    assert scope["losses"][-1] < scope["losses"][0]
    assert len(scope["mixtures"]) == 2
    assert scope["moe"](scope["x"]).shape == (500, 32)


def test_study(capsys):
    scope = run("study.md")
    assert scope["times"].evaluate(20_000) == pytest.approx(len(scope["there"]) / 50)
    assert len(scope["there"]) > 15
    assert Path("run_times.svg").is_file()
    assert 0 < scope["found"].correlation < 1
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_refused():
    history = run("refused.md")["search"].history
    assert len(history) == 4
    assert {record.outcome for record in history} <= {"refused", "no improvement", "committed"}


def test_placement(capsys):
    scope = run("placement.md")
    shown = {line[:19].strip(): line[19:].split() for line in page("placement.md").splitlines() if "0." in line[:30]}
    rows = {row[0]: list(row[1:]) for row in scope["played"].table().rows}
    told = {
        name: [float(cell.strip("%").replace(",", "")) for cell in cells[:5]]
        for name, cells in rows.items()
        if "-" not in cells
    }
    assert [*told] == [name for name in shown if name in told]
    for name, numbers in told.items():
        page_numbers = [float(cell.strip("%").replace(",", "")) for cell in shown[name]]
        assert numbers == pytest.approx(page_numbers, rel=0.1, abs=0.01)
    printed = capsys.readouterr().out
    assert "of 576 slots" in printed
    assert scope["plan"].migrations < 60
    by_topic = scope["problem"].value(np.argsort(np.argsort(scope["topic"], kind="stable")))
    assert scope["seats"].value < 1.5 * by_topic < 0.2 * scope["in_order"] * 20_000
    assert {path.name for path in Path().iterdir()} == {"trace.npz", "loads.npz", "today.npz"}


def test_the_api_lists_every_name_that_no_package_has():
    packages = [getattr(ms, name) for name in PACKAGES]
    own = set(ms.__all__) - PACKAGES - {name for package in packages for name in package.__all__}
    assert own == set(re.findall(r"^   moe_search\.(\w+)$", page("api.rst"), flags=re.MULTILINE)) - PACKAGES


def test_every_benchmark_is_on_its_page():
    results = {path.name for path in (ROOT / "bench" / "results").glob("*.md")}
    assert results == set(re.findall(r"bench/results/(\w+\.md)", page("benchmarks.md")))


def test_code_is_not_wider_than_a_page():
    # The lines of training.md are still longer.
    names = {path.name for path in (ROOT / "docs").glob("*.md")} - {"training.md"}
    for name in (*sorted(names), "../CONTRIBUTING.md"):
        blocks = re.findall(r"^```(?:python|console|sh|text)\n(.*?)^```", page(name), flags=re.DOTALL | re.MULTILINE)
        assert [line for block in blocks for line in block.splitlines() if len(line) > 80] == [], name
