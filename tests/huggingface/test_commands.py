import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import EXPERTS, VOCABULARY, logits, tiny_model, tokens
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from moe_search.cli import app


def run(*arguments, columns=80):
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": str(columns)})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a model and its tokenizer, which knows words of one letter or two."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model("olmoe").save_pretrained(folder)
    words = [chr(97 + i % 26) + (chr(97 + i // 26) if i >= 26 else "") for i in range(VOCABULARY - 1)]
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0} | {word: i + 1 for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    (folder / "text.txt").write_text(" ".join(np.random.default_rng(0).choice(words, 200)))
    return folder


def test_statistics_are_printed_and_their_loads_are_placed(checkpoint, tmp_path):
    path = tmp_path / "loads.npz"
    shared = ("--tokens", 10, "--batch", 4, "--device", "cpu")
    result = run("statistics", checkpoint, "--text", checkpoint / "text.txt", *shared, "--window", 2, "-o", path)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 80
    assert "model.layers.1.mlp" in result.stdout
    assert "200 tokens." in result.stdout
    with np.load(path) as trace:
        assert trace["load"].shape == (3, 2, EXPERTS)
        assert trace["load"].sum() == 2 * 2 * 200
    placed = run("place", path, "--devices", 2, "--slots", 10, columns=120)
    assert placed.exit_code == 0, placed.stderr


def test_a_pruned_checkpoint_is_loaded(checkpoint, tmp_path):
    shared = ("--tokens", 10, "--batch", 4, "--device", "cpu", "--text", checkpoint / "text.txt")
    result = run("prune", checkpoint, *shared, "--keep", "0.5", "--output", tmp_path / "half")
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines()[:-1])) <= 80
    assert "4 of 8 experts in 2 layers" in result.stdout
    assert json.loads((tmp_path / "half" / "config.json").read_text())["num_experts"] == 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert torch.isfinite(logits(model, tokens())).all()
    assert AutoTokenizer.from_pretrained(tmp_path / "half")("a b")["input_ids"] == [1, 2]
    np.savez(tmp_path / "ids.npz", tokens(sequences=9).numpy())
    shared = ("--text", tmp_path / "ids.npz", "--batch", 3, "--criterion", "REAP", "--device", "cpu")
    result = run("prune", checkpoint, *shared, "--keep", 3, "--output", tmp_path / "three")
    assert result.exit_code == 0, result.stderr
    assert [name in result.stdout for name in ("REAP", "frequency", "3 of 8 experts")] == [True, False, True]
    again = run("prune", checkpoint, *shared, "--keep", 3, "--output", tmp_path / "three")
    assert again.stderr.startswith("error: --output must be a new or empty folder, got ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("NOWHERE",), "CHECKPOINT must be a folder that exists, got "),
        (("EMPTY",), "CHECKPOINT must hold config.json, got "),
        (("CHECKPOINT", "--keep", "half"), "--keep must be a number of experts, or a part such as 0.5, got 'half'"),
        (("CHECKPOINT", "--keep", "9"), "keep must be less than the 8 experts of a layer, got 9"),
        (("CHECKPOINT", "--criterion", "magic"), "criteria must be one of auto, error, frequency"),
        (("CHECKPOINT", "--tokens", "150"), "text.txt must hold two sequences of 150 tokens, got 200 tokens"),
        (("CHECKPOINT", "--tokens", "1"), "--tokens must be an integer >= 2, got 1"),
        (("CHECKPOINT", "--device", "abacus"), "--device must be auto or a device of torch, got 'abacus'"),
        (("CHECKPOINT", "--text", "NOWHERE"), "No such file or directory"),
        (("CHECKPOINT", "--text", "ONE"), "--text must hold two sequences at least, got 1"),
        (("CHECKPOINT", "--text", "OTHERS"), f"--text must hold tokens 0 .. {VOCABULARY - 1}, the vocabulary"),
        (("CHECKPOINT", "--text", "BROKEN"), "ids.npz must hold an array of integers as numpy writes it, got none"),
        (("CUT", "--text", "OTHERS"), "CHECKPOINT must hold whole safetensors, got "),
    ],
)
def test_wrong_arguments_end_in_a_line(checkpoint, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"CHECKPOINT": checkpoint, "NOWHERE": tmp_path / "nowhere", "EMPTY": tmp_path / "empty"}
    places |= {name: tmp_path / f"{name.lower()}.npy" for name in ("ONE", "OTHERS")}
    np.save(places["ONE"], tokens(sequences=1).numpy())
    np.save(places["OTHERS"], tokens().numpy() + VOCABULARY)
    places |= {"BROKEN": tmp_path / "ids.npz", "CUT": tmp_path / "cut"}
    places["BROKEN"].write_text("nothing")
    places["CUT"].mkdir()
    (places["CUT"] / "config.json").write_text((checkpoint / "config.json").read_text())
    (places["CUT"] / "model.safetensors").write_bytes(b"cut")
    given = [places.get(each, each) for each in arguments]
    usual = {"--text": checkpoint / "text.txt", "--tokens": 10, "--device": "cpu", "--output": tmp_path / "out"}
    rest = [word for name, value in usual.items() if name not in arguments for word in (name, value)]
    result = run("prune", *given, *rest)
    assert (result.exit_code, result.stdout) == (2, "")
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, 'pip install "moe-search[transformers]"'), ("4.57.1", 'got 4.57.1: pip install -U "transformers>=5"')],
)
def test_a_missing_extra_is_named(checkpoint, tmp_path, monkeypatch, version, message):
    found = None if version is None else SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "transformers", found)
    result = run("prune", checkpoint, "--text", checkpoint / "text.txt", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
