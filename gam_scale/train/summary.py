"""The end of a run: summary.json, report.html, and a few lines on the terminal."""

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from gam_scale import __version__
from gam_scale.checkpoint.load import load_trained
from gam_scale.checkpoint.state import load_state
from gam_scale.checkpoint.store import load_config_of, resolve
from gam_scale.config.stages import mean_over_tokens
from gam_scale.evaluate.loss import perplexity
from gam_scale.files import write_json
from gam_scale.generate import Sampling, generate
from gam_scale.model.lm import outline
from gam_scale.parallel.world import World
from gam_scale.run.chosen import read_chosen
from gam_scale.run.directory import RunDir
from gam_scale.run.evaluations import FILE as EVALUATIONS
from gam_scale.run.evaluations import write_evaluations
from gam_scale.run.figures import Origin, read_summary
from gam_scale.run.goodput import goodput
from gam_scale.run.metrics_file import Line, is_known_and_finite, read_metrics
from gam_scale.run.report import write_report
from gam_scale.strict import read_record, to_dict
from gam_scale.train.boards import first_line

logger = logging.getLogger("gam_scale")

T = TypeVar("T")

SAMPLE_TOKENS = 96
NAMED = ("val_loss/", "val_bits_per_byte/", "task/")
"""Prefixes of a line's keys that belong to one data set or one task."""
WATERMARKS = (
    "max_memory_bytes",
    "max_rss_bytes",
    "max_host_memory",
    "memory_reserved",
    "alloc_retries",
    "ooms",
)
"""Keys of a line whose largest value goes into the summary."""


def retract(run: RunDir) -> None:
    """Remove what says how a run has ended that now goes on, and the files made from that end."""
    run.check_lock()
    for path in (run.summary, run.diverged, run.report, run.path / EVALUATIONS):
        path.unlink(missing_ok=True)


def finish(run: RunDir, world: World, validated: Sequence[str], *, compiled: bool) -> None:
    """Write the summary.json and report.html of a finished run, if missing, and evaluations.csv.

    No error here fails the run, whose checkpoint is saved already: what cannot be made is left out,
    and the log says so.

    Args:
        validated: the data sets that the validation loss was measured on.
    """
    if not run.summary.exists():
        run.report.unlink(missing_ok=True)  # it was made before the run's end
        figures = _figures(run, validated)
        figures |= {
            "sample": _made_or_warned("the sample", partial(_sample, run)),
            "device": world.device.type,
            "ranks": world.world_size,
            "compiled": compiled,
            "code_version": __version__,
        }
        if run.continued.exists():
            origin = _made_or_warned("its origin", partial(read_record, Origin, run.continued))
            figures["continued"] = asdict(origin) if origin else None
        chosen = _made_or_warned("what was chosen", partial(read_chosen, run.chosen))
        figures |= {"chosen": to_dict(chosen)} if chosen else {}
        time_spent = _made_or_warned("goodput", partial(goodput, run))
        figures |= time_spent.figures() if time_spent else {}
        write_json(
            run.summary, {k: v if is_known_and_finite(v) else None for k, v in figures.items()}
        )
    _made_or_warned("evaluations.csv", partial(write_evaluations, run.path))
    if not run.report.exists():
        _made_or_warned("report.html", partial(write_report, run.path))


def show_summary(run: RunDir) -> None:
    """Print a finished run's figures, its sample and the paths of its files."""
    summary = read_summary(run.summary)

    def shown(key: str, form: str) -> str:
        value = summary.get(key)
        return "not known" if value is None else form.format(value)

    rows = {"first loss": shown("first_loss", "{:.4f}"), "last loss": shown("last_loss", "{:.4f}")}
    named = [key for key in summary if key.startswith("val_loss/")]
    shares = [key for key in summary if key.startswith("task/") and key.endswith("/accuracy")]
    if summary.get("validated") == [] and not named:
        rows["validation"] = "none: no data set has a validation split"
    elif summary.get("validated") != []:
        rows["validation perplexity"] = shown("val_perplexity", "{:.2f}")
        rows["validation bits per byte"] = shown("val_bits_per_byte", "{:.4f}")
    for key in named:
        rows[f"loss on {key.partition('/')[2]}"] = shown(key, "{:.4f}")
    for key in shares:
        rows[f"accuracy on {key.split('/')[1]}"] = shown(key, "{:.1%}")
    if origin := summary.get("continued"):
        rows["continues"] = f"{origin['run']}, with its {', '.join(origin['kept'])}"
    if summary.get("skipped_steps"):
        rows["steps skipped"] = f"{shown('skipped_steps', '{:,}')}, without a finite gradient"
    rows["tokens per second"] = shown("tokens_per_s", "{:,.0f}")
    rows["run directory"] = str(run.path)
    if run.report.exists():
        rows["report"] = str(run.report)
    if summary.get("goodput") is not None:
        starts = shown("starts", "{:,}") + " start" + "s" * (summary.get("starts") != 1)
        rows["goodput"] = f"{shown('goodput', '{:.0%}')} of {shown('wall_seconds', '{:,.0f} s')}"
        rows["goodput"] += f" in {starts}"
    if summary.get("sample") is not None:
        print(f"\na text that the model began itself:\n{summary['sample']}\n")
    for name, value in rows.items():
        print(f"{name:<26}{value}")


