import re

import pytest
from typer.testing import CliRunner

from moe_search.bench.commands import app

ROWS = (
    *(f"slots, {start}, {gate}" for start in ("scrambled", "fresh") for gate in ("Hash", "Top-k", "COMET")),
    *("devices, drifting", "devices, steady", "neurons, 4 of 16", "neurons, 12 of 16"),
)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    path, picture = folder / "report.html", folder / "overview.png"
    done = CliRunner().invoke(
        app, ["demo", "--smoke", "--device", "cpu", "--epochs", "1", "--report", str(path), "--picture", str(picture)]
    )
    assert done.exit_code == 0, done.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    return done.stdout, path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_demo_prints_a_sentence_of_each_part_and_one_table(smoke):
    printed, page = smoke
    assert len(re.findall("^(?:Slots|Devices|Neurons): ", printed, flags=re.MULTILINE)) == 3
    shown = printed[printed.index("With search and without") :]
    for row in ROWS:
        (numbers,) = re.findall(rf"^ *{re.escape(row)} +(?:test loss|balance|accuracy) +(.*)$", shown, re.MULTILINE)
        for number in re.findall(r"\d\.\d{3} ± \d\.\d{3}|\d\.\d{3}", numbers):
            assert f"{number}</td>" in page
    lines = printed.splitlines()
    assert len(lines) < 50
    assert max(len(line.rstrip()) for line in lines if not line.startswith("Report: ")) <= 80


def test_report_is_complete_and_self_contained(smoke):
    _, page = smoke
    for part in ("Slots: after the map was scrambled, ", "Devices: on traffic ", "Neurons: split into "):
        # The gain comes first: a sentence, a picture, and only then the sections.
        assert page.index(part) < page.index("<svg") < page.index("<h2>")
    assert page.count("<svg") == page.count('role="img" aria-label="') == 8
    for fact in ("python", "moe-search", "torch", "numpy", "numba", "ortools", "0, 1", "cpu", "(c) 2023 DeepSeek"):
        assert fact in page
    assert page.count("<h3>Every search</h3>") == 2
    assert len(re.findall(r"(?:Hash|Top-k|COMET)\+ against (?:Hash|Top-k|COMET):", page)) == 6
    assert "no significance test" in page
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in addresses)


@pytest.mark.cuda
def test_demo_on_cuda(tmp_path):
    path = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["demo", "--smoke", "--device", "cuda", "--epochs", "1", "--report", str(path)])
    assert done.exit_code == 0, done.output
    assert "cuda (" in path.read_text(encoding="utf-8")
