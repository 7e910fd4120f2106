"""A dense encoder made sparse: its feed-forward layers split into experts by our search, and by what others do."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from moe_search.bench.datasets.sentence_encoder import SentenceEncoder
from moe_search.bench.datasets.snippets import Snippets
from moe_search.bench.experiments.experiment import Experiment, Measure, Numbers
from moe_search.bench.experiments.token_teacher import read_encoder_and_snippets
from moe_search.bench.experiments.training import endless_rows
from moe_search.bench.peers.neuron_partitions import cmoe, moebert_deal, moefication
from moe_search.checks import require_choice
from moe_search.layers import cluster_neurons
from moe_search.training import to_mixture
from moe_search.training.to_mixture import FeedForward

BATCH = 32
"""Texts that are encoded at a time."""

ACTIVE = {"a quarter": 4, "half": 2}
"""One of so many experts runs on a token."""

PARTITIONS = ("deal", "k-means", "binary features", "search")
"""MoEBERT's, MoEfication's, CMoE's, ours."""


@dataclass(frozen=True)
class DenseToMoESettings:
    """Sizes of a trial.

    Attributes
    ----------
    experts : int
        Experts of every layer; a multiple of 4.
    rows : int
        Tokens of the calibration data.
    max_tokens : int
        Tokens of a snippet at most, the special ones included.
    test_snippets : int
        Held-out snippets whose similarities are compared.
    router : str
        As for `split_feed_forward`.
    steps, batch_size, learning_rate
        Of the distillation that follows; 0 steps are none.
    made : bool
        Whether to make up snippets and a tiny encoder where no path is given.
    path : str or None
        Folder with the archive of the snippets and the wheel of the encoder.
    """

    experts: int = 16
    rows: int = 3000
    max_tokens: int = 64
    test_snippets: int = 320
    router: str = "ridge"
    steps: int = 60
    batch_size: int = 16
    learning_rate: float = 2e-4
    made: bool = False
    path: str | None = None


@lru_cache(maxsize=1)
def read(path: str | None, made: bool) -> tuple[SentenceEncoder, Snippets]:
    """Return the encoder and its texts; the last ones are kept."""
    return read_encoder_and_snippets(path, made)


def run_trial(settings: DenseToMoESettings, seed: int, gate: str, search: str) -> Numbers:
    """Split all layers, and distill from the dense encoder; `gate` says how many experts run, `search` how to split."""
    require_choice("gate", gate, tuple(ACTIVE))
    require_choice("search", search, PARTITIONS)
    encoder, snippets = read(settings.path, settings.made)
    active = settings.experts // ACTIVE[gate]
    order = torch.randperm(len(snippets.train.texts), generator=torch.Generator().manual_seed(seed)).tolist()
    texts = [snippets.train.texts[row] for row in order]
    test = snippets.test.texts[: settings.test_snippets]
    student = SentenceEncoder(copy.deepcopy(encoder.model), encoder.tokenizer)
    divide = Divider(search, settings.experts, active, seed)
    started = time.process_time()
    to_mixture(
        student.model,
        None,
        batches(encoder, texts, settings.max_tokens),
        settings.experts,
        active,
        router=settings.router,
        rows=settings.rows,
        divide=divide,
    )
    seconds = time.process_time() - started
    whole = embeddings(encoder, test, settings.max_tokens)
    numbers = {"partition_seconds": divide.seconds, "conversion_seconds": seconds}
    numbers |= compared("", embeddings(student, test, settings.max_tokens), whole)
    if settings.steps:
        distill(student, encoder, texts, settings, seed)
    return numbers | compared("distilled_", embeddings(student, test, settings.max_tokens), whole)


@dataclass
class Divider:
    """Divides the neurons of a layer, and keeps the processor time of it."""

    name: str
    experts: int
    active: int
    seed: int
    seconds: float = 0.0

    def __call__(self, layer: FeedForward, inputs: Tensor) -> Tensor:
        """Return the neurons of every expert."""
        started = time.process_time()
        with torch.no_grad():
            values = layer.hidden(inputs)
            weight = layer.second.weight
            mass = ((values - values.mean(0)) * weight.norm(dim=0)).square()
        ways: Mapping[str, Callable[[], Tensor]] = {
            "deal": lambda: moebert_deal(mass, self.experts),
            "k-means": lambda: moefication(layer.hidden.first.weight.detach(), self.experts, self.seed),
            "binary features": lambda: cmoe(values, self.experts),
            "search": lambda: cluster_neurons(values, weight, self.experts, self.active, seed=self.seed),
        }
        neurons = ways[self.name]()
        self.seconds += time.process_time() - started
        return neurons


