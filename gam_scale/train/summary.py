"""What a run ends with: summary.json, report.html, and a few lines on the terminal."""

from typing import Any

from gam_scale import __version__
from gam_scale.checkpoint.load import Trained, load_trained
from gam_scale.evaluate.loss import perplexity
from gam_scale.files import write_json
from gam_scale.generate import Sampling, generate
from gam_scale.parallel.world import World
from gam_scale.report import write_report
from gam_scale.strict import read_json
from gam_scale.train.goodput import goodput
from gam_scale.train.rundir import RunDir
from gam_scale.train.sinks import read_metrics

SAMPLE_TOKENS = 96
WATERMARKS = ("max_memory_bytes", "max_rss_bytes", "max_host_memory")
"""Of a line; over all ranks."""


def lacks_summary(run: RunDir, step: int) -> bool:
    """Whether a run was killed after its last ``step``, and before :func:`finish` was done."""
    if run.summary.exists():
        return False
    last = (read_metrics(run.metrics) or [{}])[-1]
    return last.get("step") == step and last.get("val_loss") is not None


def finish(run: RunDir, world: World, *, compiled: bool) -> None:
    """Write summary.json and report.html of a finished run; its sample is the last checkpoint's."""
    trained = load_trained(run.path)
    model, config = trained.model, trained.config
    lines = read_metrics(run.metrics)
    first, last = lines[0], lines[-1]
    # The first lines pay for compilation and cold caches.
    settled = sorted(line["tokens_per_s"] or 0.0 for line in lines[len(lines) // 4 :])
    summary: dict[str, Any] = {
        "first_loss": first["loss"],
        "last_loss": last["loss"],
        "val_loss": last["val_loss"],
        "val_perplexity": perplexity(last["val_loss"]) if last["val_loss"] is not None else None,
        "val_bits_per_byte": last["val_bits_per_byte"],
        "tokens_per_s": settled[len(settled) // 2],
        "mfu": sorted(line["mfu"] or 0.0 for line in lines[len(lines) // 4 :])[len(settled) // 2],
        "peak_memory_bytes": max(line["memory_bytes"] for line in lines),
        # Lines of before a resume may be an older version's.
        **{key: max(line.get(key, 0.0) for line in lines) for key in WATERMARKS},
        "tokens": last["tokens"],
        "parameters": model.n_parameters(),
        "flops_per_token": 3.0 * model.flops_per_token(config.data.seq_len),
        "sample": _sample(trained),
        "device": world.device.type,
        "ranks": world.world_size,
        "engine": config.parallel.engine,
        "compiled": compiled,
        "code_version": __version__,
    }
    summary |= time_spent.figures() if (time_spent := goodput(run)) else {}
    write_json(run.summary, summary)
    write_report(run.path)


def show_summary(run: RunDir) -> None:
    """Print the end of a run for a person: figures, sample, where things are."""
    if not run.summary.exists():
        return
    summary = read_json(run.summary)
    rows = {
        "first loss": f"{summary['first_loss']:.4f}",
        "last loss": f"{summary['last_loss']:.4f}",
        "validation perplexity": f"{summary['val_perplexity']:.2f}",
        "validation bits per byte": f"{summary['val_bits_per_byte']:.4f}",
        "tokens per second": f"{summary['tokens_per_s']:,.0f}",
        "run directory": str(run.path),
        "report": str(run.path / "report.html"),
    }
    if "goodput" in summary:
        starts = f"{summary['starts']} start" + "s" * (summary["starts"] > 1)
        wall = f"{summary['wall_seconds']:,.0f} s"
        rows["goodput"] = f"{summary['goodput']:.0%} of {wall} in {starts}"
    print(f"\nsample:\n{summary['sample']}\n")
    for name, value in rows.items():
        print(f"{name:<26}{value}")


def _sample(trained: Trained) -> str:
    length = min(SAMPLE_TOKENS, (trained.model.context_limit or SAMPLE_TOKENS + 1) - 1)
    sampling = Sampling(temperature=0.8, top_p=0.95)
    seed = trained.config.train.seed
    return "".join(generate(trained.model, trained.tokenizer, "", length, sampling, seed=seed))