def _made_or_warned(what: str, make: Callable[[], T]) -> T | None:
    """Return what ``make`` returns; if it fails, log that ``what`` is missing and return None."""
    try:
        return make()
    except Exception as error:  # a diverged model, a file that was removed or damaged, ...
        logger.warning("%s of the finished run is missing: %s", what, first_line(error))
        logger.info("why %s is missing:", what, exc_info=error, extra={"on_bar": True})
        return None


def _figures(run: RunDir, validated: Sequence[str]) -> dict[str, Any]:
    """Return the figures that the checkpoint and the logged lines give."""
    checkpoint = resolve(run.path)
    config, state = load_config_of(checkpoint), load_state(checkpoint)
    model = outline(config.model)
    lines = _made_or_warned("every loss and speed", partial(read_metrics, run.metrics)) or []
    if not run.metrics.exists():
        logger.warning("losses and speeds are missing from the summary: %s is gone", run.metrics)
    lines = [line for line in lines if line["step"] <= state.step]
    first, last = (lines[0], lines[-1]) if lines else ({}, {})
    if last and last["step"] < state.step:  # a smaller train.steps ended the run at a checkpoint
        said = "the figures of the run's end are missing: its last line is of step %d, not %d"
        logger.warning(said, last["step"], state.step)
        last = {}
    val_loss = last.get("val_loss")
    # The first lines pay for compilation and cold caches.
    settled = lines[len(lines) // 4 :]
    return {
        "first_loss": first.get("loss"),
        "last_loss": last.get("loss"),
        "val_loss": val_loss,
        "val_perplexity": None if val_loss is None else perplexity(val_loss),
        "val_bits_per_byte": last.get("val_bits_per_byte"),
        "val_late_loss": last.get("val_late_loss"),
        **{key: value for key, value in last.items() if key.startswith(NAMED)},
        "validated": list(validated),
        "tokens_per_s": _over(statistics.median_high, settled, "tokens_per_s"),
        "mfu": _over(statistics.median_high, settled, "mfu"),
        "peak_memory_bytes": _over(max, lines, "memory_bytes"),
        **{key: _over(max, lines, key) for key in WATERMARKS},
        "tokens": last.get("tokens", _tokens(state.metrics)),
        "skipped_steps": last.get("skipped_steps", state.metrics.get("skipped_steps")),
        "parameters": model.n_parameters(),
        "flops_per_token": 3.0 * mean_over_tokens(config, model.flops_per_token),
        "engine": config.parallel.engine,
    }


def _tokens(counts: dict[str, Any]) -> int | None:
    """Return the tokens that a checkpoint counts: those in lines, and those since the last line."""
    return counts["tokens"] + counts.get("line_tokens", 0) if "tokens" in counts else None


def _over(of_all: Callable[[list[float]], float], lines: Sequence[Line], key: str) -> float | None:
    """Return ``of_all`` of the values of ``key``, which lines of an older version may lack."""
    values = [line[key] for line in lines if line.get(key) is not None]
    return of_all(values) if values else None


def _sample(run: RunDir) -> str:
    trained = load_trained(run.path)
    length = min(SAMPLE_TOKENS, (trained.model.context_limit or SAMPLE_TOKENS + 1) - 1)
    sampling = Sampling(temperature=0.8, top_p=0.95)
    seed = trained.config.train.seed
    return "".join(generate(trained.model, trained.tokenizer, "", length, sampling, seed=seed))
