"""diverged.json: the note that a run has ended because it diverged.

Training the run again would end it the same way, so a comparison counts it as done.
"""

from dataclasses import asdict, dataclass
from statistics import median_high
from typing import Any

from gam_scale.files import write_json
from gam_scale.run.directory import RunDir
from gam_scale.run.metrics_file import read_metrics
from gam_scale.strict import read_record


@dataclass
class Divergence:
    """How a run diverged."""

    step: int
    """The last step that it took."""
    reason: str
    """The sentence with which it ended."""


def note_divergence(run: RunDir, step: int, reason: str) -> None:
    """Write the note; the next start of the run removes it."""
    run.check_lock()
    write_json(run.diverged, asdict(Divergence(step, reason)))


def read_divergence(run: RunDir) -> Divergence | None:
    """Return the note of a run; None: it did not end so.

    Raises:
        UserError: the file is damaged.
    """
    return read_record(Divergence, run.diverged) if run.diverged.exists() else None


def figures_of_diverged(run: RunDir) -> dict[str, Any] | None:
    """Return figures of a run that has diverged, by their names in a summary.

    Returns:
        Its tokens and its speed, None where no line was logged, and null validation figures; None
        for a run that has not diverged.
    """
    if read_divergence(run) is None:
        return None
    lines = read_metrics(run.metrics)
    speeds = [line["tokens_per_s"] for line in lines if line.get("tokens_per_s") is not None]
    return {
        "tokens": lines[-1].get("tokens", 0) if lines else 0,
        "tokens_per_s": median_high(speeds) if speeds else None,
        **dict.fromkeys(("val_loss", "val_perplexity", "val_bits_per_byte")),
    }
