"""Students of a BERT with mixtures in its last layers: four gates, two ways to split, with and without search."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from torch import Tensor, nn
from torch.nn import functional

from moe_search.bench.datasets.made_text import write_made_text
from moe_search.bench.datasets.sentence_encoder import SentenceEncoder
from moe_search.bench.datasets.snippets import load_product_sentences
from moe_search.bench.experiments.dense_to_moe import Divider, batches, compared
from moe_search.bench.experiments.experiment import Experiment, Measure, Numbers
from moe_search.bench.experiments.gates import SMOOTH, SPARSE, make_gate
from moe_search.bench.experiments.table_search import token_slots
from moe_search.bench.experiments.token_student import TokenStudent, distillation_losses, evaluate
from moe_search.bench.experiments.token_teacher import (
    RIDGES,
    TokenBatch,
    TokenStates,
    encode,
    read_encoder_and_snippets,
)
from moe_search.bench.experiments.training import descend, endless_rows
from moe_search.checks import require_choice
from moe_search.gates import COMET, DSelectK, Gate, HashRouting
from moe_search.layers import MixtureOfExperts
from moe_search.solvers import MaxIterations
from moe_search.training import GammaAnnealing, PermutationSearch, RoutingStatistics, to_mixture
from moe_search.training.lowering.batch import Batch

K = 2
"""Experts of a token under the gates that learn; under Hash it has one."""

SPLITS = ("deal", "partition")
"""MoEBERT's way to divide the neurons of a layer, and `cluster_neurons`."""

SEARCHED = "search"
"""What a trial with search is called by, after its split."""

CLEAR = 0.5
"""The least sentiment of a sentence of a product review, for or against, that counts as a polarity."""


@dataclass(frozen=True)
class LanguageSettings:
    """Sizes of a trial.

    Attributes
    ----------
    layers, experts, slots : int
        The last layers of the encoder, whose feed-forward layers are split; experts of each, and slots of the table of
        Hash. The other gates have a slot for each expert.
    max_tokens : int
        Tokens of a text at most, the special ones included.
    films, products : int
        Snippets of film reviews, and sentences of product reviews that take a side.
    test_share : float
        The part of the snippets, and of the product reviews, that is for tests.
    rows : int
        Tokens of the calibration data.
    steps, batch_size, learning_rate
        Of the distillation, texts of both kinds mixed.
    annealed : int
        Steps in which gamma of COMET and DSelect-k falls.
    searched : tuple of int
        Steps before which maps are searched; 0 is before all.
    search_texts : int
        Texts that a search looks at; half of them verify.
    iterations : int
        Of the solver.
    made : bool
        Whether to make up texts and a tiny encoder where no path is given.
    path : str or None
        Folder with the archive of the texts and the wheel of the encoder.
    """

    layers: int = 2
    experts: int = 8
    slots: int = 512
    max_tokens: int = 24
    films: int = 600
    products: int = 600
    test_share: float = 0.3
    rows: int = 1500
    steps: int = 40
    batch_size: int = 16
    learning_rate: float = 2e-3
    annealed: int = 12
    searched: tuple[int, ...] = (0, 12)
    search_texts: int = 60
    iterations: int = 100
    made: bool = False
    path: str | None = None


@dataclass(frozen=True, eq=False)
class Texts:
    """The teacher, and what it makes of film snippets and, behind them, of sentences of product reviews.

    Attributes
    ----------
    owners : Tensor of int64
        Shape [N]: a number for each snippet, and for each product review from `films` on.
    films : int
        Number of the snippets.
    """

    encoder: SentenceEncoder
    texts: tuple[str, ...]
    states: TokenStates
    owners: Tensor
    films: int

    def divided(self, test_share: float, seed: int) -> tuple[Tensor, Tensor]:
        """Return the rows for training and for tests, shape [N'] each: a review is on one side, with all sentences."""
        generator = torch.Generator().manual_seed(seed)
        tests = []
        for kind in (self.owners[: self.films], self.owners[self.films :]):
            owners = torch.tensor(sorted(set(kind.tolist())))
            owners = owners[torch.randperm(len(owners), generator=generator)]
            tests.append(owners[: round(test_share * len(owners))])
        is_test = torch.isin(self.owners, torch.cat(tests))
        return (~is_test).nonzero()[:, 0], is_test.nonzero()[:, 0]


