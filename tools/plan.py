#!/usr/bin/env python3
"""Plan before you pay: python tools/plan.py --config FILE --nodes 8 --gpus-per-node 8 --gpu h100

It prints memory, traffic, FLOPs and time of one training step under every engine, and the cheapest
settings that fit: for every kind of layer, mixed stacks, long sequences and sequences cut over
ranks (parallel.context). It needs no GPU, reads no data and starts no other rank: one layer of each
kind runs on tensors that have shapes only, and the rest is arithmetic. Memory is within 15% of what
training steps on CPUs hold. Times are no measurements: they follow from data-sheet rates of
products and of memory, an assumed share of these, and the work that a fake H100 was given.
"""

import argparse
import dataclasses
import json
from typing import Any

from gam_scale import cli
from gam_scale.config import RunConfig, load_config
from gam_scale.data.prepare import PrepareSpec
from gam_scale.hyperparameters import with_chosen
from gam_scale.plan.estimate import Estimate, cheapest, engines
from gam_scale.plan.gpus import GIVEN, KNOWN, RESERVED, Gpu, find_gpu, given_gpu, this_cpu
from gam_scale.plan.job import Job
from gam_scale.plan.memory import CATEGORIES
from gam_scale.plan.stages import StagePlan, fullest, stage_jobs, stage_plans
from gam_scale.plan.timing import LAUNCH_S, MATMUL_SHARE, MEMORY_SHARE, SCAN_SHARE
from gam_scale.report.table import Table

GIB = 2**30
COLUMNS = {"parameters": "params", "gradients": "grads", "activations": "activ."}
NAMED = ("sequences", "matrices")
"""Kinds of traffic with a column of their own, whatever the operation."""


def main() -> None:
    """Parse the command line, estimate and print."""
    args = parse()
    config = load_config(args.config, args.overrides)
    if args.gpu.lower() == "cpu":
        config.parallel.device = "cpu"  # a plan for CPUs has the memory of their kernels
    gpu = hardware(args, config)
    if args.network_gbps is not None:
        gpu = dataclasses.replace(gpu, network_bits=args.network_gbps * 1e9)
    if config.model.vocab_size == 0:
        args.vocabulary_is_assumed = True
        config.model.vocab_size = PrepareSpec.vocab_size
    whole = Job.of(with_chosen(config), args.nodes, args.gpus_per_node)
    job = fullest(stage_jobs(whole))
    rows, best = engines(job, gpu, args.matmul_share), cheapest(job, gpu, args.matmul_share)
    if args.json:
        print(json.dumps(as_json(whole, job, gpu, rows, best, args), indent=1))
    else:
        print_plan(whole, job, gpu, rows, best, args)


def hardware(args: argparse.Namespace, config: RunConfig) -> Gpu:
    """Return the hardware that --gpu names."""
    if args.gpu.lower() == "cpu":
        return this_cpu(args.gpus_per_node, config.train.precision)
    return given_gpu(args.gpu) if "=" in args.gpu else find_gpu(args.gpu)


