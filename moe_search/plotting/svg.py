"""Figures as SVG text that can stand inside an HTML page."""

import html
import io

import matplotlib as mpl
from matplotlib.figure import Figure


def figure_svg(figure: Figure, description: str) -> str:
    """Return a figure as one inline ``<svg>`` element.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    description : str
        What is to be seen, for readers who cannot see it.
    """
    stream = io.StringIO()
    # Text stays text: it is small, sharp and can be searched.
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = stream.getvalue()
    element = text[text.index("<svg") :]
    label = html.escape(description, quote=True)
    return element.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
