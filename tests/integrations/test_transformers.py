import warnings
from dataclasses import replace

import pytest
import torch
from shared_map import make_shared
from specialists import make
from torch import nn

import moe_search as ms

SAMPLES, STEPS = 16, 8

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own dependencies, at import
    pytest.importorskip("transformers")
    import transformers

    from moe_search.integrations import TransformersSearch, TransformersSpecialization

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Model(nn.Module):
    def __init__(self, setting):
        super().__init__()
        self.setting = setting
        self.model = setting.model

    def forward(self, features=None, labels=None, mask=None):
        logits = self.model(features)
        return {"logits": logits} if labels is None else {"loss": self.setting.loss(logits, labels), "logits": logits}


class Rows(torch.utils.data.Dataset):
    def __init__(self, setting, **more):
        self.columns = {"features": setting.inputs, "labels": setting.targets} | more

    def __len__(self):
        return len(self.columns["features"])

    def __getitem__(self, row):
        return {name: column[row] for name, column in self.columns.items()}


def make_run(**options):
    setting = make("top-2", samples=SAMPLES * STEPS)
    setting.scramble()
    options = {"period": 3, "stop": ms.MaxIterations(2_000)} | options
    return Model(setting), TransformersSearch(setting.moe, setting.loss, inputs="features", **options)


def make_trainer(
    model,
    callback,
    folder,
    steps=STEPS,
    save_steps=0,
    rows=None,
    accumulate=1,
    behind=(),
    model_init=None,
    **options,
):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=SAMPLES,
        gradient_accumulation_steps=accumulate,
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 500,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        lr_scheduler_type="constant",
        seed=3,
        **{"logging_strategy": "no"} | options,
    )
    rows = rows or Rows(model.setting)
    return transformers.Trainer(
        model=model,
        model_init=model_init,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[callback, *behind],
    )


def train(model, callback, folder, resume=None, **options):
    trainer = make_trainer(model, callback, folder, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def told(callback):
    return [replace(record, seconds=0.0, seconds_solving=0.0, compile_seconds=0.0) for record in callback.history]


def test_a_run_searches_and_leaves_no_hook(tmp_path):
    model, callback = make_run()
    before = model.setting.true_loss()
    train(model, callback, tmp_path)
    assert [record.step for record in callback.history] == [3, 6]
    assert {record.num_samples for record in callback.history} == {SAMPLES}
    assert callback.history[0].outcome == "committed"
    assert model.setting.true_loss() < 0.1 * before
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("gate", ["top-1", "top-2", "comet"])
def test_a_run_under_autocast(tmp_path, gate):
    setting = make(gate, samples=SAMPLES * STEPS, dtype=torch.float32)
    setting.scramble()
    callback = TransformersSearch(setting.moe, setting.loss, inputs="features", period=3, stop=ms.MaxIterations(2_000))
    before, model, dtypes = setting.true_loss(), Model(setting), set()
    setting.moe.register_forward_hook(lambda _module, _args, mixture: dtypes.add(mixture.dtype))
    train(model, callback, tmp_path, bf16=True)
    assert dtypes == {torch.bfloat16}
    assert [record.step for record in callback.history] == [3, 6]
    assert callback.history[0].outcome == "committed"
    assert setting.true_loss() < 0.1 * before


class Broken(Rows):
    """Rows that cannot be read after some."""

    def __getitem__(self, row):
        self.read = getattr(self, "read", 0) + 1
        if self.read > 3 * SAMPLES:
            raise OSError("unreadable")
        return super().__getitem__(row)


@pytest.mark.parametrize("fault", ["forward", "loss", "data", "search"])
def test_a_run_that_raises_leaves_no_hook(tmp_path, fault):
    model, callback = make_run()
    rows = Broken(model.setting) if fault == "data" else None

    def breaks(*_):
        if callback.search.state_dict()["step"] == 2:
            raise OSError("unreadable")

    if fault == "forward":
        model.model.register_forward_pre_hook(breaks)
    elif fault == "loss":
        loss = model.setting.loss
        model.setting.loss = lambda outputs, targets: (breaks(), loss(outputs, targets))[1]
    elif fault == "search":
        callback._loss = lambda outputs, targets: torch.zeros(2)
        callback._options["problem"] = "pairwise"
    with pytest.raises((OSError, ValueError), match=r"unreadable|loss must return a scalar"):
        train(model, callback, tmp_path, rows=rows)
    assert not model._forward_pre_hooks


def test_several_tasks_over_a_shared_map(tmp_path):
    setting = make_shared(samples=SAMPLES * STEPS, loss=nn.MSELoss())
    best = setting.expert_map.experts.clone()
    setting.scramble(1)
    options = {"inputs": "features", "period": 3, "stop": ms.MaxIterations(2_000)}
    callback = TransformersSearch(setting.moe, setting.loss, **options)
    train(Model(setting), callback, tmp_path)
    assert callback.history[0].outcome == "committed"
    assert torch.equal(setting.expert_map.experts, best)


@pytest.mark.parametrize("moved", [False, True])
def test_a_run_goes_on_from_a_checkpoint(tmp_path, moved):
    whole, callback = make_run(asynchronous=False)
    train(whole, callback, tmp_path / "whole")
    first, first_callback = make_run()
    train(first, first_callback, tmp_path / "run", save_steps=5, steps=5)
    second, second_callback = make_run()
    checkpoint, folder = tmp_path / "run" / "checkpoint-5", tmp_path / "run"
    if moved:
        checkpoint, folder = checkpoint.rename(tmp_path / "kept"), tmp_path / "other"
    train(second, second_callback, folder, resume=str(checkpoint))
    assert [record.step for record in second_callback.history] == [3, 6]
    assert told(second_callback) == told(callback)
    assert torch.equal(second.setting.expert_map.experts, whole.setting.expert_map.experts)


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path):
    model, callback = make_run()
    train(model, callback, tmp_path, save_steps=5, steps=5)
    model, callback = make_run()
    train(model, callback, tmp_path, resume=True)
    assert [record.step for record in callback.history] == [3, 6]


