import copy

import pytest
import torch
from tiny_models import EXPERTS, FAMILIES, GROUPS, VOCABULARY, logits, tiny_model, tokens
from torch.nn.functional import cross_entropy

import moe_search as ms
from moe_search.training.lowering.token_layers import give_map, map_of


def next_token_loss(outputs, targets):
    return cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


@pytest.mark.parametrize("family", [*FAMILIES, *(f"{name} in groups" for name in GROUPS)])
def test_a_map_is_that_of_permuted_experts_and_is_saved_as_they_are(family, tmp_path):
    name, _, grouped = family.partition(" in ")
    model = tiny_model(name, **GROUPS[name] if grouped else {})
    other, ids = copy.deepcopy(model), tokens()
    order = torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(1)).tolist()
    for mine, its in zip(ms.moe_layers(model), ms.moe_layers(other), strict=True):
        give_map(mine).assign([order])
        ms.permute_experts(its, order, router=False)
    expected = logits(other, ids)
    assert torch.equal(logits(model, ids), expected)
    assert not torch.equal(expected, logits(tiny_model(name, **GROUPS[name] if grouped else {}), ids))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    loaded.config._experts_implementation = "eager"
    assert torch.equal(logits(loaded, ids), expected)
    # What is loaded begins with a fresh map, and what is permuted or kept has none.
    model.load_state_dict(loaded.state_dict())
    assert torch.equal(logits(model, ids), expected)
    give_map(ms.moe_layers(model)[0]).assign([order])
    before = logits(model, ids)
    ms.permute_experts(ms.moe_layers(model)[0], range(EXPERTS))
    assert map_of(ms.moe_layers(model)[0]) is None
    assert torch.equal(logits(model, ids), before)


def test_a_search_finds_the_maps_of_a_trained_model_again():
    model = tiny_model("mixtral")
    # Every token has one that follows it, which short training learns, by experts that differ.
    follows = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    texts = []
    for seed in range(60):
        text = [tokens(seed, 16, 1)]
        for _ in range(7):
            text.append(follows[text[-1]])
        texts.append(torch.cat(text, 1))
    for ids in texts[:40]:
        loss = next_token_loss(model(input_ids=ids).logits, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    held_out = torch.cat(texts[50:])

    def mean_loss():
        return float(next_token_loss(logits(model, held_out), held_out))

    intact = mean_loss()
    layers = ms.moe_layers(model)
    mask = torch.ones_like(held_out)
    search = ms.PermutationSearch(model, layers, loss=next_token_loss, stop=ms.MaxIterations(2000))
    batches = [
        (torch.cat(part), torch.cat(part), None, None, {"attention_mask": mask[: 16 * len(part)]})
        for part in (texts[40:45], texts[45:50])
    ]
    search.search_batches(batches[:1], verify=batches[1:])
    assert mean_loss() <= intact + 1e-3
    for layer in layers:
        map_of(layer).scramble(torch.Generator().manual_seed(2))
    scrambled = mean_loss()
    assert scrambled > intact + 0.3
    weights = {name: tensor.clone() for name, tensor in model.named_parameters()}
    search.search_batches(batches[:1], verify=batches[1:])
    assert mean_loss() < intact + 0.5 * (scrambled - intact)
    assert [record.layer for record in search.history] == [0, 1, 0, 1]
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.named_parameters())
    ms.permute_experts(layers[0], range(layers[0].num_experts))
    with pytest.raises(ValueError, match="must be as the search found it, permute_experts or keep_experts has changed"):
        search.search_batches(batches[:1], verify=batches[1:])


