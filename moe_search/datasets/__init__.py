"""Data sets made from what is installed or lies at a path: nothing is downloaded."""

from moe_search.datasets.canvases import Canvases, CanvasSplit
from moe_search.datasets.movielens import MovieLens, Watches, load_movielens
from moe_search.datasets.sentence_encoder import SentenceEncoder, load_sentence_encoder
from moe_search.datasets.snippets import Snippets, SnippetSplit, load_snippets
from moe_search.datasets.two_digits import load_two_digits
from moe_search.datasets.two_fashion import load_two_fashion

__all__ = [
    "CanvasSplit",
    "Canvases",
    "MovieLens",
    "SentenceEncoder",
    "SnippetSplit",
    "Snippets",
    "Watches",
    "load_movielens",
    "load_sentence_encoder",
    "load_snippets",
    "load_two_digits",
    "load_two_fashion",
]