def test_a_search_that_is_added_to_a_run_begins_afresh(tmp_path):
    model, _ = make_run()
    train(model, transformers.TrainerCallback(), tmp_path, save_steps=3, steps=3)
    model, callback = make_run()
    with pytest.warns(UserWarning, match=r"no state of a search in .*permutation_search-model.moe-0.pt: it begins afr"):
        train(model, callback, tmp_path, resume=str(tmp_path / "checkpoint-3"))
    assert [record.step for record in callback.history] == [3]  # counted from the sixth step of the run
    assert model.setting.true_loss() < 1


def test_every_trial_of_a_search_of_hyperparameters_begins_afresh(tmp_path):
    """Two trials of the same values are the same run, and each is one to be resumed from."""
    pytest.importorskip("optuna")
    setting, trials = make_run()[0].setting, []

    class Kept(transformers.TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            trials.append((told(callback), [entry["step"] for entry in state.log_history if "search/gain" in entry]))

    def search():
        return TransformersSearch("model.moe", setting.loss, inputs="features", period=3, stop=ms.MaxIterations(2_000))

    callback = search()
    options = {"save_steps": 3, "steps": 3, "behind": [Kept()], "logging_strategy": "steps", "logging_steps": 1}
    trainer = make_trainer(None, callback, tmp_path, rows=Rows(setting), model_init=lambda: make_run()[0], **options)
    trainer.hyperparameter_search(lambda _: {}, n_trials=2, backend="optuna", hp_name=lambda t: f"trial-{t.number}")
    assert [record.step for record in trials[0][0]] == [3]
    assert trials[0] == trials[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trial-0", "trial-1"]

    whole, again = search(), search()
    train(make_run()[0], whole, tmp_path / "whole")
    train(make_run()[0], again, tmp_path / "other", resume=str(tmp_path / "trial-1" / "checkpoint-3"))
    assert [record.step for record in again.history] == [3, 6]
    assert [record.value_found for record in again.history] == [record.value_found for record in whole.history]


def test_a_layer_that_the_model_has_not(tmp_path):
    (model, _), (_, callback) = make_run(), make_run()
    with pytest.raises(ValueError, match="moe must be a layer of the model that is trained, or its name there"):
        train(model, callback, tmp_path)


class Two(nn.Module):
    """A model of two layers."""

    def __init__(self):
        super().__init__()
        self.settings = [make("top-2", samples=SAMPLES * STEPS, seed=seed) for seed in (0, 1)]
        self.first, self.second = (setting.model for setting in self.settings)

    def forward(self, features=None, labels=None):
        logits = self.first(features) + self.second(features)
        return {
            "logits": logits,
            "loss": (logits - logits.detach() if labels is None else logits - labels).square().mean(),
        }


def test_every_layer_has_a_state_of_its_own(tmp_path):
    def run(folder, **options):
        model = Two()
        callbacks = [
            TransformersSearch(setting.moe, nn.MSELoss(), inputs="features", period=period, stop=ms.MaxIterations(500))
            for setting, period in zip(model.settings, (2, 3), strict=True)
        ]
        train(model, callbacks[0], folder, rows=Rows(model.settings[0]), behind=callbacks[1:], **options)
        return [told(callback) for callback in callbacks]

    whole = run(tmp_path / "whole", steps=7)
    run(tmp_path, save_steps=4, steps=4)
    again = run(tmp_path, steps=7, resume=str(tmp_path / "checkpoint-4"))
    assert [[record.step for record in history] for history in again] == [[2, 4, 6], [3, 6]]
    assert again == whole


def test_a_search_on_a_thread_is_finished_at_the_end(tmp_path):
    model, callback = make_run(asynchronous=True, period=STEPS)
    train(model, callback, tmp_path)
    assert [record.step for record in callback.history] == [STEPS]


def test_a_last_batch_of_one_sample_ends_no_run(tmp_path):
    model, callback = make_run(period=STEPS + 1)
    for name in ("inputs", "targets"):
        setattr(model.setting, name, torch.cat([getattr(model.setting, name), getattr(model.setting, name)[:1]]))
    train(model, callback, tmp_path, steps=2 * STEPS + 1)
    assert (callback.history[0].step, callback.history[0].outcome) == (STEPS + 1, "skipped")
    assert [record.step for record in callback.history[1:]] == [STEPS + 2]


def test_steps_are_those_of_the_optimizer(tmp_path):
    model, callback = make_run(period=2)
    train(model, callback, tmp_path, steps=4, accumulate=2)
    assert callback.search.state_dict()["step"] == 4


def test_models_that_take_or_return_something_else(tmp_path):
    model = make_run()[0]
    callback = TransformersSearch(model.setting.moe, model.setting.loss, period=2)
    with pytest.raises(ValueError, match="the model must be given a tensor named input_ids, got features, labels"):
        train(model, callback, tmp_path)
    model = make_run()[0]
    callback = TransformersSearch(model.setting.moe, model.setting.loss, inputs="features", outputs="scores", period=2)
    with pytest.raises(ValueError, match="the model must return a dict with the key scores, got dict"):
        train(model, callback, tmp_path)


@pytest.mark.parametrize(("asynchronous", "period", "count"), [(False, 3, 2), (True, STEPS, 1)])
def test_every_search_is_logged(tmp_path, asynchronous, period, count):
    class Kept(transformers.TrainerCallback):
        given = None

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.given = dict(logs)

    model, callback = make_run(asynchronous=asynchronous, period=period)
    behind = Kept()
    trainer = train(model, callback, tmp_path, behind=[behind])
    logged = [entry for entry in trainer.state.log_history if "search/outcome" in entry]
    steps = [record.step for record in callback.history]
    assert [entry["step"] for entry in logged] == steps
    assert len(logged) == count
    for entry, record in zip(logged, callback.history, strict=True):
        assert record.metrics().items() <= entry.items()
    if not asynchronous:  # the last log of a run comes before its end
        assert callback.history[-1].metrics().items() <= behind.given.items()


@pytest.mark.parametrize("moe", ["all", "named"])
def test_all_layers_of_a_model_of_transformers(tmp_path, moe):
    from tiny_models import tiny_model, tokens  # which imports transformers

    model = tiny_model("olmoe")
    ids = tokens(0, SAMPLES * STEPS, 6)
    mask = torch.ones_like(ids)
    mask[::3, 4:] = 0
    rows = [
        {"input_ids": one, "labels": one.where(seen > 0, -100), "attention_mask": seen}
        for one, seen in zip(ids, mask, strict=True)
    ]

    def loss(logits, labels):
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    layers = "all" if moe == "all" else list(ms.moe_layers(model))
    callback = TransformersSearch(layers, loss, period=2, stop=ms.MaxIterations(200))
    make_trainer(model, callback, tmp_path, rows=rows, steps=4).train()
    assert [(record.step, record.layer) for record in callback.history] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert {record.num_samples for record in callback.history} == {SAMPLES}
    assert not {record.outcome for record in callback.history} & {"skipped", "not finite"}


def test_all_layers_of_a_model_without_any_are_none(tmp_path):
    with pytest.raises(ValueError, match="model must have mixture layers of transformers 5"):
        train(make_run()[0], TransformersSearch("all", nn.functional.mse_loss), tmp_path)


class SpecializingTrainer(transformers.Trainer):
    callback = None
    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, **keywords):
        if return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs, **keywords)
        return self.callback.loss(model, inputs)


