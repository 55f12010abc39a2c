"""Measurements as tables."""

from collections.abc import Sequence

from gam_scale.evaluate.by_position import ByPosition
from gam_scale.evaluate.downstream.task import Figures
from gam_scale.evaluate.effective_context import EffectiveContext
from gam_scale.evaluate.interval import Interval
from gam_scale.evaluate.recall import RecallResult
from gam_scale.evaluate.subject import Subject
from gam_scale.report.numbers import or_over, ranged, span
from gam_scale.report.table import Table


def tables(subjects: Sequence[Subject], recalls: Sequence[RecallResult]) -> list[Table]:
    """Return the tables of all that was measured."""
    made = [sizes(subjects)] if subjects else []
    if any(s.by_position for s in subjects):
        made.append(positions(subjects))
    if any(s.same_tokens for s in subjects):
        made.append(differences(subjects))
    if any(s.effective_context for s in subjects):
        made.append(contexts(subjects))
    if any(s.tasks for s in subjects):
        made.append(tasks(subjects))
    made += [needles(s) for s in subjects if s.needle]
    made += [pairs(s) for s in subjects if s.pairs]
    return made + ([recall_sizes(recalls), recall_scores(recalls)] if recalls else [])


def sizes(subjects: Sequence[Subject]) -> Table:
    """Tabulate parameters and state of each checkpoint, and its loss if it was measured."""
    unlike = differences_in_reading(subjects)
    rows = [
        [
            s.name,
            pattern(s.layers),
            f"{s.step:,}",
            f"{s.parameters:,}",
            str(s.state),
            f"{s.state.at(s.seq_len):,}",
            f"{s.seq_len:,}" if "seq_len" in unlike else "",
            f"{s.loss.loss:.4f}" if s.loss else "",
            f"{s.loss.perplexity:,.2f}" if s.loss else "",
            f"{s.loss.bits_per_byte:.4f}" if s.loss else "",
            s.read.text if s.read and "text" in unlike else "",
            s.read.tokenizer if s.read and "tokenizer" in unlike else "",
        ]
        for s in subjects
    ]
    header = ["model", "layers", "steps", "parameters", "state, numbers", "at its length"]
    header += ["tokens of context", "loss", "perplexity", "bits per byte", "text", "tokenizer"]
    counts = [s.parameters for s in subjects], [s.state.at(s.seq_len) for s in subjects]
    notes = [equality(*counts), *unlike.values()]
    note = " ".join(filter(None, notes))
    return Table("Models", header, rows, note).without_empty_columns()


def tasks(subjects: Sequence[Subject]) -> Table:
    """Tabulate the figures of all tasks, such as accuracy, one column per checkpoint."""
    asked = [(s.name, s.tasks) for s in subjects if s.tasks]
    keys = dict.fromkeys((t, f) for _, found in asked for t, of in found.items() for f in of)
    rows = [
        [task, figure.replace("_", " "), *(_of_task(found, task, figure) for _, found in asked)]
        for task, figure in keys
    ]
    note = "Shares of right answers with Wilson's 95% interval; perplexity is of a word."
    return Table("Tasks", ["task", "figure", *(name for name, _ in asked)], rows, note)


def _of_task(found: dict[str, Figures], task: str, figure: str) -> str:
    value = found.get(task, {}).get(figure)
    return "" if value is None else f"{value:,.4f}" if isinstance(value, float) else str(value)


def differences_in_reading(subjects: Sequence[Subject]) -> dict[str, str]:
    """Return a warning for each of length, text and tokenizer that differs between subjects."""
    read, differences = [s.read for s in subjects if s.read], {}
    if len({s.seq_len for s in subjects}) > 1:
        differences["seq_len"] = (
            "The rows read sequences of different lengths, each as long as in its training: their "
            "losses do not compare, those of --seq-len N do."
        )
    if len({r.text_hash for r in read}) > 1:
        differences["text"] = "The rows read different texts: their figures do not compare."
    if len({r.tokenizer for r in read}) > 1:
        differences["tokenizer"] = (
            "Tokenizers differ: no figure per token compares, bits per byte do on one text."
        )
    return differences


def recall_sizes(results: Sequence[RecallResult]) -> Table:
    """Tabulate parameters, state and training of each memory."""
    lengths = [max(s.task.seq_len for s in r.scores) for r in results]
    states = [r.state.at(length) for r, length in zip(results, lengths, strict=True)]
    rows = [
        [r.kind, pattern(r.model.layer_kinds()), f"{r.parameters:,}", str(r.state), f"{state:,}"]
        + [f"{r.lr:g}", f"{r.steps:,}", f"{r.seconds:,.0f}"]
        for r, state in zip(results, states, strict=True)
    ]
    header = ["memory", "layers", "parameters", "state, numbers", f"at {max(lengths):,} tokens"]
    header += ["learning rate", "steps", "seconds"]
    return Table("Memories", header, rows, equality([r.parameters for r in results], states))


def recall_scores(results: Sequence[RecallResult]) -> Table:
    """Tabulate accuracy and its interval by difficulty, beside the accuracy of guesses."""
    tasks = [score.task for score in results[0].scores]
    header = [" in ".join(reversed(tasks[0].columns)), *(t.label for t in tasks)]
    rows = [[r.kind, *(share(score.accuracy) for score in r.scores)] for r in results]
    if any(t.guess != t.chance for t in tasks):
        rows.append([f"guess among {tasks[0].guessed}", *(f"{t.guess:.3f}" for t in tasks)])
    rows.append(["guess among all values", *(f"{t.chance:.3f}" for t in tasks)])
    texts = results[0].scores[0].texts
    note = f"Accuracy on {texts:,} held-out texts each; Wilson's 95% interval, by text."
    title = "Associative recall (MQAR)" if tasks[0].kind == "recall" else f"Task: {tasks[0].kind}"
    return Table(title, header, rows, note)


