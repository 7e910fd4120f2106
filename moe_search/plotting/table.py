"""A table of finished texts, shown alike in the terminal and in the report."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.console
    import rich.table

GAP = 2
"""Characters between two columns of a table in the terminal."""


@dataclass(frozen=True)
class Table:
    """Rows of texts under named columns.

    Attributes
    ----------
    title : str
    columns : tuple of str
        The first column names the rows, the others hold numbers.
    rows : tuple of tuple of str
        Each as long as `columns`.
    rules : tuple of int
        Indices of rows below which a line is drawn.
    note : str
        How to read it, below the table.

    Examples
    --------
    >>> from moe_search.plotting import Table
    >>> print(Table("Loss", ("gate", "alone", "with search"), (("Top-k", "0.40", "0.28"),)).as_markdown(), end="")
    **Loss**
    <BLANKLINE>
    | gate | alone | with search |
    | --- | ---: | ---: |
    | Top-k | 0.40 | 0.28 |
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    rules: tuple[int, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"rows must have {len(self.columns)} cells as the columns do, got {len(row)}: {row}")

    def as_rich(self) -> rich.console.Group:
        """Return the table for the terminal.

        No cell is ever cut: columns that do not fit beside each other stand below, after the first column once more.
        """
        from rich.console import Console, ConsoleOptions, Group, RenderResult
        from rich.text import Text

        class Parts:
            """The columns, in as many tables as the width needs."""

            @staticmethod
            def __rich_console__(console: Console, options: ConsoleOptions) -> RenderResult:
                for number, widths in enumerate(self._parts(options.max_width)):
                    yield self._part(widths, is_first=not number)

        return Group(Parts(), *([Text(f"{self.note}\n", style="dim italic")] if self.note else []))

    def as_markdown(self) -> str:
        """Return the table in GitHub's Markdown, the title as a line in bold above and the note below."""
        align = ["---"] + ["---:"] * (len(self.columns) - 1)
        lines = [[cell.replace("|", "\\|") for cell in row] for row in (self.columns, align, *self.rows)]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return "\n\n".join([f"**{self.title}**", table] + [self.note] * bool(self.note)) + "\n"

    def _parts(self, width: int) -> list[dict[int, int]]:
        """Return the columns of each part with their widths, the first column in all of them."""
        # A narrow terminal may break a header between words, never within one, and a cell not at all.
        cells = [max((len(row[index]) for row in self.rows), default=0) for index in range(len(self.columns))]
        whole = [max(len(header), longest) for header, longest in zip(self.columns, cells, strict=True)]
        least = [
            max(longest, *map(len, header.split() or [""])) if index else whole[0]
            for index, (header, longest) in enumerate(zip(self.columns, cells, strict=True))
        ]
        parts = [{0: whole[0]}]
        for index in range(1, len(self.columns)):
            if len(parts[-1]) > 1 and _width_of(parts[-1] | {index: least[index]}) > width:
                parts.append({0: whole[0]})
            parts[-1][index] = least[index]
        for part in parts:
            # What is left goes to the header that takes the most lines.
            for _ in range(width - _width_of(part)):
                tallest = max(part, key=lambda index: len(wrap(self.columns[index], part[index])))
                part[tallest] += part[tallest] < whole[tallest]
        return parts

    def _part(self, widths: dict[int, int], is_first: bool) -> rich.table.Table:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        title = self.title if is_first else None
        table = RichTable(
            title=title,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        # Text, not str: neither a header nor a cell is ever markup.
        for index, width in widths.items():
            table.add_column(Text(self.columns[index]), justify="right" if index else "left", width=width)
        for number, row in enumerate(self.rows):
            table.add_row(*(Text(row[index]) for index in widths), end_section=number in self.rules)
        return table


def _width_of(part: dict[int, int]) -> int:
    """Return the characters of a line of columns of these widths, and of a margin on both sides."""
    return sum(part.values()) + GAP * (len(part) - 1) + 2
