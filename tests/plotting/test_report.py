import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from moe_search.plotting.loss_curves import LossCurve, LossPanel, loss_curves
from moe_search.plotting.report import Report, ReportFigure, Section, figure_svg, render_report, write_report
from moe_search.plotting.table import Table


class Page(HTMLParser):
    """The texts by element, and every address the page would load."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.addresses, self.open = {}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in {"meta", "link", "br", "img"}:
            self.open.append(tag)
        for name, value in attributes:
            if name in {"src", "href", "xlink:href"} and not value.startswith("#"):
                self.addresses.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())


@pytest.fixture
def table():
    return Table(
        "Results", ("gate", "loss"), (("Hash", "0.5"), ("Hash+ <b>", "0.4")), rules=(0,), note="Lower is better"
    )


@pytest.fixture
def report(table):
    curves = LossCurve("Hash", np.array([[2.0, 1.0, 0.5], [2.2, 1.1, 0.4]]), "#0072B2")
    figure = figure_svg(loss_curves([LossPanel("A panel", (curves,))]), 'curves of "Hash"')
    section = Section("Part", ("A & B",), (table,), ("a finding",), (ReportFigure(figure, "what it shows"),), (table,))
    return Report("A title", "The lead", (section,), {"command": "moe-search demo --seeds 2"})


def test_everything_given_stands_on_the_page(report):
    page = Page(render_report(report))
    assert page.open == []
    assert page.texts["h1"] == ["A title"]
    assert page.texts["h2"] == ["Part", "To repeat it"]
    assert page.texts["td"] == ["0.5", "0.4"] * 2
    assert page.texts["li"] == ["a finding"]
    assert page.texts["figcaption"] == ["what it shows"]
    assert page.texts["dd"] == ["moe-search demo --seeds 2"]
    assert "A panel" in page.texts["text"]


def test_page_loads_nothing_from_elsewhere(report):
    text = render_report(report)
    assert Page(text).addresses == []
    assert not re.search(r"@import|url\((?!#)", text)


def test_texts_are_escaped(report):
    text = render_report(report)
    assert "Hash+ &lt;b&gt;" in text
    assert "A &amp; B" in text
    assert 'aria-label="curves of &quot;Hash&quot;"' in text


def test_write_report(report, tmp_path):
    write_report(report, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == render_report(report)


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="rows must have 2 cells as the columns do, got 1"):
        Table("t", ("a", "b"), (("1",),))


def test_table_in_the_terminal(table):
    stream = io.StringIO()
    Console(width=80, file=stream).print(table.as_rich())
    printed = stream.getvalue()
    for text in ("Results", "gate", "loss", "Hash+ <b>", "0.4", "Lower is better"):
        assert text in printed
