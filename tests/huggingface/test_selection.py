import json

import numpy as np
import pytest
import torch
from tiny_models import EXPERTS, FAMILIES, GROUPS, logits, tiny_model, tokens
from transformers import AutoModelForCausalLM

from moe_search.huggingface.mixture_layers import moe_layers
from moe_search.huggingface.selection import keep_experts, kept_only, permute_experts

every_family = pytest.mark.parametrize("family", FAMILIES)


def saved_and_loaded(model, folder):
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").eval()


@every_family
def test_every_layer_is_found(family):
    model = tiny_model(family)
    layers = moe_layers(model)
    assert [layer.name.split(".")[:3] for layer in layers] == [["model", "layers", str(i)] for i in range(2)]
    for layer in layers:
        assert (layer.num_experts, layer.top_k, layer.num_groups) == (EXPERTS, 2, 1)
        assert model.get_submodule(layer.name) is layer.block
        assert {layer.experts, layer.router} <= set(layer.block.children())
    assert moe_layers(torch.nn.Linear(2, 2)) == ()


@every_family
def test_a_permuted_model_comes_back_from_its_checkpoint_to_the_bit(family, tmp_path):
    model, ids = tiny_model(family), tokens()
    before = logits(model, ids)
    order = np.random.default_rng(0).permutation(EXPERTS)
    for layer in moe_layers(model):
        permute_experts(layer, order)
    # Sums of experts have another order; that of weights stays, as does what a row is given.
    torch.testing.assert_close(logits(model, ids), before, atol=1e-5, rtol=1e-5)
    permute_experts(moe_layers(model)[0], order, router=False)
    changed = logits(model, ids)
    assert (changed - before).abs().max() > 0.01
    assert torch.equal(logits(saved_and_loaded(model, tmp_path), ids), changed)
    permute_experts(moe_layers(model)[0], np.argsort(order), router=False)
    torch.testing.assert_close(logits(model, ids), before, atol=1e-5, rtol=1e-5)


@every_family
def test_kept_experts_come_back_from_their_checkpoint_to_the_bit(family, tmp_path):
    model, ids, rng = tiny_model(family), tokens(), np.random.default_rng(1)
    kept = [rng.choice(EXPERTS, 4, replace=False) for _ in moe_layers(model)]
    before = logits(model, ids)
    with kept_only(moe_layers(model), [np.sort(each) for each in kept]):
        foretold = logits(model, ids)
    assert torch.equal(logits(model, ids), before)
    assert keep_experts(model, kept) is model
    after = logits(model, ids)
    assert torch.equal(after, foretold)
    assert [layer.num_experts for layer in moe_layers(model)] == [4, 4]
    loaded = saved_and_loaded(model, tmp_path)
    assert torch.equal(logits(loaded, ids), after)
    assert [layer.num_experts for layer in moe_layers(loaded)] == [4, 4]
    config = json.loads((tmp_path / "config.json").read_text())
    fields = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    assert [config[name] for name in fields if name in config] == [4]
    asked = tiny_model(family, output_router_logits=True) if "output_router_logits" in config else None
    if asked is not None:  # its loss of balance counts the experts too
        assert torch.isfinite(keep_experts(asked, kept)(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize("family", GROUPS)
def test_groups_stay_whole(family, tmp_path):
    model, ids = tiny_model(family, **GROUPS[family]), tokens()
    before, layers = logits(model, ids), moe_layers(model)
    groups = GROUPS[family]["n_group"]
    size = EXPERTS // groups
    assert layers[0].num_groups == groups
    order = (np.arange(EXPERTS).reshape(groups, size)[::-1, ::-1]).ravel()
    for layer in layers:
        permute_experts(layer, order)
    torch.testing.assert_close(logits(model, ids), before, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=rf"order must keep the {groups} groups of {size} experts whole"):
        permute_experts(layers[0], np.roll(np.arange(EXPERTS), 1))
    with pytest.raises(ValueError, match=rf"equally many experts of each of {groups} groups, got \["):
        keep_experts(model, [[0, 1, 2, 3]] * 2)
    if size == 4:
        with pytest.raises(ValueError, match="kept must be enough experts for the router, 2 are not"):
            keep_experts(model, [[0, 4]] * 2)
    kept = [np.arange(EXPERTS).reshape(groups, size)[:, size // 2 :].ravel()] * 2
    after = logits(keep_experts(model, kept), ids)
    assert torch.equal(logits(saved_and_loaded(model, tmp_path), ids), after)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([[0, 1]], "kept must hold the experts of each of 2 layers, got 1"),
        (
            [[0, 1], [0, 1, 2]],
            r"equally many experts of every layer, as the configuration has one number, got \[2, 3\]",
        ),
        ([[0], [1]], "kept must hold at least the 2 experts that a row takes, got 1"),
        ([[0, 8], [0, 1]], r"kept of layer model\.layers\.0\.mlp must hold experts 0 \.\. 7, got \[0, 8\]"),
        ([[0, 0], [0, 1]], r"must hold no expert twice, got \[0, 0\]"),
        ([[0.5, 1], [0, 1]], r"must be a list of integers, got \[0.5, 1\]"),
    ],
)
def test_what_keep_experts_accepts(kept, message):
    model, ids = tiny_model("mixtral"), tokens()
    before = logits(model, ids)
    with pytest.raises(ValueError, match=message):
        keep_experts(model, kept)
    assert torch.equal(logits(model, ids), before)


def test_what_else_is_refused():
    layer = moe_layers(tiny_model("mixtral"))[0]
    with pytest.raises(ValueError, match=r"order must hold every expert 0 \.\. 7 once, got \[0, 1, 2\]"):
        permute_experts(layer, [0, 1, 2])
    with pytest.raises(TypeError, match="router must be True or False, got 1"):
        permute_experts(layer, range(8), router=1)
    model = tiny_model("mixtral")
    before = moe_layers(model)[0]
    keep_experts(model, [[0, 1]] * 2)
    with pytest.raises(
        ValueError, match=r"layer must be found anew by moe_layers\(model\), it has 2 experts and had 8"
    ):
        permute_experts(before, range(8))
    with pytest.raises(TypeError, match=r"layer must be one of moe_layers\(model\), got int"):
        permute_experts(0, range(8))
    with pytest.raises(ValueError, match=r"model must have mixture layers of transformers 5.*, got Linear without any"):
        keep_experts(torch.nn.Linear(2, 2), [])
