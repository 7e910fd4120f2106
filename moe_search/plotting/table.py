"""A table of finished texts, shown alike in the terminal and in the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.table


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

    def as_rich(self) -> rich.table.Table:
        """Return the table for the terminal."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
        )
        for index, column in enumerate(self.columns):
            # A narrow terminal may break a header between words, never within one.
            longest = max(map(len, column.split()), default=0)
            table.add_column(column, justify="right" if index else "left", no_wrap=not index, min_width=longest)
        for index, row in enumerate(self.rows):
            # Text, not str: a cell is never markup.
            table.add_row(*(Text(cell) for cell in row), end_section=index in self.rules)
        if self.note:
            table.caption = Text(self.note)
            table.caption_justify = "left"
        return table

    def as_markdown(self) -> str:
        """Return the table in GitHub's Markdown, the title as a line in bold above and the note below."""
        align = ["---"] + ["---:"] * (len(self.columns) - 1)
        lines = [[cell.replace("|", "\\|") for cell in row] for row in (self.columns, align, *self.rows)]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return "\n\n".join([f"**{self.title}**", table] + [self.note] * bool(self.note)) + "\n"