@lru_cache(maxsize=1)
def taught(settings: LanguageSettings) -> Texts:
    """Return what the trials of all seeds share."""
    with tempfile.TemporaryDirectory() as made:
        path = settings.path
        if path is None and settings.made:
            write_made_text(path := made)
        encoder, snippets = read_encoder_and_snippets(path, made=False)
        assert path is not None, "nothing is read from nowhere"
        sentences = load_product_sentences(path)
    films = snippets.train.texts[: settings.films]
    # Whole reviews of all five products: they stand in the file one product after the other.
    places = np.random.default_rng(0).permutation(int(sentences.reviews.max()) + 1)[sentences.reviews]
    order = np.argsort(places, kind="stable")
    order = order[np.abs(sentences.scores[order]) >= CLEAR][: settings.products]
    texts = (*films, *(sentences.texts[row] for row in order))
    scores = np.concatenate([snippets.train.scores[: len(films)], sentences.scores[order]])
    states = encode(
        encoder,
        texts,
        torch.from_numpy(scores),
        first_layer=len(encoder.layers) - settings.layers,
        max_tokens=settings.max_tokens,
    )
    owners = np.concatenate([np.arange(len(films)), len(films) + sentences.reviews[order]])
    return Texts(encoder, texts, states, torch.from_numpy(owners), len(films))


@lru_cache(maxsize=4)
def converted(
    settings: LanguageSettings, seed: int, split: str, active: int
) -> tuple[tuple[MixtureOfExperts, ...], float]:
    """Return the last layers as mixtures under a linear router, and the processor seconds that it took."""
    require_choice("a split", split, SPLITS)
    data = taught(settings)
    train, _ = data.divided(settings.test_share, seed)
    rows = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))]
    encoder, last = data.encoder, len(data.encoder.layers)
    before = time.process_time()
    mixtures = to_mixture(
        copy.deepcopy(encoder.model),
        range(last - settings.layers, last),
        batches(encoder, [data.texts[row] for row in rows.tolist()], settings.max_tokens),
        settings.experts,
        active,
        rows=settings.rows,
        seed=seed,
        divide=Divider(split, settings.experts, active, seed) if split == SPLITS[0] else None,
    )
    return tuple(mixtures), time.process_time() - before


