from .movielens import (
    MovieLens as MovieLens,
    Watches as Watches,
    load_movielens as load_movielens,
)
from .sentence_encoder import (
    SentenceEncoder as SentenceEncoder,
    load_sentence_encoder as load_sentence_encoder,
)
from .snippets import (
    ProductSentences as ProductSentences,
    Snippets as Snippets,
    SnippetSplit as SnippetSplit,
    load_product_sentences as load_product_sentences,
    load_snippets as load_snippets,
)
from .two_images import (
    Canvases as Canvases,
    CanvasSplit as CanvasSplit,
    load_two_digits as load_two_digits,
    load_two_fashion as load_two_fashion,
    load_two_mnist as load_two_mnist,
)
