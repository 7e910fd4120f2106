import logging
import warnings
from dataclasses import replace

import pytest
import torch
from shared_map import make_shared
from specialists import make

import moe_search as ms

SAMPLES, STEPS = 16, 8

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own dependencies, at import
    pytest.importorskip("lightning")
    import lightning.pytorch as pl

    from moe_search.integrations import LightningSearch, LightningSpecialization

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Module(pl.LightningModule):
    def __init__(self, setting):
        super().__init__()
        self.setting = setting
        self.model = setting.model

    def forward(self, inputs):
        return self.model(inputs)

    def training_step(self, batch, _):
        return self.setting.loss(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def make_run(**options):
    setting = make("top-2", samples=SAMPLES * STEPS)
    setting.scramble()
    options = {"period": 3, "stop": ms.MaxIterations(2_000)} | options
    return Module(setting), LightningSearch(setting.moe, setting.loss, **options)


def fit(module, callback, folder, epochs=1, accumulate=1, resume=None, logger=False):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = torch.utils.data.TensorDataset(module.setting.inputs, module.setting.targets)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callback,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        accumulate_grad_batches=accumulate,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=SAMPLES), ckpt_path=resume)
    return trainer


def told(callback):
    return [replace(record, seconds=0.0, seconds_solving=0.0, compile_seconds=0.0) for record in callback.history]


def test_a_run_is_that_of_a_loop_written_out(tmp_path):
    module, callback = make_run()
    fit(module, callback, tmp_path)

    other, _ = make_run()
    setting = other.setting
    search = ms.PermutationSearch(setting.model, setting.moe, loss=setting.loss, period=3, stop=ms.MaxIterations(2_000))
    optimizer = other.configure_optimizers()
    for i in range(STEPS):
        inputs, targets, _ = setting.batch(SAMPLES * i, SAMPLES * (i + 1))
        optimizer.zero_grad()
        setting.loss(setting.model(inputs), targets).backward()
        optimizer.step()
        search.step(inputs, targets)
    assert [record.step for record in callback.history] == [3, 6]
    assert "committed" in [record.outcome for record in callback.history]
    assert [record.value_found for record in callback.history] == [record.value_found for record in search.history]
    for name, tensor in setting.model.state_dict().items():
        assert torch.equal(module.model.state_dict()[name], tensor), name


def test_several_tasks_over_a_shared_map(tmp_path):
    setting = make_shared(samples=SAMPLES * STEPS)
    best = setting.expert_map.experts.clone()
    setting.scramble(1)
    losses = [torch.nn.MSELoss(), lambda outputs, targets: 2.0 * torch.nn.functional.mse_loss(outputs, targets)]
    callback = LightningSearch(setting.moe, losses, period=3, stop=ms.MaxIterations(2_000))
    fit(Module(setting), callback, tmp_path)
    assert callback.history[0].outcome == "committed"
    assert torch.equal(setting.expert_map.experts, best)


def test_a_run_goes_on_from_a_checkpoint(tmp_path):
    whole, callback = make_run(period=5)
    fit(whole, callback, tmp_path, epochs=2)

    first, first_callback = make_run(period=5)
    trainer = fit(first, first_callback, tmp_path)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second, second_callback = make_run(period=5)
    fit(second, second_callback, tmp_path, epochs=2, resume=tmp_path / "half.ckpt")
    assert [record.step for record in second_callback.history] == [5, 10, 15]
    assert told(second_callback) == told(callback)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name


def test_a_search_that_is_added_to_a_run_begins_afresh(tmp_path):
    module, _ = make_run()
    fit(module, pl.Callback(), tmp_path).save_checkpoint(tmp_path / "half.ckpt")
    module, callback = make_run()
    with pytest.warns(UserWarning, match=r"there is no state of a search in .*half.ckpt: it begins afresh"):
        fit(module, callback, tmp_path, epochs=2, resume=tmp_path / "half.ckpt")
    assert [record.step for record in callback.history] == [3, 6]


def test_every_layer_has_a_state_of_its_own(tmp_path):
    def run(epochs=1, resume=None):
        module, callback = make_run(name="one")
        setting = make("comet", samples=SAMPLES * STEPS)
        module.other = setting.model
        second = LightningSearch(
            setting.moe, setting.loss, model=setting.model, period=5, stop=ms.MaxIterations(500), name="other"
        )
        trainer = fit(module, [callback, second], tmp_path, epochs=epochs, resume=resume)
        return trainer, callback, second

    trainer, *_ = run()
    assert {"one/search/outcome", "other/search/outcome"} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, first, second = run(epochs=2, resume=tmp_path / "half.ckpt")
    assert [record.step for record in first.history] == [3, 6, 9, 12, 15]
    assert [record.step for record in second.history] == [5, 10, 15]


def test_steps_are_those_of_the_optimizer(tmp_path):
    module, callback = make_run(period=2)
    fit(module, callback, tmp_path, accumulate=2)
    assert callback.search.state_dict()["step"] == STEPS // 2
    assert [record.step for record in callback.history] == [2, 4]


def test_batches_of_another_form(tmp_path):
    module, callback = make_run(batch=lambda batch: (batch[0], batch[1]), asynchronous=True)
    fit(module, callback, tmp_path)
    assert [record.step for record in callback.history] == [3, 6]


