"""One self-contained page that sets checkpoints, or memories, side by side."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from gam_scale.charts import Series, heat_map, line_chart
from gam_scale.errors import UserError
from gam_scale.evaluate import page, table
from gam_scale.evaluate.interval import Interval
from gam_scale.evaluate.recall import RecallResult
from gam_scale.evaluate.subject import Subject
from gam_scale.evaluate.table import Table
from gam_scale.files import write_bytes

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
    text = page.document("Is the context used?", ", ".join(names), parts)
    try:
        write_bytes(path, text.encode())
    except OSError as error:
        raise UserError(f"--report {path} cannot be written: {error.strerror}") from None
    return Path(path)


def _checkpoints(subjects: Sequence[Subject]) -> list[str]:
    parts = [page.table(table.sizes(subjects))]
    if placed := [s for s in subjects if s.by_position]:
        parts.append(_position_chart(placed))
        parts.append(page.table(table.positions(placed)))
    if paired := [s for s in subjects if s.same_tokens]:
        parts.append(page.table(table.differences(paired)))
    if cleared := [s for s in subjects if s.effective_context]:
        parts += [_context_chart(cleared), page.table(table.contexts(cleared))]
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
        page.table(table.recall_sizes(results)),
        f'<div class="two">{charts}</div>',
        page.table(table.recall_scores(results)),
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
        tolerance = s.effective_context.tolerance  # the same of all
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
    return page.figure(title, caption, list(enumerate(names)), svg)


def _details(t: Table) -> str:
    inner = page.table(t).replace("<section>", "").replace("</section>", "")
    summary = f"<summary>{escape(t.title)}, in numbers</summary>"
    return f"<section><details>{summary}{inner}</details></section>"
