"""A page of results, as one self-contained HTML file and as Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Protocol

from gam_scale.report.figure import Figure
from gam_scale.report.looks import DARK, LIGHT
from gam_scale.report.markdown import code, plain
from gam_scale.report.table import Table

if TYPE_CHECKING:
    from jinja2 import Template


class Part(Protocol):
    """An element of a page: a :class:`Table`, a :class:`Figure`, or a class of this module."""

    kind: ClassVar[str]
    """Name of the macro in parts.html that renders the part."""

    def markdown(self) -> str:
        """Return the part as Markdown."""


@dataclass(frozen=True)
class KeyFigures:
    """The few numbers to show first: name, value, and a qualifier such as an interval."""

    kind: ClassVar[str] = "key_figures"

    figures: Sequence[tuple[str, str, str]]

    def markdown(self) -> str:
        return "\n".join(
            f"* {plain(name)}: {plain(' '.join(filter(None, value)))}"
            for name, *value in self.figures
        )


@dataclass(frozen=True)
class Sentences:
    """A list of sentences under a heading."""

    kind: ClassVar[str] = "sentences"

    title: str
    sentences: Sequence[str]

    def markdown(self) -> str:
        return f"## {plain(self.title)}\n\n" + "\n".join(f"* {plain(s)}" for s in self.sentences)


@dataclass(frozen=True)
class Note:
    """A paragraph in small print."""

    kind: ClassVar[str] = "note"

    text: str

    def markdown(self) -> str:
        return plain(self.text)


@dataclass(frozen=True)
class Quotes:
    """Passages of text under a heading, each with a caption, which may be empty."""

    kind: ClassVar[str] = "quotes"

    title: str
    passages: Sequence[tuple[str, str]]

    def markdown(self) -> str:
        passages = (f"{plain(caption)}\n\n{code(text)}".lstrip() for caption, text in self.passages)
        return f"## {plain(self.title)}\n\n" + "\n\n".join(passages)


@dataclass(frozen=True)
class Folded:
    """A table or preformatted text that opens when the reader clicks its title."""

    kind: ClassVar[str] = "folded"

    title: str
    content: Table | str

    def markdown(self) -> str:
        if isinstance(self.content, Table):
            return self.content.markdown()
        return f"## {plain(self.title)}\n\n{code(self.content)}"


@dataclass(frozen=True)
class Beside:
    """Parts side by side, in a wide window; ``layout`` is the CSS class ``two`` or ``three``."""

    kind: ClassVar[str] = "beside"

    parts: Sequence[Part]
    layout: str = "two"

    def markdown(self) -> str:
        return "\n\n".join(part.markdown() for part in self.parts)


@dataclass(frozen=True)
class Page:
    """A page: its title, a sentence on its subject, and its parts in order."""

    title: str
    subject: str
    parts: Sequence[Part]

    def html(self) -> str:
        """Return the page as HTML: light and dark, for phones and print, no network, no scripts."""
        return _template().render(page=self, light=LIGHT, dark=DARK)

    def markdown(self) -> str:
        """Return the page as Markdown, which shows the figures' .png files in the same folder."""
        parts = [f"# {plain(self.title)}", plain(self.subject)]
        return "\n\n".join([*parts, *(part.markdown() for part in self.parts)]) + "\n"

    def files(self, *forms: str) -> dict[str, bytes]:
        """Return report.html, report.md and every figure in each of ``forms``, by file name."""
        files = {"report.html": self.html().encode(), "report.md": self.markdown().encode()}
        for figure in _figures(self.parts):
            files |= {f"{figure.name}.{form}": figure.file(form) for form in forms}
        return files


def _figures(parts: Sequence[Part]) -> Iterator[Figure]:
    for part in parts:
        if isinstance(part, Figure):
            if part.draw is not None:
                yield part
        elif isinstance(part, Beside):
            yield from _figures(part.parts)


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gam_scale.report"),
        autoescape=True,  # names of runs and texts of models must not become markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")