def test_lowering_is_that_of_the_same_layer_of_our_own():
    model, ids = tiny_model("olmoe"), tokens(1, 8)
    layers = ms.moe_layers(model)
    give_map(layers[0]).scramble(torch.Generator().manual_seed(0))
    [lowering] = ms.lower_tokens(model, layers[:1], ids, ids, next_token_loss)
    seen = {}
    handle = layers[0].block.register_forward_pre_hook(lambda _, args: seen.update(hidden=args[0]))
    before = float(next_token_loss(logits(model, ids), ids))
    handle.remove()
    assert lowering.loss == pytest.approx(before, rel=1e-5)
    # A map that changes little: the forecast of first order is what is lost.
    permutation = lowering.initial.copy()
    permutation[[0, 1]] = permutation[[1, 0]]
    with torch.no_grad():
        present = layers[0].block(seen["hidden"])
        map_of(layers[0]).assign_permutation(permutation)
        present = present[0] if isinstance(present, tuple) else present
        changed = layers[0].block(seen["hidden"])
        changed = changed[0] if isinstance(changed, tuple) else changed
    first = lowering.first_order.value(permutation) - lowering.first_order.value(lowering.initial)
    step = 1e-3
    moved = {}

    def blend(_, __, output):
        moved["was"] = output
        flat = present + step * (changed - present)
        return (flat, *output[1:]) if isinstance(output, tuple) else flat

    handle = layers[0].block.register_forward_hook(blend)
    after = float(next_token_loss(logits(model, ids), ids))
    handle.remove()
    assert (after - before) / step == pytest.approx(first, rel=0.1, abs=2e-3)


def test_what_counts_experts_of_a_searched_model_numbers_them_as_its_checkpoint_does(tmp_path):
    model, ids = tiny_model("mixtral"), tokens()
    for seed, layer in enumerate(ms.moe_layers(model)):
        give_map(layer).scramble(torch.Generator().manual_seed(seed))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    loaded.config._experts_implementation = "eager"
    plans, loads, left = [], [], []
    for each in (model, loaded):
        statistics = ms.RoutingStatistics()
        with statistics.watch(each), torch.no_grad():
            each(input_ids=ids)
        loads.append(statistics.loads())
        plan = ms.prune_experts(each, [ids, tokens(1), tokens(2)], keep=0.5)
        plans.append({candidate.criterion: candidate.kept for candidate in plan.candidates})
        left.append(logits(plan.apply(each), ids))
    assert (loads[0] == loads[1]).all()
    assert plans[0] == plans[1]
    assert torch.equal(*left)


def test_weights_that_are_loaded_in_part_leave_the_map():
    model, ids = tiny_model("mixtral"), tokens()
    give_map(ms.moe_layers(model)[0]).scramble(torch.Generator().manual_seed(1))
    expected, state = logits(model, ids), model.state_dict()
    down = next(name for name in state if name.endswith("experts.down_proj"))
    for part in ("lm_head.weight", down):
        model.load_state_dict({part: state[part]}, strict=False)
        assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("through", ["save_pretrained", "state_dict"])
def test_a_run_that_resumes_goes_on_as_if_it_had_never_stopped(through, tmp_path):
    """The optimizer's state is that of experts where they lay, the checkpoint's are in the order of the map."""
    model = tiny_model("mixtral")
    for layer in ms.moe_layers(model):
        give_map(layer)

    def begun(model, optimizer=None, search=None):
        made = torch.optim.Adam(model.parameters(), 1e-2)
        searching = ms.PermutationSearch(model, ms.moe_layers(model), loss=next_token_loss, period=3)
        if optimizer is not None:
            # Which of them is taken up first is all the same.
            parts = [(searching, search), (made, optimizer)]
            for part, state in parts if through == "state_dict" else parts[::-1]:
                part.load_state_dict(state)
        return made, searching

    def train(model, optimizer, search, steps):
        for step in steps:
            ids = tokens(step, 8, 10)
            next_token_loss(model(input_ids=ids).logits, ids).backward()
            optimizer.step()
            optimizer.zero_grad()
            search.step(ids, ids)
        return model.state_dict()

    optimizer, search = begun(model)
    train(model, optimizer, search, range(2))
    for seed, layer in enumerate(ms.moe_layers(model)):
        map_of(layer).scramble(torch.Generator().manual_seed(seed))
    train(model, optimizer, search, range(2, 4))
    saved = copy.deepcopy((optimizer.state_dict(), search.state_dict()))
    if through == "save_pretrained":
        model.save_pretrained(tmp_path)
        other = type(model).from_pretrained(tmp_path)
    else:
        other = tiny_model("mixtral", seed=5)
        other.load_state_dict(model.state_dict())
    other.config._experts_implementation = "eager"
    expected = train(model, optimizer, search, range(4, 8))
    found = train(other, *begun(other, *saved), range(4, 8))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # A state that is taken up by a run that goes on moves nothing.
    search.load_state_dict(search.state_dict())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
