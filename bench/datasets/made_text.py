"""Made snippets and a tiny encoder with random weights, in the formats of the real ones: to show that all works."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moe_search.bench.datasets.sentence_encoder import CONFIG, TOKENIZER, WEIGHTS, require_libraries
from moe_search.bench.datasets.snippets import PRODUCT_FILE, TEXT_FILE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GOOD = ("brilliant", "funny", "moving", "fresh", "charming")
BAD = ("dull", "tired", "silly", "flat", "noisy")
PLAIN = ("the", "film", "is", "a", "story", "of", "cast", "and", "plot", "with", "scene", "its", ",", ".")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
}


def write_made_text(folder: str | os.PathLike[str], snippets: int = 120, seed: int = 0) -> None:
    """Write snippets whose scores are set by their good and bad words, and a BERT for these words.

    The folder is to hold ``movieReviewSnippets_GroundTruth.txt``, ``amazonReviewSnippets_GroundTruth.txt`` with reviews
    of three sentences, ``config.json``, ``model.safetensors`` and ``tokenizer.json``. The seed decides texts and
    weights.
    """
    require_libraries()
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel

    target = Path(folder)
    words = (*GOOD, *BAD, *PLAIN)
    for name, own_seed, per_review in ((TEXT_FILE, seed, 1), (PRODUCT_FILE, seed + 1, 3)):
        generator, lines = np.random.default_rng(own_seed), []
        for index in range(snippets):
            text = generator.choice(words, size=generator.integers(3, 14))
            score = sum(1.0 if word in GOOD else -1.0 if word in BAD else 0.0 for word in text)
            number = f"{index}" if per_review == 1 else f"{1 + index // per_review}_{1 + index % per_review}"
            lines.append(f"{number}\t{np.clip(score, -4, 4):.2f}\t{' '.join(text)}\n")
        (target / name).write_text("".join(lines), encoding="utf-8")
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *words))}
    config: dict[str, Any] = {"model_type": "bert", "vocab_size": len(vocabulary), **SIZES}
    (target / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(BertConfig(**config), add_pooling_layer=False)
        # At BERT's own scale of 0.02 a model this narrow would tell no two words apart.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.5)
    save_file(model.state_dict(), str(target / WEIGHTS))
    _tokenizer(vocabulary).save(str(target / TOKENIZER))


def _tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    return tokenizer
