"""One self-contained page that sets checkpoints, or memories, side by side."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from gam_scale.charts import Series, heat_map, line_chart
from gam_scale.errors import UserError
from gam_scale.evaluate import table
from gam_scale.evaluate.interval import Interval
from gam_scale.evaluate.recall import RecallResult
from gam_scale.evaluate.subject import Subject
from gam_scale.evaluate.table import Table
from gam_scale.files import write_bytes
from gam_scale.report import STYLE

# Eight colours that stay apart for most colour-blind readers (after Okabe and Ito), by scheme.
_LIGHT = ("#2f6db5", "#c4561c", "#1b7f5c", "#8a55a8", "#9a7400", "#b83f77", "#2b8aa8", "#646b76")
_DARK = ("#78aeea", "#ee9a62", "#5cc4a0", "#c496e0", "#d9b64a", "#f08cb4", "#70c8e2", "#9299a4")
_WIDE, _NARROW = (912, 360), (430, 300)


def write_comparison(
    path: str | Path, subjects: Sequence[Subject], recalls: Sequence[RecallResult]
) -> Path:
    """Write the page; sections of what was not measured are left out.

    Raises:
        UserError: the file cannot be written.
    """
    parts = [*_checkpoints(subjects), *_recall(recalls)] if subjects else _recall(recalls)
    names = [s.name for s in subjects] or [r.kind for r in recalls]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Is the context used?</title>\n<style>{STYLE}{_style()}</style></head>\n<body>\n"
        f"<header><h1>Is the context used?</h1><p>{escape(', '.join(names))}</p></header>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    try:
        write_bytes(path, page.encode())
    except OSError as error:
        raise UserError(f"--report {path} cannot be written: {error.strerror}") from None
    return Path(path)


def _checkpoints(subjects: Sequence[Subject]) -> list[str]:
    parts = [_table(table.sizes(subjects))]
    if placed := [s for s in subjects if s.by_position]:
        parts.append(_position_chart(placed))
        parts.append(_table(table.positions(placed)))
    if paired := [s for s in subjects if s.same_tokens]:
        parts.append(_table(table.differences(paired)))
    if cleared := [s for s in subjects if s.effective_context]:
        parts += [_context_chart(cleared), _table(table.contexts(cleared))]
    if hidden := [s for s in subjects if s.needle]:
        maps = [_needle_map(i, s) for i, s in enumerate(hidden)]
        parts.append(f'<div class="two">{"".join(maps)}</div>')
        parts += [_details(table.needles(s)) for s in hidden]
    return parts


def _recall(results: Sequence[RecallResult]) -> list[str]:
    if not results:
        return []
    # One point for each number of pairs: the longest text that states so many.
    longest = {
        s.task.pairs: s.task for s in sorted(results[0].scores, key=lambda s: s.task.seq_len)
    }
    by_pairs = sorted(longest)
    lines = []
    for i, r in enumerate(results):
        found = {s.task: s.accuracy for s in r.scores}
        lines.append(_series(i, by_pairs, [found[longest[n]] for n in by_pairs]))
    guess = Series(by_pairs, [1 / n for n in by_pairs], colour=7)
    learned = [
        Series([float(a) for a, _ in r.curve], [b for _, b in r.curve], colour=i)
        for i, r in enumerate(results)
    ]
    kinds = [r.kind for r in results]
    charts = _figure(
        "Recall by number of pairs",
        "accuracy on the longest held-out texts of so many pairs, 95% band; grey: a guess among "
        "the text's own values",
        kinds,
        line_chart(
            [guess, *lines], _NARROW, name="recall", label="accuracy by pairs", y_range=(0, 1.02)
        ),
    ) + _figure(
        "While learning",
        "accuracy on the hardest texts trained on, by optimizer step",
        kinds,
        line_chart(
            learned,
            _NARROW,
            name="learning",
            label="accuracy by step",
            y_range=(0, 1.02),
            log_x=False,
        ),
    )
    return [
        _table(table.recall_sizes(results)),
        f'<div class="two">{charts}</div>',
        _table(table.recall_scores(results)),
    ]


def _position_chart(subjects: Sequence[Subject]) -> str:
    lines = []
    for i, s in enumerate(subjects):
        assert s.by_position is not None
        bins = [b for b in s.by_position.bins if b.loss is not None]
        middle = [(b.first * b.last) ** 0.5 for b in bins]
        lines.append(_series(i, middle, [b.loss for b in bins if b.loss is not None]))
    return _figure(
        "Loss by position",
        "nats per token against tokens of context; the band is 95%, over sequences",
        [s.name for s in subjects],
        line_chart(lines, _WIDE, name="position", label="loss by tokens of context"),
    )


def _context_chart(subjects: Sequence[Subject]) -> str:
    lines = []
    for i, s in enumerate(subjects):
        assert s.effective_context is not None
        points = s.effective_context.cleared
        lines.append(_series(i, [c.context for c in points], [c.rise for c in points]))
    tolerance = subjects[0].effective_context.tolerance
    return _figure(
        "Effective context",
        f"rise of the loss, in nats per token, when the memory was cleared k tokens ago; dotted: "
        f"{tolerance:g}",
        [s.name for s in subjects],
        line_chart(lines, _WIDE, name="cleared", label="rise of the loss by k", marks=[tolerance]),
    )


def _needle_map(i: int, s: Subject) -> str:
    assert s.needle is not None
    lengths = sorted({c.length for c in s.needle.cells})
    depths = sorted({c.depth for c in s.needle.cells})
    found = {(c.depth, c.length): c.accuracy.mean for c in s.needle.cells}
    svg = heat_map(
        [[found[depth, length] for length in lengths] for depth in depths],
        [f"{depth:.0%}" for depth in depths],
        [f"{length:,}" for length in lengths],
        (430, 60 + 34 * len(depths)),
        name=f"needle{i}",
        label=f"needles found by {escape(s.name)}, by length and depth",
        colour=i,
    )
    caption = f"share found, by tokens (across) and depth (down); chance {s.needle.chance:.3f}"
    return _figure(f"Needles: {s.name}", caption, [], svg)


def _series(i: int, x: Sequence[float], intervals: Sequence[Interval]) -> Series:
    y, low, high = zip(*((v.mean, v.low, v.high) for v in intervals), strict=True)
    return Series(x, y, low, high, i)


def _figure(title: str, caption: str, names: Sequence[str], svg: str) -> str:
    keys = "".join(
        f'<span class="line" style="--train:var(--line{i % 8})">{escape(name)}</span> '
        for i, name in enumerate(names)
    )
    return (
        f"<figure><figcaption><b>{escape(title)}</b><span>{escape(caption)}</span> "
        f"<span>{keys}</span></figcaption>{svg}</figure>"
    )


def _table(t: Table) -> str:
    head = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in t.header)
    rows = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in t.rows
    )
    note = f'<p class="quiet note">{escape(t.note)}</p>' if t.note else ""
    body = f"<div class=wide><table><tr>{head}</tr>{rows}</table></div>{note}"
    return f"<section><h2>{escape(t.title)}</h2>{body}</section>"


def _details(t: Table) -> str:
    inner = _table(t).replace("<section>", "").replace("</section>", "")
    summary = f"<summary>{escape(t.title)}, in numbers</summary>"
    return f"<section><details>{summary}{inner}</details></section>"


def _style() -> str:
    """Colours of the lines, and tables that may be wider than a phone."""

    def colours(values: Sequence[str]) -> str:
        return ":root {" + "".join(f"--line{i}:{v};" for i, v in enumerate(values)) + "}"

    return (
        colours(_LIGHT)
        + f"\n@media screen and (prefers-color-scheme: dark) {{ {colours(_DARK)} }}\n"
        ".wide { overflow-x: auto; } .wide th, .wide td { padding-left: 1rem; }\n"
        ".wide th[scope=row], .wide th:first-child { padding-left: 0; }\n"
        ".wide th:not(:first-child) { text-align: right; padding-right: 0; }\n"
        ".wide td { white-space: nowrap; } svg { max-width: none; }\n"
    )