def batches(encoder: SentenceEncoder, texts: Sequence[str], max_tokens: int) -> Iterator[dict[str, Tensor]]:
    """Yield texts as the model takes them, `BATCH` at a time."""
    for begin in range(0, len(texts), BATCH):
        yield padded(encoder, texts[begin : begin + BATCH], max_tokens)


def padded(encoder: SentenceEncoder, texts: Sequence[str], max_tokens: int) -> dict[str, Tensor]:
    """Return texts as the model takes them."""
    tokens = encoder.tokens(texts, max_tokens)
    ids = pad_sequence(tokens, batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(each) for each in tokens])[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}


@torch.no_grad()
def embeddings(encoder: SentenceEncoder, texts: Sequence[str], max_tokens: int) -> Tensor:
    """Return the mean states of the tokens of every text, scaled to length 1; shape [N, H]."""
    encoder.model.train(False)
    found = []
    for batch in batches(encoder, texts, max_tokens):
        mask = batch["attention_mask"][:, :, None]
        found.append((encoder.model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return functional.normalize(torch.cat(found), dim=1)


def compared(prefix: str, split: Tensor, whole: Tensor) -> dict[str, float]:
    """Return how far embeddings [N, H] are from those of the dense encoder.

    Their similarities are the cosines of all pairs of texts; "nearest" is the share of texts whose nearest other text
    is the same.
    """
    similar, known = split @ split.T, whole @ whole.T
    nearest = [each.fill_diagonal_(-2.0).argmax(1) for each in (similar.clone(), known.clone())]
    return {
        f"{prefix}similarity_error": float((similar - known).square().mean().sqrt()),
        f"{prefix}cosine": float((split * whole).sum(1).mean()),
        f"{prefix}nearest": float((nearest[0] == nearest[1]).float().mean()),
    }


def distill(
    student: SentenceEncoder, teacher: SentenceEncoder, texts: Sequence[str], settings: DenseToMoESettings, seed: int
) -> None:
    """Train the mixtures in place to make of every token what the dense encoder makes of it in the end."""
    parameters = [each for each in student.model.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(parameters, settings.learning_rate)
    rows = endless_rows(len(texts), settings.batch_size, seed)
    for _ in range(settings.steps):
        batch = padded(teacher, [texts[row] for row in next(rows).tolist()], settings.max_tokens)
        mask = batch["attention_mask"].bool()
        with torch.no_grad():
            target = teacher.model(**batch).last_hidden_state[mask]
        loss = functional.mse_loss(student.model(**batch).last_hidden_state[mask], target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


EXPERIMENTS = (
    Experiment(
        name="dense-to-moe",
        title="A dense encoder made sparse, MiniLM on film reviews",
        question=(
            "All feed-forward layers of a BERT are split into {experts} equal experts, of which a linear router "
            "chooses a quarter or half for every token; skipped neurons give their mean. How far are the similarities "
            "of held-out texts from those of the dense encoder, before and after {steps} steps of distillation, by how "
            "the neurons were divided: dealt by importance (MoEBERT), clustered by their weights (MoEfication) or by "
            "which tokens activate them (CMoE), or searched?"
        ),
        gates=tuple(ACTIVE),
        searches=PARTITIONS,
        settings=DenseToMoESettings(),
        smoke=DenseToMoESettings(
            experts=4, rows=200, max_tokens=12, test_snippets=12, steps=2, batch_size=4, made=True
        ),
        run_trial=run_trial,
        measures=(
            Measure("similarity_error", "error of similarities", digits=4),
            Measure("distilled_similarity_error", "error of similarities, distilled", digits=4),
            Measure("cosine", "cosine to the dense embedding", better="higher"),
            Measure("distilled_cosine", "cosine, distilled", better="higher"),
            Measure("nearest", "same nearest text", better="higher"),
            Measure("partition_seconds", "processor seconds of the partition, all layers", digits=1),
        ),
        seeds=3,
        curves=False,
        maps=False,
    ),
)
