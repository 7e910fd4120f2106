import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from made_data import pack_images, write_images, write_movielens
from toy_experiment import DRAWN

from moe_search.bench.experiments import published, report as page
from moe_search.bench.experiments.draws_report import all_comparisons, draws_headlines, draws_tables, tasks
from moe_search.bench.experiments.experiment import FRESH, LOSS, Trial, best_draws, find_experiment
from moe_search.bench.experiments.journal import StudyJournal
from moe_search.bench.experiments.published import CASES, DOMAINS, Case, Hyperparameters
from moe_search.bench.experiments.report import make_report, read_finished, section, tables
from moe_search.bench.experiments.run import run_experiment

PUBLISHED = find_experiment("published")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Made-up files of all data, with enough pairs of films for a batch of 512."""
    folder = tmp_path_factory.mktemp("data")
    write_images(folder)
    pack_images(folder)
    write_movielens(folder, users=60)
    return folder


@pytest.fixture(scope="module")
def settings(data):
    return replace(PUBLISHED.smoke, path=str(data))


def test_every_gate_with_every_search_on_all_data_as_published():
    assert [Case.of(gate) for gate in PUBLISHED.gates] == list(CASES)
    assert len(set(PUBLISHED.gates)) == 4 * 2 * 5
    sizes = {(domain.experts, domain.k) for domain in DOMAINS.values()}
    assert sizes == {(16, 2), (8, 2), (16, 4), (6, 2)}
    # A run cut short has whole draws: all gates and searches of one before the next.
    first = PUBLISHED.trials(2)[: 40 * 3]
    assert {trial.seed for trial in first} == {0}
    assert [task for task, _ in tasks(PUBLISHED)][:3] == ["MovieLens, m = n", "MovieLens, m = 4n", "digits, m = n"]


@pytest.mark.parametrize("data_name", list(DOMAINS))
def test_a_seed_draws_the_same_again_within_the_ranges_and_alike_for_all_gates(data_name):
    domain, name = DOMAINS[data_name], f"{data_name}, m = n, COMET"
    drawn = [published.draw(seed, name) for seed in range(60)]
    assert drawn == [published.draw(seed + 3 * FRESH, name) for seed in range(60)]
    assert {each.batch_size for each in drawn} == set(domain.batch_sizes)
    assert {each.gamma for each in drawn} == set(domain.gammas)
    assert {each.entropy for each in drawn} == set(domain.entropies)
    rates = [each.learning_rate for each in drawn]
    assert 1e-4 <= min(rates) < 3e-4
    assert 3e-3 < max(rates) <= 1e-2
    for seed, first in enumerate(drawn[:5]):
        for gate in ("Top-k", "DSelect-k"):
            other = published.draw(seed, f"{data_name}, m = 4n, {gate}")
            assert (first.learning_rate, first.batch_size) == (other.learning_rate, other.batch_size)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gates_are_made_as_published_and_drawn(case, settings):
    task, drawn = published.load(settings, case.data), Hyperparameters(1e-3, 128, gamma=0.1, entropy=5.0)
    first, other = (published.make_model(task, case, drawn, 3) for _ in range(2))
    for name, tensor in first.state_dict().items():
        assert tensor.equal(other.state_dict()[name])
    gate, domain = first.moe.gate, DOMAINS[case.data]
    assert gate.num_experts == domain.experts
    assert gate.num_slots == domain.experts * (4 if case.slots == "m = 4n" else 1)
    if case.gate in ("COMET", "DSelect-k"):
        assert (gate.gamma, gate.entropy, gate.k) == (0.1, 5.0, domain.k)
    if case.gate == "Top-k":
        assert gate.k == domain.k
    assert task.answer(first, task.test).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("data_name", list(DOMAINS))
def test_a_trial_measures_and_a_search_starts_like_none(data_name, settings):
    name = f"{data_name}, m = 4n, DSelect-k"
    found = {search: published.run_trial(settings, 1, name, search) for search in PUBLISHED.searches}
    wanted = {LOSS, "test_loss", "quality", "committed", "cpu_seconds", "searching_seconds"}
    wanted |= {"test_rmse"} if data_name == "MovieLens" else set()
    for numbers in found.values():
        assert set(numbers) == wanted
        assert all(np.isfinite(value) for value in numbers.values())
        assert 0 <= numbers["quality"] <= 1
    assert found["none"]["searching_seconds"] == 0.0 < found["search"]["searching_seconds"]
    again = published.run_trial(settings, 1, name, "search")
    assert {each: again[each] for each in (LOSS, "test_loss")} == {
        each: found["search"][each] for each in (LOSS, "test_loss")
    }


def test_a_search_of_films_looks_at_watching_alone(settings):
    task = published.load(settings, "MovieLens")
    model = published.make_model(task, Case.of("MovieLens, m = n, Top-k"), Hyperparameters(1e-3, 512), 0)
    searched, loss = task.searched(model)
    batch = task.test
    watching = torch.nn.functional.binary_cross_entropy_with_logits(
        model.eval()(batch.inputs, batch.ids)[:, 0], batch.targets[:, 0]
    )
    found = loss(searched(batch.inputs, batch.ids), batch.targets).detach()
    # The other column is the same whatever the model.
    assert float(found) == pytest.approx((float(watching.detach()) + np.log(2)) / 2, rel=1e-5)
    digits = published.load(settings, "digits")
    assert digits.searched(digits.make_model()) is None


def test_what_is_drawn_is_what_optuna_writes_down(tmp_path):
    journal = StudyJournal.open(tmp_path, {"experiment": "published"}, published.space)
    for gate in ("MovieLens, m = n, COMET", "digits, m = 4n, Hash"):
        for seed in (7, 7 + FRESH):
            journal.begin(Trial(seed, gate, "none"))
            written = journal.begun[Trial(seed, gate, "none")].params
            drawn = asdict(published.draw(7, gate))
            assert written == {name: drawn[name] for name in published.space(gate)}


def test_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"optuna, which is missing: pip install 'moe-search\[experiments\]'"):
        published.space("digits, m = n, Hash")


def test_the_best_draws_are_trained_anew_once_all_are_done(tmp_path, monkeypatch):
    toy = replace(DRAWN, gates=("films, Hash", "digits, Hash"), fresh_seeds=3, space=lambda gate: DRAWN.space("Hash"))
    monkeypatch.setattr(page, "find_experiment", lambda name: toy)
    news = []
    table = run_experiment(toy, tmp_path, seeds=21, on_trial=lambda *each: news.append(each[:2]))
    # 5 % of 21 draws are two, the first ones: losses rise with the seed.
    again = table[table["seed"] >= FRESH]
    assert sorted(again["seed"].unique()) == [seed + FRESH * number for number in (1, 2, 3) for seed in (0, 1)]
    assert len(again) == 2 * 3 * 2 * 2
    assert news[0] == (0, len(table))
    assert news[-1] == (len(table), len(table))
    before = (tmp_path / "optuna.log").read_bytes()
    assert len(run_experiment(toy, tmp_path, seeds=21)) == len(table)
    assert (tmp_path / "optuna.log").read_bytes() == before
    (found,) = read_finished(tmp_path)
    best = {each.title: each for each in tables(found)}["Best draws: films"]
    row = dict(zip(best.columns, best.rows[0], strict=True))
    assert (row["gate, search"], row["draws"], row["best"], row["fresh runs"]) == ("Hash, none", "21", "2", "6")
    assert row["steps needed"] == f"{2 * FRESH + 100.5:.0f} ± {FRESH * np.std([1, 1, 2, 2, 3, 3], ddof=1) / 6**0.5:.0f}"
    facts = make_report([found], "moe-search report").facts
    assert facts["toy"] == "moe-search experiment toy --first-seed 0 --seeds 21"
    assert [figure.caption.partition(".")[0] for figure in section(found).figures][1:3] == ["films", "digits"]


def test_all_comparisons_of_the_page_are_adjusted_for_together():
    toy = replace(DRAWN, gates=("a, Hash", "a, Top-k", "b, Hash", "b, Top-k"))
    measured = {trial: toy.run_trial(toy.settings, trial.seed, trial.gate, trial.search) for trial in toy.trials(10)}
    pairs = [(first, other) for first, other, _ in all_comparisons(toy, measured)]
    within = [(("a, Hash", "none"), ("a, Hash", "search")), (("a, Top-k", "none"), ("a, Top-k", "search"))]
    across = [(("a, Hash", "none"), ("a, Top-k", search)) for search in ("none", "search")]
    assert pairs[:4] == within + across
    assert len(pairs) == 8
    table = draws_tables(toy, measured)[-1]
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    # Ten pairs, more than ten times less: 2^-10, one-sided, of six that are alike among eight.
    assert (cells["p of more than 10 times"], cells["Holm"]) == ("0.0010", "0.0078")
    (line,) = draws_headlines(toy, measured)
    assert "search against none: better in 4 of 4, worse in 0 (Holm over all 8 comparisons, 5%)" in line


def test_the_best_of_some_draws():
    losses = {Trial(seed, "Hash", "none"): float(-seed) for seed in range(41)}
    losses |= {Trial(40 + FRESH, "Hash", "none"): -100.0, Trial(3, "Hash", "search"): -100.0}
    assert [trial.seed for trial in best_draws(losses, "Hash", "none")] == [40, 39, 38]
    assert best_draws(losses, "Top-k", "none") == []
