"""The command that turns a dense checkpoint into mixtures, and the checkpoint that it leaves."""

import pytest
import torch
from typer.testing import CliRunner

import moe_search as ms
from moe_search.bench.commands import app
from moe_search.bench.datasets.made_text import write_made_text

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def run(*arguments):
    return CliRunner().invoke(app, ["split", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and its texts."""
    from transformers import BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("dense")
    write_made_text(folder)
    lines = (folder / "movieReviewSnippets_GroundTruth.txt").read_text().splitlines()
    (folder / "lines.txt").write_text("\n\n".join(line.split("\t")[2] for line in lines))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    tokenizer.save_pretrained(folder / "model")
    BertModel.from_pretrained(folder).save_pretrained(folder / "model")
    return folder


def test_the_checkpoint_is_read_back(folder, tmp_path):
    from transformers import BertModel

    output = tmp_path / "split"
    given = ("--text", folder / "lines.txt", "--experts", 4, "--shared", 4, "--tokens", 16, "--rows", 300)
    first = run(folder / "model", *given, "--active", 2, "--layer", 1, "-o", output)
    assert first.exit_code == 0, first.stderr
    assert "1 layers of 4 experts, 2 of which run on a token" in first.stdout
    errors = [float(first.stdout.split("other lines: ")[1].split(" %")[0])]
    model = BertModel.from_pretrained(output)
    [mixture] = ms.load_mixtures(model, output)
    assert mixture.experts.weights[0].shape == (4, 4 + 7, 16)
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    dense = BertModel.from_pretrained(folder / "model")
    assert 0 < (model(ids)[0] - dense(ids)[0]).square().mean() < dense(ids)[0].square().mean()
    more = run(folder / "model", *given, "--active", 3, "--router", "train", "--layer", 1, "-o", tmp_path / "more")
    errors.append(float(more.stdout.split("other lines: ")[1].split(" %")[0]))
    assert 100 > errors[0] > errors[1] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--router": "oracle"}, "--router must be one of ridge, train, got 'oracle'"),
        ({"--rows": 0}, "--rows must be an integer >= 1, got 0"),
        ({"--output": "."}, "--output must be a new or empty folder, got ."),
        ({"--experts": 5, "--output": "new"}, "num_experts must divide the neurons that are not shared, 32 - 0, got 5"),
        ({"--layer": 2, "--output": "new"}, "layers must be 0 .. 1, the feed-forward layers of the model, got 2"),
    ],
)
def test_bad_arguments_end_in_one_line(folder, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    given = {"--text": folder / "lines.txt", "--output": "new"} | change
    ended = run(folder / "model", *(each for pair in given.items() for each in pair))
    assert ended.exit_code == 2
    assert message in ended.stderr
    missing = run(tmp_path, "--text", folder / "lines.txt", "-o", "new")
    assert "CHECKPOINT must hold config.json" in missing.stderr
