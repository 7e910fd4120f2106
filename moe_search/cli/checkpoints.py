"""Checkpoints of transformers on disk, and texts for their models: nothing is fetched, nothing unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_search.checks import require_integer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Checkpoint = Annotated[
    Path, typer.Argument(help="Folder of a model of transformers: config.json and safetensors.", metavar="CHECKPOINT")
]
Text = Annotated[Path, typer.Option(help="A text, or token ids [sequences, tokens] as .npz or .npy.", metavar="FILE")]
Sequences = Annotated[int, typer.Option(help="Sequences of the text, spread evenly over it, at most.")]
Tokens = Annotated[int, typer.Option(help="Tokens of a sequence.")]
Device = Annotated[str, typer.Option(help="auto, or a device of torch such as cpu.")]

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


def check_checkpoint(folder: Path) -> None:
    """Raise an error unless a folder has a configuration and weights as safetensors."""
    if not folder.is_dir():
        raise FileNotFoundError(f"CHECKPOINT must be a folder that exists, got {folder}")
    for pattern in ("config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise FileNotFoundError(f"CHECKPOINT must hold {pattern}, got {folder} without")


def load_model(folder: Path, device: str) -> Any:
    """Return the language model of a checkpoint, in the precision that it was saved with."""
    transformers = _transformers()
    _check_weights(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    return model.to(find_device(device)).eval()


def load_dense(folder: Path) -> Any:
    """Return the model of a checkpoint, of the class that it was saved as; no code that comes with it is run."""
    transformers = _transformers()
    _check_weights(folder)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(folder, **local)
    (name,) = (config.architectures or ["AutoModel"])[:1]
    if not hasattr(transformers, name):
        raise ValueError(f"CHECKPOINT must hold a model of transformers, got the architecture {name}")
    return getattr(transformers, name).from_pretrained(folder, use_safetensors=True, dtype="auto", **local).eval()


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a checkpoint; None if it has none."""
    if not any((folder / name).exists() for name in TOKENIZERS):
        return None
    return _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def find_device(name: str) -> torch.device:
    """Return the device of a name; auto is the accelerator, if there is one."""
    import torch

    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError:
            raise ValueError(f"--device must be auto or a device of torch, got {name!r}") from None
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read_sequences(path: Path, tokenizer: Any, sequences: int, tokens: int) -> Tensor:
    """Return token ids [sequences, tokens] from a text, or from ids in a file of numpy, in their order.

    Parameters
    ----------
    path : Path
        An .npz or .npy with one array of integers [sequences, tokens], or any other file: a text in UTF-8.
    tokenizer : PreTrainedTokenizerBase or None
        Takes a text apart.
    sequences, tokens : int
        The most sequences, spread evenly over the file, and the tokens of one.
    """
    import numpy as np
    import torch

    require_integer("--sequences", sequences, 2)
    require_integer("--tokens", tokens, 2)
    if path.suffix in (".npz", ".npy"):
        try:
            loaded = np.load(path, allow_pickle=False)
            ids = loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]
        except (ValueError, EOFError, IndexError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} must hold an array of integers as numpy writes it, got none") from error
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.size == 0:
            raise ValueError(f"{path} must hold integers of shape (sequences, tokens), got {ids.dtype} {ids.shape}")
        ids = ids[:, :tokens]
    else:
        if tokenizer is None:
            raise ValueError(f"CHECKPOINT must hold a tokenizer to take {path} apart, or give ids as an .npz")
        found = np.array(tokenizer(path.read_text(encoding="utf-8"), verbose=False)["input_ids"])
        if len(found) < 2 * tokens:
            raise ValueError(f"{path} must hold two sequences of {tokens} tokens, got {len(found)} tokens")
        ids = found[: len(found) // tokens * tokens].reshape(-1, tokens)
    chosen = np.linspace(0, len(ids) - 1, min(sequences, len(ids))).astype(int)
    return torch.from_numpy(ids[chosen].astype(np.int64))


def check_tokens(ids: Tensor, model: Any) -> None:
    """Raise ValueError unless all ids of tokens are of the vocabulary of a model."""
    vocabulary = model.get_input_embeddings().num_embeddings
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(
            f"--text must hold tokens 0 .. {vocabulary - 1}, the vocabulary of the model, "
            f"got {int(ids.min())} .. {int(ids.max())}"
        )


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="np"):
                pass
        except SafetensorError as error:
            raise ValueError(f"CHECKPOINT must hold whole safetensors, got {file}: {error}") from error


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ImportError('checkpoints need transformers: pip install "moe-search[transformers]"') from None
    if int(transformers.__version__.split(".")[0]) < 5:
        raise ImportError(
            f'checkpoints need transformers 5, got {transformers.__version__}: pip install -U "transformers>=5"'
        )
    return transformers