def make_student(settings: LanguageSettings, seed: int, gate: str, split: str) -> TokenStudent:
    """Return a student whose gates are fresh, drawn from the seed; the split does not matter to them."""
    require_choice("gate", gate, SPARSE)
    data = taught(settings)
    mixtures, _ = converted(settings, seed, split, 1 if gate == "Hash" else K)
    train, _ = data.divided(settings.test_share, seed)
    ids = data.states.select(train).ids.numpy()
    counts = np.bincount(ids, minlength=data.encoder.vocabulary).astype(np.int64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gates = [fresh_gate(settings, gate, data.states.states[0].shape[1], counts) for _ in mixtures]
    students = [
        MixtureOfExperts(copy.deepcopy(mixture.experts), own) for mixture, own in zip(mixtures, gates, strict=True)
    ]
    return TokenStudent(data.encoder.layers[-settings.layers :], students)


def fresh_gate(settings: LanguageSettings, name: str, in_features: int, counts: NDArray[np.int64]) -> Gate:
    """Return a gate drawn from torch's global generator; `counts` say how often each token of the vocabulary occurs."""
    n = settings.experts
    if name == "Hash":
        gate: Gate = HashRouting(n, settings.slots, table=token_slots(counts, settings.slots))
        gate.expert_map.scramble(torch.Generator().manual_seed(int(torch.randint(2**31, ()))))
        return gate
    gate = make_gate(name, in_features, n, k=K)
    if name in SMOOTH:
        assert isinstance(gate, COMET | DSelectK)
        gate = GammaAnnealing(gate, settings.annealed)
    return gate


class StudentSearch:
    """Searches the maps of a student's layers, each for what the teacher's layer makes of the same tokens.

    The squared error of a mixture to the output of the dense feed-forward layer is the target of every token, so that
    tokens are samples and the problem is exact; a map is verified by other texts, which are the independent units.
    """

    def __init__(self, settings: LanguageSettings, student: TokenStudent, train: TokenStates, seed: int) -> None:
        self._student = student
        self._train = train
        self._dense = taught(settings).encoder.layers[-settings.layers :]
        self._texts = min(settings.search_texts, len(train))
        self._generator = torch.Generator().manual_seed(seed)
        self.of_layers = tuple(
            PermutationSearch(
                layer.moe, layer.moe, loss=nn.MSELoss(), stop=MaxIterations(settings.iterations), seed=seed
            )
            for layer in student.layers
        )

    def search(self) -> None:
        """Search one layer after the other."""
        rows = torch.randperm(len(self._train), generator=self._generator)[: self._texts]
        searched, verified = rows.tensor_split(2)
        for index, search in enumerate(self.of_layers):
            search.search_batches(self._batches(searched, index), verify=self._batches(verified, index))

    @torch.no_grad()
    def _batches(self, rows: Tensor, index: int) -> Iterator[Batch]:
        self._student.eval()
        layer = self._dense[index]
        for some in self._train.chunks(rows):
            batch = self._train.batch(some)
            attended = self._student.attended(batch, index)
            targets = layer.output.dense(layer.intermediate(attended))
            yield Batch(attended, targets, ids=batch.ids, groups=some[batch.owners])


def run_trial(settings: LanguageSettings, seed: int, gate: str, search: str) -> Numbers:
    """Split the last layers, give them fresh gates, and distill; `search` names the split, and tells of a search."""
    split, _, searched = search.partition(", ")
    data = taught(settings)
    train, test = (data.states.select(rows) for rows in data.divided(settings.test_share, seed))
    student = make_student(settings, seed, gate, split)
    before = time.process_time()
    searches = StudentSearch(settings, student, train, seed) if searched == SEARCHED else None
    distill(settings, student, train, searches, seed)
    seconds = time.process_time() - before
    _, conversion_seconds = converted(settings, seed, split, 1 if gate == "Hash" else K)
    records = [] if searches is None else [record for each in searches.of_layers for record in each.history]
    _, of_train = evaluate(student, train)
    statistics = RoutingStatistics()
    with ExitStack() as watched:
        for layer in student.layers:
            watched.enter_context(statistics.watch(layer.moe))
        losses, of_test = evaluate(student, test)
    told = told_by(settings, seed, of_train, of_test)
    return (
        {
            "test_loss": float(losses.sum()),
            "test_losses": losses.tolist(),
            "experts_per_token": statistics.summary().mean_experts,
            "training_seconds": seconds,
            "searching_seconds": 0.0 if searches is None else sum(each.seconds for each in searches.of_layers),
            "conversion_seconds": conversion_seconds,
            "searches": float(len(records)),
            "committed": float(sum(record.outcome == "committed" for record in records)),
        }
        | told
        | {f"teacher_{name}": number for name, number in teacher_told(settings, seed).items()}
    )


def distill(
    settings: LanguageSettings, student: TokenStudent, train: TokenStates, searches: StudentSearch | None, seed: int
) -> None:
    """Train a student in place to make of every token what the teacher makes of it, layer by layer.

    The loss is the squared error of the layers' outputs, summed over the layers, and the penalties of the gates.
    """
    gates = [layer.gate for layer in student.layers]

    def steps() -> Iterator[TokenBatch]:
        for step, rows in enumerate(islice(endless_rows(len(train), settings.batch_size, seed), settings.steps)):
            if searches is not None and step in settings.searched:
                searches.search()
            student.train()
            yield train.batch(rows)
            for gate in gates:
                if isinstance(gate, GammaAnnealing):
                    gate.step()

    def loss(batch: TokenBatch) -> Tensor:
        errors = distillation_losses(student(batch), batch).sum()
        return errors + torch.stack([layer.moe.regularization() for layer in student.layers]).sum()

    descend([each for each in student.parameters() if each.requires_grad], steps(), loss, settings.learning_rate)


def told_by(
    settings: LanguageSettings, seed: int, train: NDArray[np.float64], test: NDArray[np.float64]
) -> dict[str, float]:
    """Return what embeddings of the texts of a seed are worth, shape [N, H] each.

    How far the similarities of the test snippets, and sentences, are from those of the teacher; the error of a ridge
    regression of the ratings of film snippets, and the share of sentences of product reviews whose polarity a ridge
    classifier gets wrong: both fitted on the training texts, with the penalty of the least leave-one-out error.
    """
    data = taught(settings)
    rows = data.divided(settings.test_share, seed)
    whole = data.states.select(rows[1]).means().double()
    similar = compared("", functional.normalize(torch.from_numpy(test)), functional.normalize(whole))
    films = [(part < data.films).numpy() for part in rows]
    scores = [data.states.scores[part].double().numpy() for part in rows]
    rated = RidgeCV(RIDGES).fit(train[films[0]], scores[0][films[0]]).predict(test[films[1]])
    sided = RidgeClassifierCV(RIDGES).fit(train[~films[0]], scores[0][~films[0]] > 0).predict(test[~films[1]])
    return similar | {
        "rating_rmse": float(np.sqrt(np.mean((rated - scores[1][films[1]]) ** 2))),
        "polarity_error": float(np.mean(sided != (scores[1][~films[1]] > 0))),
    }


@lru_cache(maxsize=1)
def teacher_told(settings: LanguageSettings, seed: int) -> dict[str, float]:
    """Return what the teacher's own embeddings are worth."""
    data = taught(settings)
    train, test = (
        data.states.select(rows).means().double().numpy() for rows in data.divided(settings.test_share, seed)
    )
    found = told_by(settings, seed, train, test)
    return {name: found[name] for name in ("rating_rmse", "polarity_error")}


EXPERIMENTS = (
    Experiment(
        name="language",
        title="Students of MiniLM, four gates, reviews of films and products",
        question=(
            "The feed-forward layers of the last {layers} layers of a BERT are split into {experts} experts, dealt by "
            "importance as MoEBERT does or by our partition, put under fresh gates (two experts a token, one under "
            "Hash) and distilled for {steps} steps. Does search of the expert maps during the distillation, or the "
            "partition, bring the student closer to its teacher on held-out texts, and does it show in the polarity of "
            "product reviews and the ratings of film reviews that are read off its embeddings?"
        ),
        gates=SPARSE,
        searches=tuple(f"{split}{end}" for split in SPLITS for end in ("", f", {SEARCHED}")),
        pairs=(
            ("deal", "deal, search"),
            ("partition", "partition, search"),
            ("deal", "partition"),
            ("deal", "partition, search"),
        ),
        settings=LanguageSettings(),
        smoke=LanguageSettings(
            layers=1,
            experts=4,
            slots=8,
            max_tokens=12,
            films=30,
            products=40,
            rows=200,
            steps=4,
            batch_size=8,
            annealed=2,
            searched=(0, 2),
            search_texts=20,
            iterations=20,
            made=True,
        ),
        run_trial=run_trial,
        measures=(
            Measure("test_loss", "test distillation loss", digits=5),
            Measure("similarity_error", "error of similarities", digits=4),
            Measure("polarity_error", "polarity, share wrong", digits=4),
            Measure("rating_rmse", "test RMSE, rating", digits=4),
            Measure("experts_per_token", "experts a token", digits=2),
            Measure("training_seconds", "processor seconds of training and search", digits=1),
        ),
        curves=False,
        maps=False,
    ),
)
