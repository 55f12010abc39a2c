"""Test FLOPs against torch's counter; time, fit and choice against figures worked out by hand."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.fake_cuda.page import planned
from benchmarks.fake_cuda.rows import LAYERS
from gam_scale.config import RunConfig, load_config
from gam_scale.model.layout import Layout
from gam_scale.model.lm import build_model
from gam_scale.model.parts import MIXERS, implementations
from gam_scale.parallel.algorithm import Algorithm
from gam_scale.parallel.blocks import prepare_blocks
from gam_scale.parallel.optimizer import OPTIMIZERS
from gam_scale.plan import gpu_blocks, timing
from gam_scale.plan.activations import Setting, layer_work, setting
from gam_scale.plan.communication import Collective
from gam_scale.plan.estimate import Estimate, cheapest, engines
from gam_scale.plan.gpu_blocks import rows
from gam_scale.plan.gpus import find_gpu
from gam_scale.plan.job import Job
from gam_scale.plan.memory import kept_bytes, updated_bytes
from gam_scale.plan.traffic import traffic
from gam_scale.strict import from_dict

ROWS, SEQ_LEN = 4, 32
KINDS = implementations()
H100 = find_gpu("h100")


def make_config(recompute="none", rows=ROWS, **model):
    shape = {"d_model": 64, "n_layers": 2, "vocab_size": 500, "max_seq_len": SEQ_LEN}
    return from_dict(
        RunConfig,
        {
            "model": {"dropout": 0.0, **shape, **model},
            "data": {"sets": [{"path": "none"}], "seq_len": SEQ_LEN},
            "train": {
                "steps": 200,
                "global_batch_size": rows,
                "micro_batch_size": rows,
                "precision": "bf16",
                "recompute": recompute,
                "compile": "off",
            },
        },
    )


def counted_flops(config):
    """Count one eager step's FLOPs by torch, in bf16, where it counts all matmuls of the loss."""
    model = build_model(config.model, 0)
    prepare_blocks(model, config.train.recompute, compiled=False)
    tokens = torch.randint(config.model.vocab_size, (ROWS, SEQ_LEN + 1))
    with FlopCounterMode(display=False) as counter:
        with torch.autocast("cpu", torch.bfloat16):
            # Each row is one document, as the planner assumes.
            layout = Layout.of(torch.arange(SEQ_LEN).expand(ROWS, -1))
            loss = model(tokens[:, :-1], tokens[:, 1:].contiguous(), layout)
        loss.backward()
    return counter.get_total_flops()


def flops_of_matmuls(config):
    """Return a step's predicted FLOPs, without those that torch's counter does not know."""
    job = Job.of(config, 1, 1)
    head = 3 * 2 * job.weights.head * ROWS * SEQ_LEN
    return head + job.work(ROWS).flops


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_that_torch_counts(kind, recompute):
    config = make_config(recompute, layers=[kind], memory={"n_heads": 2, "n_slots": 8, "top_k": 4})
    assert flops_of_matmuls(config) == counted_flops(config)


@pytest.mark.parametrize("kind", ["static", "mamba"])
def test_flops_of_the_model_are_three_times_its_forward_pass(kind):
    """Convolutions and scans, which torch does not count, are subtracted."""
    config = make_config("full", layers=[kind])
    estimate = Estimate("", Job.of(config, 1, 1), H100, 0.4)
    other = 0.0
    for block in estimate.job.weights.model.blocks:
        mixer = getattr(block, "mixer", block)
        other += mixer.conv.flops_per_token() if hasattr(mixer, "conv") else 0
        if mixer is not block:
            other += 7 * mixer.A_log.numel() + 3 * mixer.D.numel()
    counted = counted_flops(make_config("none", layers=[kind]))
    assert estimate.flops - 3 * other * estimate.tokens == pytest.approx(counted, rel=0.02)
    more = counted_flops(config) - counted
    assert estimate.extra_flops == more > 0


def test_flops_of_attention():
    """The tolerance is for a product that torch's backward pass repeats, and its counter counts."""
    config = make_config(layers=["attention"])
    found = Estimate("", Job.of(config, 1, 1), H100, 0.4).flops
    assert found == pytest.approx(counted_flops(config), rel=0.15)


def attention_flops(config, context=1, window=0):
    """Count by hand both passes of an attention layer without a feed-forward, of the last rank."""
    d, length = config.model.d_model, SEQ_LEN // context
    pairs = sum(min(at + 1, window or SEQ_LEN) for at in range(SEQ_LEN - length, SEQ_LEN))
    linears = 3 * 2 * 4 * d * d * ROWS * length
    return linears + (2 + 5) * 2 * d * pairs * ROWS