def test_a_last_batch_of_one_sample_ends_no_run(tmp_path):
    module, callback = make_run(period=STEPS + 1)
    setting = module.setting
    for name in ("inputs", "targets"):
        setattr(setting, name, torch.cat([getattr(setting, name), getattr(setting, name)[:1]]))
    fit(module, callback, tmp_path, epochs=2)
    assert [(record.step, record.outcome) for record in callback.history][:1] == [(STEPS + 1, "skipped")]
    assert callback.history[1].step == STEPS + 2


@pytest.mark.parametrize("use_buffers", [True, False])
def test_a_model_that_is_averaged(tmp_path, use_buffers):
    """Averaging is validated in the place of the model, under the model's own map."""
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging", reason="of lightning >= 2.6")
    module, callback = make_run()
    fresh = module.setting.expert_map.experts.clone()
    seen = []

    class Validating(Module):
        def validation_step(self, batch, _):
            self(batch[0])
            seen.append(self.setting.expert_map.experts.clone())

        def val_dataloader(self):
            return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(self.setting.inputs), batch_size=SAMPLES)

    callbacks = [averaging.EMAWeightAveraging(use_buffers=use_buffers), callback]
    if use_buffers:
        with pytest.raises(ValueError, match="EMAWeightAveraging must have use_buffers=False"):
            fit(Validating(module.setting), callbacks, tmp_path)
        return
    fit(Validating(module.setting), callbacks, tmp_path)
    assert "committed" in [record.outcome for record in callback.history]
    assert not torch.equal(seen[-1], fresh)
    assert torch.equal(seen[-1], module.setting.expert_map.experts)


def test_a_model_that_is_averaged_without_a_search(tmp_path):
    """Lightning copies by `.data`, which no version counts, in the middle of the evaluation of a model."""
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging", reason="of lightning >= 2.6")

    class Validating(Module):
        def validation_step(self, batch, _):
            self(batch[0])

        def val_dataloader(self):
            return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(self.setting.inputs), batch_size=SAMPLES)

    class Moved(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == STEPS + 2:
                module.setting.scramble(1)

    module, _ = make_run()
    with pytest.raises(ValueError, match=r"the mean of two maps is none: .* WeightAveraging of Lightning do with use_"):
        fit(Validating(module.setting), [averaging.EMAWeightAveraging(), Moved()], tmp_path, epochs=2)
    module, _ = make_run()
    fit(Validating(module.setting), [averaging.EMAWeightAveraging(use_buffers=False), Moved()], tmp_path, epochs=2)


def test_before_fit():
    _, callback = make_run()
    assert callback.history == []
    assert callback.state_dict() == {}


class Kept(pl.loggers.Logger):
    """A logger that keeps what it is given."""

    name = version = "kept"

    def __init__(self):
        super().__init__()
        self.given = []

    def log_metrics(self, metrics, step=None):
        self.given.append((step, metrics))

    def log_hyperparams(self, *_):
        pass


def test_every_search_is_logged(tmp_path):
    module, callback = make_run()
    logger = Kept()
    trainer = fit(module, callback, tmp_path, logger=logger, epochs=4)
    given = [(step, metrics) for step, metrics in logger.given if "search/outcome" in metrics]
    assert given == [(record.step, record.metrics()) for record in callback.history]
    last = callback.history[-1].metrics()
    assert {name: float(trainer.callback_metrics[name]) for name in last} == pytest.approx(last)
    always = {"search/outcome", "search/gain", "load/max"}
    assert set(callback.history[0].metrics()) == always  # 16 samples tell no dead expert from a rare one
    assert set(last) == always | {"load/dead"}


def test_a_search_decided_at_the_end_is_logged(tmp_path):
    module, callback = make_run(period=STEPS, asynchronous=True)
    logger = Kept()
    fit(module, callback, tmp_path, logger=logger)
    [record] = callback.history
    assert (STEPS, record.metrics()) in logger.given


class Specialized(Module):
    callback = None

    def training_step(self, batch, _):
        return self.callback.loss(*batch)


def specialized():
    setting = make("top-1", samples=SAMPLES * STEPS)
    module = Specialized(setting)
    module.callback = LightningSpecialization(
        setting.moe,
        setting.loss,
        until=STEPS + 2,
        assigned=0,
        check_after=2,
        held_out=[(setting.inputs, setting.targets)],
    )
    return module


def test_specialization_is_that_of_a_loop_also_from_a_checkpoint(tmp_path):
    loop = specialized()
    optimizer = loop.configure_optimizers()
    specialization = ms.ExpertSpecialization(
        loop.model, loop.setting.moe, loss=loop.setting.loss, optimizer=optimizer, **loop.callback._options
    )
    for i in range(2 * STEPS):
        inputs, targets, _ = loop.setting.batch(SAMPLES * (i % STEPS), SAMPLES * (i % STEPS + 1))
        optimizer.zero_grad()
        specialization.loss(inputs, targets).backward()
        optimizer.step()
        specialization.step()

    first = specialized()
    trainer = fit(first, first.callback, tmp_path)
    assert "specialization/load_max" in trainer.callback_metrics
    trainer.save_checkpoint(tmp_path / "specialized.ckpt")
    second = specialized()
    trainer = fit(second, second.callback, tmp_path, epochs=2, resume=tmp_path / "specialized.ckpt")
    found = second.callback.specialization
    assert found.check.verification == specialization.check.verification
    assert float(trainer.callback_metrics["specialization/kept"]) == found.check.kept
    for name, tensor in loop.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name