def parse() -> argparse.Namespace:
    """Return the parsed command line, its numbers checked."""
    summary, _, details = __doc__.partition("\n\n")
    parser = cli.Parser(description=summary, epilog=details)
    parser.set_defaults(vocabulary_is_assumed=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="the run's JSON config")
    parser.add_argument("--nodes", type=cli.count(), default=1, help="machines (default: 1)")
    ranks: dict[str, Any] = {"type": cli.count(), "default": 1}
    parser.add_argument("--gpus-per-node", **ranks, help="GPUs, and ranks, on each (default: 1)")
    parser.add_argument(
        "--gpu",
        required=True,
        help=f"one of {KNOWN}; or cpu, this machine's, measured; or the figures of a GPU in one "
        f"word, divided by commas: {GIVEN}",
    )
    cli.add_overrides(parser)
    parser.add_argument(
        "--network-gbps",
        type=cli.number(above=0),
        help="network between machines in Gb/s per GPU (default: what is usual for the GPU)",
    )
    parser.add_argument(
        "--matmul-share",
        type=cli.number(above=0, at_most=1),
        default=MATMUL_SHARE,
        help="share of the peak that matrix products are assumed to reach (default: "
        f"{MATMUL_SHARE})",
    )
    parser.add_argument(
        "--price", type=cli.number(above=0), help="USD per GPU hour; adds a line of costs"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    return args


def print_plan(
    whole: Job, job: Job, gpu: Gpu, rows: list[Estimate], best: Estimate, args: argparse.Namespace
) -> None:
    """Print the run, memory, traffic and time under every engine, and the cheapest settings.

    Args:
        whole: the run; ``job`` is its fullest stage.
    """
    config = job.config
    model, train = config.model, config.train
    kinds = ", ".join(dict.fromkeys(model.layer_kinds()))
    context = config.parallel.context
    shared = f", on {context} ranks" if context > 1 else ""
    print(
        f"{kinds}: {job.weights.total:,} parameters, {model.n_layers} layers of width "
        f"{model.d_model}"
    )
    each = processor(args)
    where = f"{job.nodes:,} x {job.gpus_per_node} {gpu.name}"
    if each != "GPU":
        where = "this CPU" if job.nodes == 1 else f"{job.nodes:,} machines with this CPU"
    print(
        f"{counted(job.world_size, 'rank')} on {where}; "
        f"{train.precision}, {config.data.seq_len:,} tokens a sequence{shared}"
    )
    print(
        f"a step is {train.global_batch_size:,} sequences, {rows[0].tokens:,} tokens, "
        f"{rows[0].flops:.3g} FLOPs"
    )
    print(
        f"assumed: {args.matmul_share:.0%} of {teraflops(gpu.peak_flops(train.precision))}, "
        f"{gpu.link_bytes / 1e9:.0f} GB/s in a node, {gpu.network_bits / 1e9:g} Gb/s per {each} "
        f"between, {gpu.usable_bytes / GIB:.1f} of {gpu.memory_bytes / GIB:.0f} GiB usable"
    )
    if gpu.memory_rate is not None:
        fp32 = teraflops(gpu.peak_flops("fp32"))
        print(
            f"assumed: {MEMORY_SHARE:.0%} of {gpu.memory_rate / 1e9:,.0f} GB/s to memory, "
            f"{SCAN_SHARE:.0%} of {fp32} in scans, {LAUNCH_S * 1e6:.0f} us a launch"
        )
    for note in notes(job, gpu, args):
        print(f"note: {note}")
    if whole.config.train.stages:
        print_stages(stage_plans(whole, Estimate("", job, gpu, args.matmul_share)), job)
    print(
        f"\nGiB per {each} at its fullest, train.recompute {train.recompute}, "
        f"{counted(job.micro_batches, 'micro-batch')} of {job.micro_rows}  (* configured)"
    )
    print_memory(rows, job)
    print(
        f"\none step: GB sent by each {each} (all-reduce, all-gather, reduce-scatter), milliseconds"
    )
    if job.config.parallel.context > 1:
        print("(sequences: between the ranks that share them, inside the layers)")
    if job.update.sent:
        print("(matrices: gradients to those that step them whole, what comes of them back)")
    print_time(rows)
    print_choice(whole, best, job, args)


def print_stages(plans: list[StagePlan], job: Job) -> None:
    """Print a line per stage under the configured engine; all that follows is of the fullest."""
    print("\nstages under the configured engine (> the fullest: what follows is of it)")
    columns = ["", "steps", "sequences", "tokens each", "GiB", "step, ms", "tokens/s", "hours"]
    lines = []
    for number, plan in enumerate(plans, 1):
        stage, e = plan.stage, plan.estimate
        mark = ">" if e.job.config == job.config else " "
        cells = [f"{n:,}" for n in (stage.steps, stage.global_batch_size, stage.seq_len)]
        cells += [f"{e.memory.total / GIB:.2f}", f"{e.step_seconds * 1e3:,.2f}"]
        cells += [f"{e.tokens_per_second:,.0f}", f"{plan.seconds / 3600:,.3g}"]
        lines.append([f"{mark}{number}", *cells])
    print(Table("", columns, lines))
    tokens, hours = (sum(p.stage.tokens for p in plans), sum(p.seconds for p in plans) / 3600)
    print(f"the run: {tokens:,} tokens in {hours:,.3g} hours")


def print_memory(rows: list[Estimate], job: Job) -> None:
    """Print memory, with a line per engine and a column per category."""
    names = [COLUMNS.get(name, name) for name in CATEGORIES]
    lines = []
    for e in rows:
        mark = "*" if e.job.config.parallel == job.config.parallel else " "
        sizes = [getattr(e.memory, name) for name in [*CATEGORIES, "total"]]
        cells = [f"{size / GIB:.2f}" for size in sizes]
        lines.append([f"{mark}{e.label}", *cells, "yes" if e.fits else "no"])
    print(Table("", ["", *names, "total", "fits"], lines))


def print_time(rows: list[Estimate]) -> None:
    """Print a line per engine: traffic by collective, then where the time goes."""
    operations = {"all_reduce": "reduce", "all_gather": "gather", "reduce_scatter": "scatter"}
    named = [n for n in NAMED if any(c.what == n for e in rows for c in e.collectives)]
    columns = [*operations.values(), *named]
    lines = []
    for e in rows:
        sent = dict.fromkeys(columns, 0.0)
        for c in e.collectives:
            sent[c.what if c.what in named else operations[c.op]] += c.sent / 1e9
        seconds = [e.compute_seconds, e.communication_seconds, e.step_seconds]
        cells = [f"{gb:.4g}" for gb in sent.values()] + [f"{s * 1e3:,.2f}" for s in seconds]
        lines.append([f" {e.label}", *cells, f"{e.tokens_per_second:,.0f}"])
    print(Table("", ["", *columns, "computing", "sending", "step", "tokens/s"], lines))


def print_choice(whole: Job, best: Estimate, job: Job, args: argparse.Namespace) -> None:
    """Print the cheapest settings and what they cost, or that none fits."""
    total = f"{best.memory.total / GIB:.2f} GiB"
    if best.fits:
        print(f"\ncheapest that fits: {best.label}, {total}")
        print(f"  {best.step_seconds * 1e3:,.2f} ms a step, ", end="")
        print(
            f"{best.gpu_seconds_per_token * 1e6:.4g} {processor(args)}-seconds per million tokens"
        )
    else:
        print(f"\nnothing fits; nearest is {best.label}, {total} at its fullest")
    for change in changes(best.job, job) or ["(as configured)"]:
        print(f"  {change}")
    if args.price is not None:
        costs = cost(whole, best, args.price).items()
        print("cost: " + ", ".join(f"{name} {usd:,.4g} USD" for name, usd in costs))


def notes(job: Job, gpu: Gpu, args: argparse.Namespace) -> list[str]:
    """Return what the figures assume or leave out, as far as it matters for this config."""
    config, found = job.config, []
    layers = dict.fromkeys(config.model.stack())
    if args.vocabulary_is_assumed:
        found.append(
            f"model.vocab_size is the tokenizer's; {config.model.vocab_size:,} is assumed, "
            "prepare_data's default"
        )
    if job.axes.readers > config.train.global_batch_size:
        found.append("there are more ranks than sequences in a step, so some only wait")
    estimate = Estimate("", job, gpu, args.matmul_share)
    if estimate.fp32_flops:
        share = estimate.fp32_flops / (estimate.flops + estimate.extra_flops)
        found.append(
            f"{share:.1%} of the FLOPs are fp32 products ({config.train.fp32_matmul}), taken at "
            f"{teraflops(gpu.fp32_flops(tf32=config.train.fp32_matmul == 'tf32'))}"
        )
    if job.update.flops:
        share = job.update.flops * job.world_size / (estimate.flops + estimate.extra_flops)
        found.append(
            f"train.optimizer {config.train.optimizer} adds products of {share:.1%} of the FLOPs, "
            "by the rank that has most of them"
        )
    with_kernels = dict.fromkeys(layer.kind for layer in layers if layer.kernel)
    if with_kernels and config.parallel.context == 1:
        packages = dict.fromkeys(layer.kernel for layer in layers if layer.kernel)
        found.append(
            f"{' and '.join(with_kernels)} layers are in their portable form, not in kernels of "
            f"{' and '.join(packages)}"
        )
    found += dict.fromkeys(layer.plan_note for layer in layers if layer.plan_note)
    slow = [layer.slow_on_gpu(config.train.precision) for layer in layers]
    found += dict.fromkeys(filter(None, slow if config.parallel.device != "cpu" else []))
    if config.parallel.offload != "none":
        found.append("time leaves out what offloading copies and computes on the CPU")
    if config.parallel.device == "cpu":
        found.append("memory is that of CPU kernels (parallel.device is cpu)")
    return found


def processor(args: argparse.Namespace) -> str:
    """Return the word for what has the memory and the rates of a plan: a GPU, or a CPU's rank."""
    return "rank" if args.gpu.lower() == "cpu" else "GPU"


def counted(number: int, noun: str) -> str:
    """Return ``1 rank``, ``8 ranks``, ``2 micro-batches``."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"


def teraflops(flops: float) -> str:
    """Return a rate in FLOP/s to three digits, for a CPU as well."""
    rate = flops / 1e12
    return f"{rate:,.0f} TFLOP/s" if rate >= 100 else f"{rate:.3g} TFLOP/s"


def changes(chosen: Job, job: Job) -> list[str]:
    """Return the ``--set`` arguments that turn the job's config into the chosen one."""
    found = []
    for section in ("parallel", "train"):
        ours, theirs = getattr(job.config, section), getattr(chosen.config, section)
        for field in dataclasses.fields(ours):
            value = getattr(theirs, field.name)
            if value != getattr(ours, field.name):
                text = value if isinstance(value, str) else json.dumps(value)
                found.append(f"--set {section}.{field.name}={text}")
    return found


def cost(whole: Job, estimate: Estimate, price: float) -> dict[str, float]:
    """Return the USD of a million tokens and, if train.steps gives its length, of the run."""
    per_token = estimate.gpu_seconds_per_token * price / 3600
    costs = {"a million tokens": per_token * 1e6}
    steps = whole.config.train.steps
    if whole.config.train.stages:
        seconds = sum(plan.seconds for plan in stage_plans(whole, estimate))
        costs[f"{steps:,} steps"] = seconds * whole.world_size * price / 3600
    elif steps:
        costs[f"{steps:,} steps"] = per_token * estimate.tokens * steps
    return costs


def as_json(
    whole: Job, job: Job, gpu: Gpu, rows: list[Estimate], best: Estimate, args: argparse.Namespace
) -> dict[str, Any]:
    """Return the same figures for JSON, in bytes, seconds and FLOPs."""
    plan = {
        "parameters": job.weights.total,
        "ranks": job.world_size,
        "tokens_per_step": rows[0].tokens,
        "micro_batches": job.micro_batches,
        "gpu": dataclasses.asdict(gpu),
        "assumptions": {
            "share_of_peak": args.matmul_share,
            "share_of_memory_rate": MEMORY_SHARE,
            "share_of_fp32_peak_in_scans": SCAN_SHARE,
            "seconds_per_launch": LAUNCH_S,
            "peak_flops": gpu.peak_flops(job.config.train.precision),
            "reserved_share_of_memory": RESERVED,
        },
        "notes": notes(job, gpu, args),
        "engines": [estimate_as_json(e, job) for e in rows],
        "cheapest" if best.fits else "nearest": estimate_as_json(best, job),
    }
    if whole.config.train.stages:
        plan["stages"] = [
            dataclasses.asdict(p.stage)
            | {"memory": p.estimate.memory.total, "step_seconds": p.estimate.step_seconds}
            for p in stage_plans(whole, Estimate("", job, gpu, args.matmul_share))
        ]
    if args.price is not None:
        plan["cost_usd"] = cost(whole, best, args.price)
    return plan


def estimate_as_json(e: Estimate, job: Job) -> dict[str, Any]:
    """Return one row of the tables for JSON."""
    return {
        "label": e.label,
        "configured": e.job.config.parallel == job.config.parallel,
        "changes": changes(e.job, job),
        "memory": dataclasses.asdict(e.memory) | {"total": e.memory.total},
        "fits": e.fits,
        "collectives": [dataclasses.asdict(c) | {"sent": c.sent} for c in e.collectives],
        "sent_bytes": e.sent_bytes,
        "flops": e.flops,
        "extra_flops": e.extra_flops,
        "fp32_flops": e.fp32_flops,
        "compute_seconds": e.compute_seconds,
        "computing": dataclasses.asdict(e.computing),
        "communication_seconds": e.communication_seconds,
        "step_seconds": e.step_seconds,
        "tokens_per_second": e.tokens_per_second,
        "gpu_seconds_per_token": e.gpu_seconds_per_token,
    }


if __name__ == "__main__":
    cli.run(main)
