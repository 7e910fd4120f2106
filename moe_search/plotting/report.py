"""One self-contained HTML page: tables, figures and the facts needed to repeat a run."""

import html
import io
import os
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure

from moe_search.plotting.palette import PAGE_COLOURS
from moe_search.plotting.table import Table


@dataclass(frozen=True)
class ReportFigure:
    """A figure as inline SVG (see `figure_svg`) and what it shows.

    Examples
    --------
    >>> from moe_search.plotting import ReportFigure
    >>> ReportFigure("<svg></svg>", "What the figure shows.").caption
    'What the figure shows.'
    """

    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page, shown in this order: paragraphs, tables, findings, figures, folded tables.

    Examples
    --------
    >>> from moe_search.plotting import Section
    >>> Section("Losses", paragraphs=("All runs got there.",)).heading
    'Losses'
    """

    heading: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    findings: tuple[str, ...] = ()
    figures: tuple[ReportFigure, ...] = ()
    folded: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Report:
    """All that stands on the page.

    Attributes
    ----------
    title, lead : str
    sections : tuple of Section
        The page lists their headings as its contents.
    facts : dict of str to str
        What a reader needs to repeat it, such as command and versions.
    headlines : tuple of str
        What came out, a sentence each, above everything else.
    picture : ReportFigure, optional
        What came out, beside the headlines.

    Examples
    --------
    >>> from moe_search.plotting import Report, Section
    >>> Report("One run", "What came of it.", (Section("Losses"),), {"seed": "0"}).title
    'One run'
    """

    title: str
    lead: str
    sections: tuple[Section, ...]
    facts: dict[str, str] = field(default_factory=dict)
    headlines: tuple[str, ...] = ()
    picture: ReportFigure | None = None


def figure_svg(figure: Figure, description: str) -> str:
    """Return a figure as one inline ``<svg>`` element; the description is for readers who cannot see it.

    It has no background, and its text and rules take the colours of the page, light or dark.
    """
    stream = io.StringIO()
    # Text stays text: it is small, sharp and can be searched.
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None}, bbox_inches="tight", transparent=True)
    text = stream.getvalue()
    for colour, variable in PAGE_COLOURS.items():
        text = text.replace(f": {colour}", f": var({variable}, {colour})")
    element = text[text.index("<svg") :]
    label = html.escape(description, quote=True)
    return element.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def render_report(report: Report) -> str:
    """Return the page as HTML text that loads nothing from elsewhere.

    Examples
    --------
    >>> from moe_search.plotting import Report, Section, render_report
    >>> report = Report("One run", "Lead", (Section("Losses", ("All runs got there.",)),))
    >>> "All runs got there." in render_report(report)
    True
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("moe_search.plotting", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(report=report)


def write_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the page to a file.

    Examples
    --------
    >>> from moe_search.plotting import Report, Section, write_report
    >>> write_report(Report("One run", "Lead", (Section("Losses", ("All runs got there.",)),)), "report.html")
    """
    Path(path).write_text(render_report(report), encoding="utf-8")