def positions(subjects: Sequence[Subject]) -> Table:
    """Tabulate loss by tokens of context, one column per checkpoint."""
    names = [s.name for s in subjects if s.by_position]
    losses = [s.by_position for s in subjects if s.by_position]
    spans = [(b.first, b.last) for b in max((p.bins for p in losses), key=len)]
    rows = [[span(*s), *(_loss_at(p, i) for p in losses)] for i, s in enumerate(spans)]
    note = f"Nats per token and 95% interval: {losses[0].method} of the text."
    return Table("Loss by position", ["tokens of context", *names], rows, note)


def differences(subjects: Sequence[Subject]) -> Table:
    """Tabulate the loss of the same tokens with near and with far context."""
    measured = [(s.name, s.same_tokens) for s in subjects if s.same_tokens]
    first = measured[0][1]
    names = [f"{span(*first.near)} before", f"{span(*first.far)} before", "change, nats"]
    rows = [[n, str(d.near_loss), str(d.far_loss), signed(d.change)] for n, d in measured]
    note = (
        f"The same {first.tokens:,} tokens of {first.sequences:,} sequences, once with so much "
        f"text before them and once with so little; {first.method}. Below 0: the longer context "
        "helps."
    )
    return Table("The same tokens after little and much text", ["model", *names], rows, note)


def contexts(subjects: Sequence[Subject]) -> Table:
    """Tabulate the rise in loss if memory was cleared k tokens ago, one column per checkpoint."""
    names = [s.name for s in subjects if s.effective_context]
    measured = [s.effective_context for s in subjects if s.effective_context]
    first = measured[0]
    ks = sorted({c.context for e in measured for c in e.cleared})
    rows = [[f"{k:,}", *(_rise(e, k) for e in measured)] for k in ks]
    rows.append(
        [f"within {first.tolerance:g} from", *(or_over(e.context, max(ks)) for e in measured)]
    )
    rows.append(["shown (95%) from", *(or_over(e.sure_context, max(ks)) for e in measured)])
    note = (
        f"Rise in nats per token of the same {first.targets} targets in {first.sequences:,} "
        f"sequences when the memory is cleared k tokens ago; {first.method}. Full context is "
        f"{first.least_context:,} tokens or more."
    )
    return Table("Effective context", ["k", *names], rows, note)


def needles(subject: Subject) -> Table:
    """Tabulate a checkpoint's needles: accuracy and gain by length and depth."""
    assert subject.needle is not None
    rows = [
        [f"{c.length:,}", f"{c.depth:.0%}", share(c.accuracy), f"{c.rank:.1f}", signed(c.gain)]
        for c in subject.needle.cells
    ]
    n = subject.needle
    note = f"{n.cells[0].trials} trials a row, {n.candidates} candidates: chance {n.chance:.3f}. "
    note += _fallen(n.chance_from, "Over all depths, by trial, found")
    header = ["tokens", "depth", "accuracy", "mean rank", "nats gained"]
    return Table(f"Needle in a haystack: {subject.name}", header, rows, note)


def pairs(subject: Subject) -> Table:
    """Tabulate a checkpoint's key-value retrieval: accuracy by length and number of pairs."""
    assert subject.pairs is not None
    result = subject.pairs
    rows = [
        [f"{c.length:,}", f"{c.pairs:,}", share(c.accuracy), f"{c.chance:.3f}", share(c.copied)]
        for c in result.cells
    ]
    note = (
        f"{result.cells[0].trials} trials a row, keys of {result.key_words} words. Accuracy is "
        "among the text's own values; copied: one of them is the likeliest of "
        f"{result.candidates} candidates. "
    )
    note += " ".join(_fallen(at, f"{n} pairs: right") for n, at in result.chance_from.items())
    header = ["tokens", "pairs", "accuracy", "chance", "copied"]
    return Table(f"Key-value retrieval: {subject.name}", header, rows, note)


def _fallen(length: int | None, what: str) -> str:
    if length is None:
        return f"{what} more often than by chance (95%) at the longest length."
    return f"{what} no more often than by chance (95%) from {length:,} tokens on."


def equality(parameters: Sequence[int], states: Sequence[int]) -> str:
    """Return a sentence on how equal the compared sizes are; empty for one model."""
    if len(parameters) < 2:
        return ""
    spread = max(parameters) / min(parameters) - 1
    most, least = max(states), min(states)
    state = f"state from {least:,} to {most:,} numbers" if most > least else "equal states"
    return f"Parameters within {spread:.1%} of each other; {state}."


def pattern(layers: Sequence[str]) -> str:
    """Return ``slot x 6`` for layers of one kind, else the kinds in their order."""
    return f"{layers[0]} x {len(layers)}" if len(set(layers)) == 1 else " ".join(layers)


def share(interval: Interval) -> str:
    """Format an accuracy and its interval."""
    return ranged(interval.mean, (interval.low, interval.high))


def signed(interval: Interval) -> str:
    """Format a difference, with its sign, and its interval."""
    return ranged(interval.mean, (interval.low, interval.high), "{:+.4f}".format)


def _loss_at(measured: ByPosition, i: int) -> str:
    interval = measured.bins[i].loss if i < len(measured.bins) else None
    return "" if interval is None else str(interval)


def _rise(measured: EffectiveContext, k: int) -> str:
    return next((signed(c.rise) for c in measured.cleared if c.context == k), "")
