"""Parts of a self-contained page of results: its frame, sentences, figures and tables, as HTML."""

from collections.abc import Sequence
from html import escape

from gam_scale.evaluate.table import Table
from gam_scale.report import STYLE

# Eight colours that stay apart for most colour-blind readers (after Okabe and Ito), by scheme.
LIGHT = ("#2f6db5", "#c4561c", "#1b7f5c", "#8a55a8", "#9a7400", "#b83f77", "#2b8aa8", "#646b76")
_DARK = ("#78aeea", "#ee9a62", "#5cc4a0", "#c496e0", "#d9b64a", "#f08cb4", "#70c8e2", "#9299a4")


def document(title: str, subject: str, parts: Sequence[str]) -> str:
    """The page: light and dark, for phones and print, without network or scripts."""
    header = f"<header><h1>{escape(title)}</h1><p>{escape(subject)}</p></header>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{_style()}</style></head>\n<body>\n"
        + "\n".join(filter(None, [header, *parts]))
        + "\n</body></html>\n"
    )


def sentences(title: str, said: Sequence[str]) -> str:
    """A list under a heading."""
    items = "".join(f"<li>{escape(s)}</li>" for s in said)
    return f"<section><h2>{title}</h2><ul>{items}</ul></section>"


def figure(title: str, caption: str, keys: Sequence[tuple[int, str]], *drawings: str) -> str:
    """Drawings of one thing under a title; ``keys`` names the lines by their colours' numbers."""
    named = "".join(
        f'<span class="line" style="--train:var(--line{i % 8})">{escape(name)}</span> '
        for i, name in keys
    )
    return (
        f"<figure><figcaption><b>{escape(title)}</b><span>{escape(caption)}</span> "
        f"<span>{named}</span></figcaption>{''.join(drawings)}</figure>"
    )


def table(t: Table, kind: str = "wide") -> str:
    """A table; ``kind`` is ``wide``, which scrolls, or ``list``, two columns of words."""
    head = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in t.header)
    rows = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in t.rows
    )
    note = f'<p class="quiet note">{escape(t.note)}</p>' if t.note else ""
    body = f"<div class={kind} tabindex=0><table><tr>{head}</tr>{rows}</table></div>{note}"
    return f"<section><h2>{escape(t.title)}</h2>{body}</section>"


def _style() -> str:
    def colours(values: Sequence[str]) -> str:
        return ":root {" + "".join(f"--line{i}:{v};" for i, v in enumerate(values)) + "}"

    return (
        colours(LIGHT)
        + f"\n@media screen and (prefers-color-scheme: dark) {{ {colours(_DARK)} }}\n"
        ".wide { overflow-x: auto; } .wide th, .wide td { padding-left: 1rem; }\n"
        ".wide th[scope=row], .wide th:first-child { padding-left: 0; }\n"
        ".wide th:not(:first-child) { text-align: right; padding-right: 0; }\n"
        ".wide td, .wide th { white-space: nowrap; } svg { max-width: none; }\n"
        "ul { margin: 0; padding-left: 1.2rem; max-width: 46rem; } li { margin: .35rem 0; }\n"
        "dd small { font-size: .55em; font-weight: 400; color: var(--quiet); "
        "white-space: nowrap; }\n"
        ".list th { width: 45%; } .list td { text-align: left; }\n"
        'svg[class$="-narrow"] { display: none; }\n'
        '@media screen and (max-width: 48rem) { svg[class$="-narrow"] { display: block; }\n'
        '  figure svg:not([class$="-narrow"]) { display: none; } }\n'
        "@media print { .wide { overflow: visible; } .wide td, .wide th { white-space: normal; }\n"
        "  table { font-size: .75rem; } }\n"
    )
