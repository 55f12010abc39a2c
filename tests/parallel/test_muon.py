"""Muon: its update against its formula, and every engine against one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from closeness import off
from engines import BATCH, ENGINES, EVERYWHERE, SEQ_LEN, Trial, first_step
from ranks import run_ranks

from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.config import RunConfig
from gam_scale.model.lm import outline
from gam_scale.model.policy import policies
from gam_scale.parallel.algorithm import ADAMW
from gam_scale.parallel.muon import ITERATIONS, MUON, QUINTIC, Muon, orthogonal
from gam_scale.parallel.optimizer import build_optimizer
from gam_scale.plan.communication import collectives
from gam_scale.plan.job import Job
from gam_scale.plan.memory import kept_bytes
from gam_scale.strict import from_dict

MOMENTUM, LR, DECAY = 0.9, 0.02, 0.3
STACKS = [((6, 10), ()), ((10, 6), ()), ((16, 8), (8, 4, 4)), ((1, 5), ()), ((9, 4), (1, 8))]
GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape):
    return torch.randn(shape, generator=GENERATOR)


def group_of(parameters, stacks):
    return {"params": parameters, "stacks": stacks, "lr": LR, "weight_decay": DECAY}


def written(value, gradients, stack):
    """Return value and momentum of Muon in float64, its polynomial applied to singular values."""
    a, b, c = QUINTIC
    value, momentum = value.double(), torch.zeros_like(value, dtype=torch.float64)
    for gradient in gradients:
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient.double()
        ahead = MOMENTUM * momentum + (1 - MOMENTUM) * gradient.double()
        value, start = value - LR * DECAY * value, 0
        for rows in stack or value.shape[:1]:
            part = slice(start, start + rows)
            u, s, v = torch.linalg.svd(ahead[part], full_matrices=False)
            s = s / s.norm()
            for _ in range(ITERATIONS):
                s = a * s + b * s**3 + c * s**5
            step = 0.2 * max(rows, value.shape[1]) ** 0.5 * (u @ s.diag() @ v)
            value[part] -= LR * step
            start += rows
        assert start == len(value)
    return value, momentum


@pytest.mark.parametrize(("shape", "stack"), STACKS)
def test_the_update_is_the_formulas(shape, stack):
    parameter = torch.nn.Parameter(drawn(*shape))
    before, gradients = parameter.detach().clone(), [drawn(*shape) for _ in range(4)]
    optimizer = Muon([group_of([parameter], [stack])], MOMENTUM, torch.float32)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    value, momentum = written(before, gradients, stack)
    # float32 errors in small singular values grow by up to 3.4445^5.
    assert off(parameter.detach().double(), value) < 1e-5
    assert off(optimizer.state[parameter]["momentum_buffer"].double(), momentum) < 1e-6


def test_in_bfloat16_it_is_torchs():
    """The matrices are whole: torch's Muon knows no stacks."""
    ours = [torch.nn.Parameter(drawn(*shape)) for shape in ((32, 48), (48, 32))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    before = [p.detach().clone() for p in ours]
    mine = Muon([group_of(ours, [(), ()])], MOMENTUM, torch.bfloat16)
    other = torch.optim.Muon(
        theirs, LR, DECAY, MOMENTUM, adjust_lr_fn="match_rms_adamw", nesterov=True
    )
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = drawn(*a.shape)
            b.grad = a.grad.clone()
        mine.step()
        other.step()
    for a, b, old in zip(ours, theirs, before, strict=True):
        assert off(a.detach() - old, b.detach() - old) < 0.05  # 8 bits a product


def test_orthogonal_has_singular_values_near_1_and_leaves_nothing_as_nothing():
    for shape in ((8, 80), (80, 8)):
        values = torch.linalg.svdvals(orthogonal(drawn(*shape), torch.float32))
        assert values.min() > 0.6 and values.max() < 1.25, shape
    assert not orthogonal(torch.zeros(4, 3), torch.float32).any()


def test_a_step_that_is_not_to_count_changes_nothing():
    parameter = torch.nn.Parameter(drawn(6, 4))
    optimizer = Muon([group_of([parameter], [(2, 4)])], MOMENTUM, torch.float32)
    parameter.grad, optimizer.found_inf = drawn(6, 4), torch.tensor(0.0)
    optimizer.step()
    kept = optimizer.state[parameter]["momentum_buffer"]
    before = parameter.detach().clone(), kept.clone()
    parameter.grad, optimizer.found_inf = torch.full((6, 4), torch.nan), torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(parameter, before[0]) and torch.equal(kept, before[1])
    assert before[0].isfinite().all() and before[1].any()


LAYERS = [
    {"kind": "gam_delta", "n_heads": 2, "head_dim": 8, "expand_v": 2, "ffn": "swiglu"},
    {"kind": "attention", "n_heads": 4, "n_kv_heads": 2},
    {"kind": "mamba2", "head_dim": 16, "d_state": 8},
    "static",
]
"""Layers with stacks of equal and unequal, tall and wide matrices, banks, and other parameters."""
MODEL = {"layers": LAYERS, "n_layers": 4, "gam": {"n_slots": 12}, "tied_head": False}
SIZE = {"d_model": 32, "vocab_size": 320}


def test_what_it_steps():
    """Muon steps the matrices of hidden layers, in the layers' stacks; AdamW steps the rest."""
    config = from_dict(RunConfig, {"model": MODEL | SIZE, "train": {"optimizer": "muon"}})
    model = outline(config.model)
    stacks = {name: p.stack for name, p in policies(model) if p.role == "matrix"}
    assert stacks == {
        "blocks.0.memory.qkv.weight": (16, 16, 32),
        "blocks.0.memory.output_gate.linear.weight": (),
        "blocks.0.memory.out.weight": (),
        "blocks.0.ffn.up.weight": (88, 88),
        "blocks.0.ffn.down.weight": (),
        "blocks.1.qkv.weight": (32, 16, 16),
        "blocks.1.out.weight": (),
        "blocks.1.ffn.up.weight": (),
        "blocks.1.ffn.down.weight": (),
        "blocks.2.mixer.in_proj.weight": (64, 64, 8, 8, 4),
        "blocks.2.mixer.out_proj.weight": (),
        "blocks.3.memory.bank": (),
        "blocks.3.ffn.up.weight": (),
        "blocks.3.ffn.down.weight": (),
    }
    algorithms = build_optimizer(model, config).algorithms()
    assert {n for n, a in algorithms.items() if a is MUON} == set(stacks)
    assert all(a is ADAMW for n, a in algorithms.items() if n not in stacks)


BEFORE, AFTER = 2, 2
OFFLOADED = ("zero2-offload", "zero3-offload", "fsdp-offload")
RUNS = {1: EVERYWHERE, 2: (*EVERYWHERE, *OFFLOADED), 4: (*EVERYWHERE, "hybrid")}
ORACLE = "torch-1"
RESUMED = {
    1: [("zero3-1", "zero3")],
    2: [("zero1-2", "zero1"), ("zero3-offload-2", "zero3-offload"), ("torch-1", "fsdp")],
    4: [
        ("fsdp-4", "fsdp"),
        ("zero3-1", "torch"),
        ("zero1-2", "zero3"),
        ("fsdp-offload-2", "zero2"),
    ],
}
"""By number of ranks: (source of the checkpoint, engine that resumes it)."""


def trained(world, sets, folder, engines, resumed):
    """Train under each engine, saving halfway; resume each pair of ``resumed``.

    Returns losses by engine; (bytes of states that this rank keeps of matrices, bytes that it sends
    of matrices in a step) by engine; and for each pair the losses after the checkpoint.
    """
    losses, sizes, after = {}, {}, []
    exchange, sent = dist.all_to_all_single, []

    def counted(received, flat, totals, lengths, group):
        sent.append(4 * (sum(lengths) - lengths[group.rank()]))
        exchange(received, flat, totals, lengths, group=group)

    dist.all_to_all_single = counted
    for engine in engines:
        trial = trial_of(world, sets, engine)
        first = first_step(trial.stream)
        its = [trial.step(first)[0]]
        sent.clear()
        its += [trial.step(first + s)[0] for s in range(1, BEFORE)]
        sent_a_step = sum(sent) / (BEFORE - 1)
        path = Path(folder) / f"{engine}-{world.world_size}"
        its += trial.saved_and_going_on(path, first, BEFORE, AFTER)
        losses[engine] = its
        states = [s for s in trial.strategy.shards() if s.kind != "param" and s.shape]
        kept = sum(s.data.numel() * s.data.itemsize for s in states)
        sizes[engine] = kept, sent_a_step
    for source, engine in resumed:
        trial = trial_of(world, sets, engine, seed=1)  # other initial weights
        path = CheckpointStore(Path(folder) / source).latest()
        after.append(trial.losses_after(path, AFTER))
    dist.all_to_all_single = exchange
    return losses, sizes, after


def trial_of(world, sets, engine, **train):
    return Trial(world, sets, engine, 2, model=MODEL, optimizer="muon", **train)


@pytest.fixture(scope="module")
def runs(prepared_set, tmp_path_factory):
    """Return, by number of ranks, what ``trained`` returned on each rank."""
    sets, folder = str(prepared_set), str(tmp_path_factory.mktemp("checkpoints"))
    return {
        n: run_ranks(trained, n, sets=sets, folder=folder, engines=engines, resumed=RESUMED[n])
        for n, engines in RUNS.items()
    }


@pytest.mark.parametrize("n", RUNS)
def test_every_engine_computes_what_one_process_does(runs, n):
    oracle = runs[1][0][0]["torch"]
    assert len(set(oracle)) == BEFORE + AFTER
    for engine in RUNS[n]:
        # fp32: only the order of additions differs.
        assert runs[n][0][0][engine] == pytest.approx(oracle, rel=1e-5), engine


@pytest.mark.parametrize("n", RUNS)
def test_any_resumes_what_any_saved(runs, n):
    oracle, (losses, _, resumed) = runs[1][0][0]["torch"], runs[n][0]
    for (source, engine), after in zip(RESUMED[n], resumed, strict=True):
        if source == f"{engine}-{n}":
            assert after == losses[engine][BEFORE:], f"{source} is not resumed bit for bit"
        assert after == pytest.approx(oracle[BEFORE:], rel=1e-5), (source, engine)


def config_of(engine):
    model = MODEL | SIZE | {"max_seq_len": SEQ_LEN}
    values = {"model": model, "data": {"sets": [{"path": "none"}], "seq_len": SEQ_LEN}}
    train = {"steps": 2, "global_batch_size": BATCH, "optimizer": "muon"}
    return from_dict(RunConfig, values | {"train": train, "parallel": ENGINES[engine]})


@pytest.mark.parametrize("n", RUNS)
def test_the_plan_counts_what_is_kept_and_sent(runs, n):
    for engine in RUNS[n]:
        kept, sent = zip(*(of_rank[1][engine] for of_rank in runs[n]), strict=True)
        job = Job.of(config_of(engine), 1, n)
        if engine not in OFFLOADED:
            # The plan counts an average rank; ZeRO cuts at any element, FSDP between rows.
            assert kept_bytes(job) == pytest.approx(max(kept), rel=0.1), engine
        matrices = sum(c.sent for c in collectives(job) if c.what == "matrices")
        # Of all ranks. In ZeRO 1 and 2 an owner may already have more or less of its matrices.
        by_rows = engine.startswith(("fsdp", "hybrid", "zero3"))
        assert sum(sent) == pytest.approx(n * matrices, rel=1e-9 if by_rows else 0.4), engine
