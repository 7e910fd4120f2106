"""Layers of transformers models made mixtures of their own neurons."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, LlamaModel

from moe_search.training.to_mixture import (
    FeedForwardMixture,
    feed_forward_inputs,
    feed_forwards,
    load_mixtures,
    to_mixture,
)

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}


def made(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "bert":
            return BertModel(BertConfig(**SIZES), add_pooling_layer=False)
        return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1))


def batches(count=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        mask = torch.ones(4, 10, dtype=torch.int64)
        mask[1, 6:] = mask[2, 3:] = 0
        yield {"input_ids": torch.randint(40, (4, 10), generator=generator), "attention_mask": mask}


def outputs(model, batch):
    with torch.no_grad():
        return model(**batch)[0][batch["attention_mask"].bool()]


def dense_modules(model, before):
    """The modules that were there before, but for mixtures in the place of one."""
    places = tuple(name for name, module in model.named_modules() if isinstance(module, FeedForwardMixture))
    return [each for each in model.named_modules() if each[0] in before and not each[0].startswith(places)]


kinds = pytest.mark.parametrize("kind", ["bert", "llama"])


@kinds
def test_with_all_experts_the_model_is_what_it_was(kind):
    model, dense = made(kind).eval(), made(kind).eval()
    mixtures = to_mixture(
        model, None, batches(), 4, 4, divide=lambda layer, inputs: torch.randperm(24).view(4, 6), router="ridge"
    )
    [batch] = batches(1)
    assert torch.allclose(outputs(model, batch), outputs(dense, batch), atol=1e-5)
    assert [module.moe for module in model.modules() if isinstance(module, FeedForwardMixture)] == mixtures
    assert len(mixtures) == 3
    assert feed_forwards(model) == []


@kinds
@pytest.mark.slow
def test_chosen_layers_lose_little_and_learn(kind):
    model, dense = made(kind), made(kind).eval()
    feed_forwards(model)[0].entry.eval()
    before = {name: module.training for name, module in model.named_modules()}
    mixtures = to_mixture(model, [2, 0], batches(), 4, 2, shared=4)
    assert all(module.training == before[name] for name, module in dense_modules(model, before))
    assert len(feed_forwards(model)) == 1
    model.eval()
    [batch] = batches(1)
    assert not torch.allclose(outputs(model, batch), outputs(dense, batch), atol=1e-5)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(20):
        loss = (model(**batch)[0][batch["attention_mask"].bool()] - outputs(dense, batch)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(each.gate.sharpness.grad.abs() > 0 for each in mixtures)


@kinds
def test_inputs_are_those_of_real_tokens(kind):
    model = made(kind).eval()
    layers = feed_forwards(model)
    [batch] = batches(1)
    found = feed_forward_inputs(model, layers, [batch], 1000)
    assert [each.shape for each in found] == [(10 + 6 + 3 + 10, 16)] * 3
    single = {"input_ids": batch["input_ids"][1:2, :6]}
    for whole, alone in zip(found, feed_forward_inputs(model, layers, [single], 4), strict=True):
        assert torch.allclose(whole[10:14], alone, atol=1e-5)


@kinds
@pytest.mark.filterwarnings("ignore")
def test_checkpoints_hold_what_was_trained(kind, tmp_path):
    model = made(kind).eval()
    mixtures = [
        *to_mixture(model, [0], batches(), 3, 2, divide=lambda layer, inputs: torch.randperm(24).view(3, 8)),
        *to_mixture(model, [1], batches(), 4, 1, divide=lambda layer, inputs: torch.randperm(24).view(4, 6)),
    ]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    mixtures[0].gate.expert_map.scramble(torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    loaded = load_mixtures(again, tmp_path)
    [batch] = batches(1)
    assert torch.equal(outputs(again, batch), outputs(model, batch))
    assert [each.gate.k for each in loaded] == [2, 1]
    with pytest.raises(
        ValueError, match=r"folder must be the checkpoint of a .* with mixtures, in safetensors, got .*nowhere"
    ):
        load_mixtures(type(model).from_pretrained(tmp_path), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="folder must be the checkpoint"):
        load_mixtures(made(kind), tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("classes", [(LlamaForCausalLM, LlamaModel), (LlamaModel, LlamaForCausalLM)])
def test_checkpoints_are_loaded_without_a_head_or_with_another(classes, tmp_path):
    saved, other = (each(LlamaConfig(**SIZES, num_key_value_heads=1)).eval() for each in classes)
    [one, _] = to_mixture(saved, [2, 0], batches(), 3, 2, divide=lambda layer, inputs: torch.arange(24).view(3, 8))
    saved.save_pretrained(tmp_path / "saved")
    other = classes[1].from_pretrained(tmp_path / "saved")
    [_, loaded] = load_mixtures(other, tmp_path / "saved")
    assert torch.equal(loaded.experts.weights[1], one.experts.weights[1])
    other.save_pretrained(tmp_path / "again")
    assert len(load_mixtures(classes[1].from_pretrained(tmp_path / "again"), tmp_path / "again")) == 2
    with pytest.raises(
        ValueError, match=r"feed-forward layer in the place of each mixture, got a .* without layers\.[02]"
    ):
        load_mixtures(other, tmp_path / "again")


def test_what_cannot_be_a_mixture():
    with pytest.raises(ValueError, match=r"model must have feed-forward layers .* got a Linear without"):
        to_mixture(nn.Linear(2, 2), None, batches(), 4, 2)
    with pytest.raises(ValueError, match=r"layers must be 0 .. 2, the feed-forward layers of the model, got 3"):
        to_mixture(made("bert"), [3], batches(), 4, 2)
    for layers in ([], [1, 1]):
        with pytest.raises(ValueError, match="layers must hold at least one layer, and none twice, got"):
            to_mixture(made("bert"), layers, batches(), 4, 2)
    with pytest.raises(ValueError, match="batches must hold at least one token, got none"):
        to_mixture(made("bert"), None, [], 4, 2)
    with pytest.raises(TypeError, match=r"batches must hold what the model is called with, .* got Tensor"):
        to_mixture(made("bert"), None, torch.zeros(2, 4, 3, dtype=torch.int64), 4, 2)


@pytest.mark.filterwarnings("ignore")
def test_the_oracle_is_not_loaded(tmp_path):
    model = made("bert").eval()
    divided = torch.arange(24).view(3, 8)
    to_mixture(model, [1], batches(), 3, 2, router="oracle", divide=lambda layer, inputs: divided)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="folder must hold the router of each mixture, by ridge or train, got encoder"):
        load_mixtures(BertModel.from_pretrained(tmp_path), tmp_path)
