"""Examples of an image data set with their labels."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from moe_search.plotting.palette import RULE, STYLE


def canvases(images: NDArray[np.float32], captions: list[str]) -> Figure:
    """Draw images in one row, each with its caption below.

    Examples
    --------
    >>> import numpy as np
    >>> from moe_search.plotting import canvases
    >>> canvases(np.zeros((2, 8, 8), dtype=np.float32), ["3 and 5", "0 and 7"]).savefig("images.svg")
    """
    if not len(images) or len(images) != len(captions):
        raise ValueError(f"images and captions must be as many, at least one, got {len(images)} and {len(captions)}")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.05 * len(images), 1.35), layout="constrained")
        for image, caption, axis in zip(
            images, captions, figure.subplots(1, len(images), squeeze=False)[0], strict=True
        ):
            axis.imshow(image, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xlabel(caption)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_color(RULE)
    return figure