@pytest.mark.filterwarnings("error:Accessing the data pointer")
@pytest.mark.parametrize("window", [0, 24])
@pytest.mark.parametrize("context", [1, 2, 4])
def test_attention_of_a_cut_sequence_is_that_of_its_last_rank(context, window):
    """The last rank's queries see most keys, and all ranks wait for it."""
    attention = {"kind": "attention", "n_heads": 2, "window": window, "ffn": "none"}
    config = make_config(layers=[attention])
    run = setting(config, ROWS)._replace(context=context, length=SEQ_LEN // context, documents=True)
    work = layer_work(config.model, config.model.stack()[0], run)
    assert work.flops == attention_flops(config, context, window)


@pytest.mark.filterwarnings("error:Accessing the data pointer")
def test_attention_over_several_documents_is_counted():
    """Torch's own operator computes it, which torch's counter does not know on CPUs."""
    config = make_config(layers=[{"kind": "attention", "n_heads": 2, "ffn": "none"}])
    run = setting(config, ROWS)._replace(documents=False)
    work = layer_work(config.model, config.model.stack()[0], run)
    assert work.flops == attention_flops(config)


def test_attention_in_bf16_multiplies_nothing_in_fp32():
    """Its backward pass gets sums in fp32 but does not multiply them."""
    work = Job.of(make_config(layers=["attention"]), 1, 1).work(ROWS)
    assert work.flops > 0 == work.fp32_flops


@pytest.mark.parametrize("kind", [kind for kind in KINDS if MIXERS[kind].computes_in_chunks])
def test_a_chunked_memory_computes_more_than_its_recurrence(kind):
    memory = {"n_heads": 2, "n_slots": 8, "top_k": 4}
    job = Job.of(make_config(layers=[kind] * 2, memory=memory), 1, 1)
    estimate = Estimate("", job, H100, 0.4)
    head = 3 * 2 * job.weights.head * estimate.tokens
    work = job.work(ROWS)
    computed = head + work.flops + work.scan_flops
    assert estimate.flops + estimate.extra_flops == pytest.approx(max(computed, estimate.flops))


def test_ring_bytes():
    assert Collective("all_reduce", "gradients", 100, 4).sent == 150
    assert Collective("all_gather", "parameters", 100, 4).sent == 75
    assert Collective("reduce_scatter", "gradients", 100, 4).sent == 75


def test_only_groups_within_a_node_use_its_links():
    assert Collective("all_gather", "parameters", 1, 4).stays_in_node(8)
    assert not Collective("all_gather", "parameters", 1, 16).stays_in_node(8)
    assert not Collective("all_reduce", "gradients", 1, 2, stride=8).stays_in_node(8)


def test_time_is_compute_and_communication():
    job = Job.of(make_config(rows=16), 2, 8)
    plain, sharded = (Estimate("", job.running(e), H100, 0.5) for e in ("torch", "fsdp"))
    spent = plain.computing
    assert plain.compute_seconds == sum((spent.products, spent.memory, spent.scans, spent.launches))
    sent = 2 * 15 / 16 * 4 * job.weights.total
    assert plain.communication_seconds == pytest.approx(sent / 50e9)  # 400 Gb/s
    assert plain.step_seconds == plain.compute_seconds + plain.communication_seconds
    parts = sharded.compute_seconds, sharded.communication_seconds
    assert sharded.step_seconds == max(parts)
    for overlap, combine in ((False, sum), (True, max)):
        config = make_config(rows=16)
        config.parallel.deepspeed = {"zero_optimization": {"overlap_comm": overlap}}
        stage_2 = Estimate("", Job.of(config, 2, 8).running("zero2"), H100, 0.5)
        parts = stage_2.compute_seconds, stage_2.communication_seconds
        assert stage_2.step_seconds == combine(parts)
    assert plain.gpu_seconds_per_token == pytest.approx(16 * plain.step_seconds / (16 * SEQ_LEN))


def test_a_layer_takes_as_long_as_what_it_multiplies_moves_and_launches():
    shape = {"d_model": 1536, "memory": {"n_heads": 12}, "layers": ["delta"], "max_seq_len": 4096}
    run = Setting(2, 4096, 2, "selective", True, False, False, 1, False)
    model = make_config(**shape).model
    (delta,) = set(model.stack())
    spent = timing.layer_seconds(model, delta, run, H100, 0.5)
    done = layer_work(model, delta, run)
    moved = traffic(model, delta, run)
    in_fp32 = done.fp32_flops - done.scan_flops
    products = ((done.flops - in_fp32) / 989.4e12 + in_fp32 / 67e12) / 0.5
    assert spent.products == pytest.approx(products)
    assert spent.products > moved.products * 8192 / (0.8 * 3.35e12), "bytes are what limits"
    in_tf32 = timing.layer_seconds(model, delta, run._replace(tf32=True), H100, 0.5).products
    products = ((done.flops - in_fp32) / 989.4e12 + in_fp32 / 494.7e12) / 0.5
    assert in_tf32 == pytest.approx(max(products, moved.products * 8192 / (0.8 * 3.35e12)))
    assert spent.memory == pytest.approx(moved.others * 8192 / (0.8 * 3.35e12))
    assert spent.scans == pytest.approx(done.scan_flops / 6.7e12)
    assert spent.launches == pytest.approx(3e-6 * moved.launches)


def test_an_optimizer_that_keeps_nothing_updates_parameters_all_the_same(monkeypatch):
    sgd = Algorithm(lambda groups, train: torch.optim.SGD(groups), lambda shape: {}, True)
    monkeypatch.setitem(OPTIMIZERS, "sgd", lambda policy: sgd)
    config = make_config()
    adamw = Job.of(config, 1, 2)
    plain = adamw.having(train={"optimizer": "sgd"})
    for engine, share in (("torch", 1), ("zero1", 2), ("fsdp", 2)):
        jobs = (job.running(engine) for job in (adamw, plain))
        first, second = (Estimate("", job, H100, 0.5).computing.memory for job in jobs)
        # Two moments of AdamW's, read and written; the count of its steps is left out.
        passes = 4 * adamw.weights.total / share
        assert first - second == pytest.approx(4 * passes / (0.8 * 3.35e12), rel=1e-3)
        its = plain.running(engine)
        sizes = updated_bytes(its), kept_bytes(its), its.update.flops
        updated = timing.update_seconds(*sizes, setting(config, ROWS), H100, 0.5)
        assert sizes[1:] == (0, 0)
        assert updated.memory == pytest.approx(3 / 4 * (first - second)) and not updated.products


def test_a_cpu_is_planned_by_its_products_alone():
    cpu = replace(H100, memory_rate=None)
    config = make_config()
    (static,) = set(config.model.stack())
    spent = timing.layer_seconds(config.model, static, setting(config, ROWS), cpu, 0.5)
    assert spent.products > 0 == spent.memory + spent.launches


@pytest.mark.parametrize("kind", MIXERS)
def test_a_plan_is_made_of_a_layer_of_the_same_kind(kind):
    """A preset uses the rows of the kind that it is a preset of."""
    stands_for, its_own = MIXERS[kind].gpu_block_kind, {row["kind"] for row in rows()}
    if kind in its_own or MIXERS[kind].preset_of:
        assert stands_for == (MIXERS[kind].preset_of or kind)
    for config in ("gam_1b", "ctx16k"):
        assert gpu_blocks.row(stands_for, config=config)["kind"] == stands_for
    (layer,) = gpu_blocks.model(stands_for).stack()
    assert layer.kind == stands_for, "the planner counts another layer beside the row"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if MIXERS[kind].gpu_block_kind == kind])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_traffic_grows_with_the_width(kind, recompute):
    """ctx16k's layers were traced too: two thirds as wide, other heads, weights in fp32."""
    config = load_config("configs/ctx16k.json")
    memory = replace(config.model.memory, n_heads=16)
    model = replace(config.model, layers=[kind], memory=memory)
    run = setting(config, 1)._replace(recompute=recompute)
    found = traffic(model, model.stack()[0], run)
    wanted = ("ctx16k", kind, recompute, "portable")
    keys = ("config", "kind", "recompute", "implementation")
    (row,) = [row for row in rows() if tuple(row[key] for key in keys) == wanted]
    assert found.products + found.others == pytest.approx(row["bytes"], rel=0.15)


