import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from moe_search.plotting.loss_curves import LossCurve, LossPanel, loss_curves
from moe_search.plotting.palette import PAGE_COLOURS
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
    picture = ReportFigure(figure, "what came out")
    return Report(
        "A title", "The lead", (section,), {"command": "moe-search demo --seeds 2"}, ("It is better.",), picture
    )


def test_everything_given_stands_on_the_page(report):
    page = Page(render_report(report))
    assert page.open == []
    assert page.texts["h1"] == ["A title"]
    assert page.texts["h2"] == ["Part", "To repeat it"]
    assert page.texts["a"] == ["Part", "To repeat it"]
    assert page.texts["h3"] == ["Results"] * 2
    assert page.texts["td"] == ["0.5", "0.4"] * 2
    assert page.texts["li"] == ["a finding"]
    assert page.texts["figcaption"] == ["what came out", "what it shows"]
    assert page.texts["dd"] == ["moe-search demo --seeds 2"]
    assert "A panel" in page.texts["text"]


def test_what_came_out_stands_on_top(report):
    text = render_report(report)
    places = [text.index(each) for each in ("<h1>", "It is better.", "what came out", "The lead", "<nav", "<h2>Part")]
    assert places == sorted(places)
    assert (
        set(re.findall(r'href="#([^"]*)"', text))
        >= set(re.findall(r'<section id="([^"]*)"', text))
        == {
            "part-1",
            "facts",
        }
    )


def test_figures_take_the_colours_of_the_page(report):
    text = render_report(report)
    light, dark = re.findall(r":root \{([^}]*)\}", text)
    for variable in PAGE_COLOURS.values():
        assert f"{variable}: " in light
        assert f"{variable}: " in dark
    (svg,) = set(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--ink, " in svg
    assert not any(f": {colour}" in svg for colour in PAGE_COLOURS)
    # A white ground would stay white on a dark page.
    assert "#ffffff" not in svg


def contrast(first, second):
    """The contrast of two colours by WCAG 2, as #rrggbb."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def test_texts_can_be_read_on_light_and_dark_pages(report):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    light, dark = re.findall(r":root \{([^}]*)\}", render_report(report))
    for variables in (light, dark):
        colours = dict(re.findall(r"--(\w+): (#\w+)", variables))
        paper = colours["paper"] if len(colours["paper"]) == 7 else "#ffffff"
        for name in ("ink", "muted", "accent"):
            assert contrast(colours[name], paper) >= 4.5, name


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


def printed(table, width):
    stream = io.StringIO()
    Console(width=width, file=stream).print(table.as_rich())
    return stream.getvalue()


def test_table_in_the_terminal(table):
    for text in ("Results", "gate", "loss", "Hash+ <b>", "0.4", "Lower is better"):
        assert text in printed(table, 80)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_cell_is_cut_in_a_narrow_terminal(width):
    columns = ("gate, search", "68 % interval", "p of more than 10 times", *(f"measure {i}" for i in range(8)))
    rows = tuple((f"DSelect-k, {i}", "1.04 to 13.20", *(f"{i}.{j:06}" for j in range(9))) for i in range(2))
    lines = printed(Table("A wide table", columns, rows, note="the note"), width).splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    assert "…" not in "".join(lines)
    for row in rows:
        mine = " ".join(line.removeprefix(f" {row[0]}") for line in lines if line.startswith(f" {row[0]} "))
        # All cells, each once and in their order, beside the name of the row.
        assert mine.split() == " ".join(row[1:]).split()
    assert sum("A wide table" in line for line in lines) == sum("the note" in line for line in lines) == 1
