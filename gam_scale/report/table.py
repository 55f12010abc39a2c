"""One table for pages, Markdown and terminals."""

from dataclasses import dataclass, replace
from typing import ClassVar

from gam_scale.report.markdown import plain


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of cells; ``note`` says what the numbers are."""

    kind: ClassVar[str] = "table"

    title: str
    header: list[str]
    """Empty where the first cell of each row names the others."""
    rows: list[list[str]]
    note: str = ""
    stacks: bool = False
    """Whether rows stand one below the other on phones, instead of scrolling."""
    in_words: bool = False
    """Whether cells are words, which a page sets from the left and breaks into lines."""

    @property
    def layout(self) -> str:
        """Its class on a page: ``wide`` ones scroll."""
        if self.in_words or not self.header:
            return "words" if self.in_words else "facts"
        return "wide stacked" if self.stacks else "wide"

    def without_empty_columns(self) -> "Table":
        """A copy without the columns that hold nothing in any row."""
        kept = [i for i in range(len(self.header)) if any(row[i] for row in self.rows)]
        rows = [[row[i] for i in kept] for row in self.rows]
        return replace(self, header=[self.header[i] for i in kept], rows=rows)

    def markdown(self) -> str:
        """A section."""
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
        """For a terminal."""
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
