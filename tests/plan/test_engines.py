"""Test every engine's traffic and peak memory against what two gloo ranks send and hold."""

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from benchmarks.memory import live_storages
from gam_scale.config import RunConfig
from gam_scale.data.packing import plain_batch
from gam_scale.hardware.memory import allocated_at_most
from gam_scale.parallel.build import build_strategy, initialise
from gam_scale.parallel.context import part
from gam_scale.plan.communication import collectives
from gam_scale.plan.job import Job
from gam_scale.plan.memory import peak_memory
from gam_scale.strict import from_dict
from gam_scale.train.step import train_step

RANKS, ROWS, SEQ_LEN, MICRO_BATCHES, STEPS = 2, 4, 64, 2, 4
BUCKET = {"reduce_bucket_size": 300_000}  # a step fills several, as large models do
ZERO = {"engine": "deepspeed", "deepspeed": {"zero_optimization": BUCKET}}


def sending_bf16(stage):
    """Return settings that send linear layers' gradients in bf16, DeepSpeed's own default."""
    options = {
        "torch_autocast": {"lower_precision_safe_modules": ["gam_scale.model.linear.Linear"]}
    }
    return ZERO | {"zero_stage": stage, "deepspeed": ZERO["deepspeed"] | options}


ENGINES = {
    "torch": {"engine": "torch"},
    "zero0": {"engine": "deepspeed", "zero_stage": 0},
    "zero1": ZERO | {"zero_stage": 1},
    "zero2": ZERO | {"zero_stage": 2},
    "zero3": ZERO | {"zero_stage": 3},
    "zero3 keeping": ZERO
    | {
        "zero_stage": 3,
        "deepspeed": {"zero_optimization": BUCKET | {"stage3_max_reuse_distance": 10**9}},
    },
    "zero2 in bf16": sending_bf16(2),
    "zero3 in bf16": sending_bf16(3),
    "fsdp": {"engine": "fsdp"},
    "fsdp kept": {"engine": "fsdp", "reshard_after_forward": False},
    "fsdp replicated": {"engine": "fsdp", "shard_ranks": 1},
    "torch context": {"engine": "torch", "context": RANKS},
    "fsdp context": {"engine": "fsdp", "context": RANKS},
}
# The order matters: DeepSpeed never forgets that it once ran under autocast.
CASES = [(engine, "fp32") for engine in ENGINES if not engine.endswith("in bf16")]
CASES += [(engine, "bf16") for engine in ("fsdp context", "zero1", "zero2", "zero3", "fsdp")]
CASES += [(engine, "bf16") for engine in ENGINES if engine.endswith("in bf16")]
# The functions of torch.distributed that engines call, and the collective each one counts as.
CALLS = {
    "all_reduce": "all_reduce",
    "reduce": "reduce_scatter",  # part after part, each to the rank that owns it
    "all_gather_into_tensor": "all_gather",
    "all_gather_single": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
}


def make_config(parallel, precision):
    shared = parallel.get("context", 1)
    mixed = {"layers": ["delta", "attention", "slot", "scan"], "position": "none"}
    return from_dict(
        RunConfig,
        {
            "model": {
                **(mixed if shared > 1 else {}),
                "d_model": 128,
                "n_layers": 4,
                "vocab_size": 2000,  # a head larger than a block
                "max_seq_len": SEQ_LEN,
                "dropout": 0.0,
                "gam": {"n_slots": 64},
            },
            "data": {"sets": [{"path": "none"}], "seq_len": SEQ_LEN, "documents": "concatenate"},
            "train": {
                "steps": 200,
                "global_batch_size": RANKS // shared * ROWS * MICRO_BATCHES,
                "micro_batch_size": ROWS,
                "precision": precision,
                "compile": "off",
            },
            "parallel": parallel | {"device": "cpu"},
        },
    )


def measure(world):
    """Return, per case, a step's traffic by kind and its peak of tensors, both in bytes."""
    sent = record_collectives()
    return [
        measure_engine(make_config(ENGINES[engine], precision), world, sent)
        for engine, precision in CASES
    ]


def measure_engine(config, world, sent):
    before, world = live_storages(), world.arranged(config.parallel)
    frees_late = config.parallel.engine == "deepspeed" and config.parallel.zero_stage == 3
    strategy = build_strategy(config, world, compiled=False)
    initialise(strategy, config)
    tokens = torch.randint(config.model.vocab_size, (ROWS, SEQ_LEN + 1))
    whole = plain_batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    batch = part(whole, world)
    n_targets = tokens.numel() * MICRO_BATCHES * RANKS

    def step():
        train_step(strategy, [batch] * MICRO_BATCHES, 1e-3, n_targets=n_targets)

    step()
    step()  # stage 3 knows the order of its blocks from here on
    sent.clear()
    context = strategy.module.context
    before_step = context.bytes_sent if context else 0
    step()
    traffic = dict(sent)
    exchanged = context.bytes_sent - before_step if context else 0
    held = sum(size for pointer, size in live_storages().items() if pointer not in before)
    return {
        "traffic": traffic,
        "exchanged": exchanged,
        # When stage 3 frees a block depends on the other rank's pace: take the peak of some steps.
        "peak": held + max(allocated_at_most(step) for _ in range(STEPS if frees_late else 1)),
    }


def record_collectives():
    """Wrap torch.distributed's calls; return the dict they fill: kind -> bytes of whole tensors."""
    sent = {}

    def wrap(call, kind):
        def recorded(*args, **kwargs):
            values = [*args, *kwargs.values()]
            whole = max((v for v in values if torch.is_tensor(v)), key=torch.numel)
            groups = [v for v in values if isinstance(v, dist.ProcessGroup)]
            # Leave out norms and flags, which are small, and groups of one rank.
            if dist.get_world_size(*groups[:1]) > 1 and whole.numel() > 100:
                sent[kind] = sent.get(kind, 0) + whole.numel() * whole.element_size()
            return call(*args, **kwargs)

        return recorded

    for name, kind in CALLS.items():
        setattr(dist, name, wrap(getattr(dist, name), kind))
    return sent


@pytest.fixture(scope="module")
def measured():
    results = run_ranks(measure, RANKS)[0]
    return dict(zip(CASES, results, strict=True))


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_traffic_is_what_the_engine_sends(measured, case):
    engine, precision = case
    expected = {}
    for c in collectives(Job.of(make_config(ENGINES[engine], precision), 1, RANKS)):
        if c.op != "shift":  # a shift is no collective
            expected[c.op] = expected.get(c.op, 0) + c.bytes
    # Padding and parameters of few elements make the difference.
    assert measured[case]["traffic"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("engine", ["torch context", "fsdp context"])
def test_ranks_of_a_sequence_exchange_what_is_counted(measured, engine):
    sent = 0
    for c in collectives(Job.of(make_config(ENGINES[engine], "fp32"), 1, RANKS)):
        if c.what == "sequences":
            # With two ranks, each sends in one direction only.
            sent += c.sent / 2 if c.op == "shift" else c.sent
    assert measured[engine, "fp32"]["exchanged"] == sent > 0


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_memory_is_what_the_rank_holds(measured, case):
    engine, precision = case
    predicted = peak_memory(Job.of(make_config(ENGINES[engine], precision), 1, RANKS))
    print(f"{measured[case]['peak']:,} bytes measured, {predicted.total:,.0f} predicted")
    assert predicted.total == pytest.approx(measured[case]["peak"], rel=0.15)
