import re

import pytest
from typer.testing import CliRunner

from moe_search.bench.commands import app


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    path, picture = folder / "report.html", folder / "curves.png"
    done = CliRunner().invoke(
        app, ["demo", "--smoke", "--device", "cpu", "--epochs", "1", "--report", str(path), "--picture", str(picture)]
    )
    assert done.exit_code == 0, done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    return done.stdout, path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_demo_prints_a_table_for_each_scenario(smoke):
    printed, _ = smoke
    for gate in ("Softmax", "Hash", "Hash+", "Top-k", "Top-k+", "COMET", "COMET+"):
        assert len(re.findall(rf"^ *{re.escape(gate)} .*\d\.\d{{3}} ± ", printed, flags=re.MULTILINE)) == 2, gate
    assert "Trained from scratch" in printed
    assert "Bad initialization" in printed
    assert len(re.findall(r"(Hash|Top-k|COMET)\+ against \1:", printed)) == 6
    assert "no significance test" in " ".join(printed.split())


def test_report_holds_what_was_printed(smoke):
    printed, page = smoke
    losses = re.findall(r"^ *(?:Hash|Top-k|COMET)\+? +(\d\.\d{3} ± \d\.\d{3})", printed, flags=re.MULTILINE)
    assert len(losses) == 12
    for loss in losses:
        assert f"<td>{loss}</td>" in page


def test_report_is_complete_and_self_contained(smoke):
    _, page = smoke
    assert page.count("<svg") == 5
    for fact in ("python", "moe-search", "torch", "numpy", "numba", "ortools", "0, 1", "cpu"):
        assert fact in page
    assert page.count("<h3>Every search</h3>") == 2
    # The gain comes first: a sentence, a picture, and only then the sections.
    sentence, picture, sections = (page.index(text) for text in ("After the map was scrambled, ", "<svg", "<h2>"))
    assert sentence < picture < sections
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in addresses)


@pytest.mark.cuda
def test_demo_on_cuda(tmp_path):
    path = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["demo", "--smoke", "--device", "cuda", "--epochs", "1", "--report", str(path)])
    assert done.exit_code == 0, done.output
    assert "cuda (" in path.read_text(encoding="utf-8")