def train_specialized(folder, resume=None, steps=STEPS, **options):
    setting = make("top-1", samples=SAMPLES * STEPS)
    callback = TransformersSpecialization(
        setting.moe,
        setting.loss,
        inputs="features",
        until=STEPS - 2,
        assigned=0,
        check_after=2,
        held_out=[(setting.inputs, setting.targets)],
    )
    model = Model(setting)
    model.accepts_loss_kwargs = True  # as of all models of transformers
    given = make_trainer(model, callback, folder, steps=steps, save_steps=4, **options)
    trainer = SpecializingTrainer(model=model, args=given.args, train_dataset=given.train_dataset, callbacks=[callback])
    trainer.callback = callback
    trainer.train(resume_from_checkpoint=resume)
    return callback, trainer


def test_the_specialized_loss_is_a_mean_where_gradients_are_accumulated(tmp_path):
    logged = []
    for accumulate in (1, 2):
        callback, trainer = train_specialized(tmp_path, steps=1, accumulate=accumulate)
        logged.append(trainer.state.log_history[0]["train_loss"])
    assert callback.specialization.last.phase == "competition"
    assert logged[1] == pytest.approx(logged[0], rel=0.2)


def test_specialization_goes_on_from_a_checkpoint(tmp_path):
    whole, trainer = train_specialized(tmp_path / "whole")
    assert whole.specialization.check.verification.num_samples == SAMPLES * STEPS
    resumed, other = train_specialized(tmp_path / "other", resume=tmp_path / "whole" / "checkpoint-4")
    assert resumed.specialization.check.verification == whole.specialization.check.verification
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], tensor), name
