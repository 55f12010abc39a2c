"""A table that can be shown on pages, in Markdown and on terminals."""

from dataclasses import dataclass, replace
from typing import ClassVar

from gam_scale.report.markdown import plain


@dataclass(frozen=True)
class Table:
    """A table: title, header and rows of cells; ``note`` explains the numbers."""

    kind: ClassVar[str] = "table"

    title: str
    header: list[str]
    """Names of the columns; empty if the first cell of each row names the others."""
    rows: list[list[str]]
    note: str = ""
    stacks: bool = False
    """Whether phones show the cells of a row below one another, instead of scrolling."""
    in_words: bool = False
    """Whether cells are words, which a page aligns left and breaks into lines."""

    @property
    def layout(self) -> str:
        """CSS class of the table on a page; ``wide`` tables scroll."""
        if self.in_words or not self.header:
            return "words" if self.in_words else "facts"
        return "wide stacked" if self.stacks else "wide"

    def without_empty_columns(self) -> "Table":
        """Return a copy without the columns that are empty in every row."""
        kept = [i for i in range(len(self.header)) if any(row[i] for row in self.rows)]
        rows = [[row[i] for i in kept] for row in self.rows]
        return replace(self, header=[self.header[i] for i in kept], rows=rows)

    def markdown(self) -> str:
        """Return the table as a section of Markdown."""
        header = self.header or [""] * max(map(len, self.rows), default=1)
        lines = [header, ["---", *["--:"] * (len(header) - 1)]]
        if self.in_words:
            lines[1] = ["---"] * len(header)
        cells = [[plain(cell) for cell in row] for row in (header, *self.rows)]
        body = [cells[0], lines[1], *cells[1:]]
        text = "\n".join("| " + " | ".join(row) + " |" for row in body)
        return f"## {plain(self.title)}\n\n{text}" + (
            f"\n\n{plain(self.note)}" if self.note else ""
        )

    def __str__(self) -> str:
        """Return the table as plain text for a terminal."""
        cells = [row for row in (self.header, *self.rows) if row]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        return "\n".join(filter(None, [self.title, *lines, self.note]))
