"""A self-contained page that compares checkpoints, or memories."""

from collections.abc import Sequence
from pathlib import Path

from gam_scale.errors import UserError
from gam_scale.evaluate import tables
from gam_scale.evaluate.interval import Interval
from gam_scale.evaluate.recall import RecallResult
from gam_scale.evaluate.subject import Subject
from gam_scale.files import write_bytes
from gam_scale.report.figure import Figure
from gam_scale.report.lines import SMALL, WIDE, Series, heat_map, line_figure
from gam_scale.report.page import Beside, Folded, Page, Part


def write_comparison(
    path: str | Path, subjects: Sequence[Subject], recalls: Sequence[RecallResult]
) -> Path:
    """Write the page, without sections for what was not measured.

    Raises:
        UserError: the file cannot be written.
    """
    names = [s.name for s in subjects] or [r.kind for r in recalls]
    parts = [*_checkpoints(subjects), *_recall(recalls)]
    page = Page("Is the context used?", ", ".join(names), parts)
    try:
        write_bytes(path, page.html().encode())
    except OSError as error:
        raise UserError(f"--report {path} cannot be written: {error.strerror}") from None
    return Path(path)


def _checkpoints(subjects: Sequence[Subject]) -> list[Part]:
    if not subjects:
        return []
    parts: list[Part] = [tables.sizes(subjects)]
    if placed := [s for s in subjects if s.by_position]:
        parts += [_by_position(placed), tables.positions(placed)]
    if paired := [s for s in subjects if s.same_tokens]:
        parts.append(tables.differences(paired))
    if cleared := [s for s in subjects if s.effective_context]:
        parts += [_effective_context(cleared), tables.contexts(cleared)]
    if hidden := [s for s in subjects if s.needle]:
        parts.append(Beside([_needles(i, s) for i, s in enumerate(hidden)]))
        shown = map(tables.needles, hidden)
        parts += [Folded(f"{table.title}, in numbers", table) for table in shown]
    parts += [tables.pairs(s) for s in subjects if s.pairs]
    return parts + ([tables.tasks(subjects)] if any(s.tasks for s in subjects) else [])


def _recall(results: Sequence[RecallResult]) -> list[Part]:
    if not results:
        return []
    figures = Beside([_by_pairs(results), _learning(results)])
    return [tables.recall_sizes(results), figures, tables.recall_scores(results)]


def _by_pairs(results: Sequence[RecallResult]) -> Figure:
    # One point for each size (for recall, the number of pairs), of the longest texts.
    longest = {s.task.size: s.task for s in sorted(results[0].scores, key=lambda s: s.task.seq_len)}
    sizes, unit = sorted(longest), results[0].scores[0].task.columns[-1]
    lines = []
    for i, r in enumerate(results):
        accuracy = {s.task: s.accuracy for s in r.scores}
        lines.append(banded(r.kind, sizes, [accuracy[longest[n]] for n in sizes], i))
    guess = Series("", sizes, [longest[n].guess for n in sizes], colour=7)
    caption = (
        f"accuracy on the longest held-out texts of so many {unit}, 95% band; grey: a guess among "
        f"{results[0].scores[0].task.guessed}"
    )
    return line_figure(
        "recall",
        f"Accuracy by number of {unit}",
        caption,
        [guess, *lines],
        SMALL,
        y_range=(0, 1.02),
        log_x=True,
    )


def _learning(results: Sequence[RecallResult]) -> Figure:
    lines = [
        Series(r.kind, [step for step, _ in r.curve], [score for _, score in r.curve])
        for r in results
    ]
    caption = "accuracy on the hardest texts trained on, by optimizer step"
    return line_figure("learning", "While learning", caption, lines, SMALL, y_range=(0, 1.02))


def _by_position(subjects: Sequence[Subject]) -> Figure:
    lines = []
    for i, s in enumerate(subjects):
        assert s.by_position is not None
        bins = [b for b in s.by_position.bins if b.loss is not None]
        middle = [(b.first * b.last) ** 0.5 for b in bins]
        lines.append(banded(s.name, middle, [b.loss for b in bins if b.loss is not None], i))
    caption = "nats per token against tokens of context; the band is 95%, over sequences"
    return line_figure(
        "position", "Loss by position", caption, lines, WIDE, narrow_size=SMALL, log_x=True
    )


def _effective_context(subjects: Sequence[Subject]) -> Figure:
    lines, tolerance = [], 0.0
    for i, s in enumerate(subjects):
        assert s.effective_context is not None
        points = s.effective_context.cleared
        lines.append(banded(s.name, [c.context for c in points], [c.rise for c in points], i))
        tolerance = s.effective_context.tolerance  # the same for all subjects
    caption = (
        "rise of the loss, in nats per token, when the memory was cleared k tokens ago; dotted: "
        f"{tolerance:g}"
    )
    return line_figure(
        "cleared",
        "Effective context",
        caption,
        lines,
        WIDE,
        narrow_size=SMALL,
        log_x=True,
        marks=[tolerance],
    )


def _needles(i: int, s: Subject) -> Figure:
    assert s.needle is not None
    lengths = sorted({c.length for c in s.needle.cells})
    depths = sorted({c.depth for c in s.needle.cells})
    accuracy = {(c.depth, c.length): c.accuracy.mean for c in s.needle.cells}
    return heat_map(
        f"needle{i}",
        f"Needles: {s.name}",
        f"share found, by tokens (across) and depth (down); chance {s.needle.chance:.3f}",
        [[accuracy[depth, length] for length in lengths] for depth in depths],
        [f"{depth:.0%}" for depth in depths],
        [f"{length:,}" for length in lengths],
        colour=i,
    )


def banded(name: str, x: Sequence[float], intervals: Sequence[Interval], colour: int) -> Series:
    """Return a line through the means of ``intervals``, which are its band."""
    ends = ("mean", "low", "high")
    y, low, high = ([getattr(each, end) for each in intervals] for end in ends)
    return Series(name, x, y, low, high, colour)