@pytest.mark.parametrize("name", LAYERS)
def test_traffic_is_that_of_a_layers_own_parts(name):
    """Plans estimate these from other rows: another FFN and norm, an output gate, fewer keys."""
    (row,) = [row for row in rows() if row["kind"] == name]
    assert planned(name) == pytest.approx(row["bytes"], rel=0.25)  # see docs/gpu.md


def test_a_small_model_fits_under_every_engine_without_recomputing():
    job = Job.of(make_config(recompute="full", rows=16), 1, 8)
    assert all(e.fits for e in engines(job, H100, 0.4))
    best = cheapest(job, H100, 0.4)
    assert best.fits and best.job.config.train.recompute == "none"


def test_a_large_model_fits_sharded_only():
    config = make_config(rows=1024, d_model=8192, n_layers=40)
    job = Job.of(config, 16, 8)
    by_label = {e.label: e.fits for e in engines(job, H100, 0.4)}
    assert not by_label["torch"] and not by_label["zero stage 1"] and by_label["fsdp"]
    assert cheapest(job, H100, 0.4).job.engine in ("fsdp", "zero3")


def test_if_nothing_fits_the_nearest_is_named():
    job = Job.of(make_config(rows=8, d_model=16_384, n_layers=100), 1, 8)
    nearest = cheapest(job, H100, 0.4)
    assert not nearest.fits
    others = [e.memory.total for e in engines(job, H100, 0.4)]
    assert nearest.memory.total <= min(others)
