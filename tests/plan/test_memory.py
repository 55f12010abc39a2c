"""Test predicted peaks against the tensors that training steps on one rank hold at once."""

import needs
import pytest
import torch

from benchmarks.train_step import peak_tensor_bytes
from gam_scale.config import ModelConfig, RunConfig
from gam_scale.model.layout import Layout
from gam_scale.model.lm import build_model
from gam_scale.model.loss import chunk_rows
from gam_scale.model.parts import implementations
from gam_scale.parallel.blocks import SEGMENT, prepare_blocks
from gam_scale.plan import activations
from gam_scale.plan.job import Job
from gam_scale.plan.memory import CATEGORIES, peak_memory
from gam_scale.plan.trace import trace_loss
from gam_scale.strict import from_dict

KINDS = implementations()
RECOMPUTE = ("none", "selective", "full")
WITHIN = 0.15
# Small weights and many tokens: shapes in which activations are most of the memory.
SMALL = {"d_model": 128, "n_layers": 2, "vocab_size": 1000, "rows": 4, "seq_len": 96}

# MB of tensors at the paper's size, compiled on a CPU, fp32, batch 8: benchmarks/train_step.py.
PAPER_SIZE = {
    ("gam", "none"): 731.9,
    ("gam", "selective"): 570.7,
    ("gam", "full"): 447.1,
    ("attention", "none"): 777.0,
    ("attention", "selective"): 626.0,
    ("attention", "full"): 468.0,
    ("mamba", "none"): 1083.6,
    ("mamba", "selective"): 830.3,
    ("mamba", "full"): 541.9,
}


def make_config(
    kinds, recompute, *, d_model, n_layers, vocab_size, rows, seq_len, documents=False, **train
):
    return from_dict(
        RunConfig,
        {
            "model": {
                "layers": ["static" if kind == "gam" else kind for kind in kinds.split()],
                "memory": {"n_heads": max(1, d_model // 64)},
                "d_model": d_model,
                "n_layers": n_layers,
                "vocab_size": vocab_size,
                "max_seq_len": seq_len,
            },
            "data": {
                "sets": [{"path": "none"}],
                "seq_len": seq_len,
                "documents": "reset" if documents else "concatenate",
            },
            "train": {
                "steps": 200,
                "global_batch_size": rows,
                "micro_batch_size": rows,
                "recompute": recompute,
                **train,
            },
            "parallel": {"engine": "torch", "device": "cpu"},
        },
    )


def measure(config):
    train = config.train
    model = build_model(config.model, 0)
    prepare_blocks(model, train.recompute, compiled=train.compile != "off")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    shape = (train.micro_batch_size, config.data.seq_len + 1)
    tokens = torch.randint(config.model.vocab_size, shape)
    layout = Layout.stream(shape[0], config.data.seq_len)
    if config.data.documents == "reset":
        layout = Layout.of((layout.positions % 70).expand(shape[0], -1).contiguous())
    layout = layout.turned(config.model.rotation())

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=train.precision == "bf16"):
            loss = model(tokens[:, :-1], tokens[:, 1:].contiguous(), layout)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    step()
    return peak_tensor_bytes(step, torch.device("cpu"), model, optimizer)


def assert_near(config):
    predicted = peak_memory(Job.of(config, 1, 1))
    assert predicted.total == pytest.approx(measure(config), rel=WITHIN)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_eager_step(kind, recompute):
    assert_near(make_config(kind, recompute, compile="off", **SMALL))


@pytest.mark.parametrize("kind", ["static", "slot", "delta", "attention"])
def test_eager_step_in_bf16_with_documents(kind):
    config = make_config(
        kind, "selective", precision="bf16", documents=True, compile="off", **SMALL
    )
    assert_near(config)


def test_mixed_stack():
    shape = SMALL | {"n_layers": 4}
    assert_near(make_config("delta attention slot scan", "full", compile="off", **shape))


@pytest.mark.parametrize(
    ("kind", "precision", "recompute"),
    [("delta", "fp32", "none"), ("delta", "fp32", "full"), ("slot", "bf16", "selective")],
)
def test_long_sequence_in_segments(monkeypatch, kind, precision, recompute):
    monkeypatch.setitem(SEGMENT, "cpu", 128)
    shape = SMALL | {"rows": 1, "seq_len": 2 * 128 + 40}
    assert_near(make_config(kind, recompute, compile="off", precision=precision, **shape))


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_many_segments_follow_from_a_few(monkeypatch, recompute):
    shape = SMALL | {"rows": 2, "seq_len": 8 * 64 + 40}
    config = make_config("delta", recompute, compile="off", **shape)
    monkeypatch.setitem(SEGMENT, "cpu", 64)
    few = peak_memory(Job.of(config, 1, 1))
    monkeypatch.setattr(activations, "_SEGMENTS", 20)
    assert few.total == pytest.approx(peak_memory(Job.of(config, 1, 1)).total, rel=1e-3)


@needs.compiler
def test_compiled_step():
    torch._dynamo.reset()
    assert_near(make_config("delta", "selective", **SMALL))


@pytest.mark.parametrize(("block", "recompute"), PAPER_SIZE)
def test_paper_size(block, recompute):
    shape = {"d_model": 512, "n_layers": 6, "vocab_size": 10_000, "rows": 8, "seq_len": 256}
    predicted = peak_memory(Job.of(make_config(block, recompute, **shape), 1, 1))
    assert predicted.total / 1e6 == pytest.approx(PAPER_SIZE[block, recompute], rel=WITHIN)


def test_categories_add_up_and_sharding_divides_them():
    shape = {"d_model": 512, "n_layers": 6, "vocab_size": 10_000, "rows": 64, "seq_len": 256}
    job = Job.of(make_config("gam", "full", **shape), 1, 64)
    whole, sharded = peak_memory(job), peak_memory(job.running("fsdp"))
    assert whole.total == sum(getattr(whole, name) for name in CATEGORIES)
    assert whole.parameters == 4 * job.weights.total
    assert sharded.parameters == pytest.approx(whole.parameters / 64, rel=0.01)
    assert sharded.optimizer == pytest.approx(whole.optimizer / 64, rel=0.01)


def test_offloading_takes_the_optimizer_off_the_device():
    shape = {"d_model": 512, "n_layers": 6, "vocab_size": 10_000, "rows": 8, "seq_len": 256}
    job = Job.of(make_config("gam", "full", **shape), 1, 8)
    offloaded = job.having(parallel={"offload": "optimizer"}).running("zero2")
    assert peak_memory(job.running("zero2")).optimizer > 0 == peak_memory(offloaded).optimizer


@pytest.mark.parametrize(
    "tokens", [500, 8000, 16_777]
)  # one chunk, two, and 4 of a rounded-up size
def test_two_chunks_of_the_loss_stand_for_all(tokens):
    vocab, width = 1000, 32
    run = activations.setting(make_config("gam", "none", **SMALL), 1)._replace(length=tokens)
    found = activations.loss_bytes(ModelConfig(vocab_size=vocab, d_model=width), run)
    rows = chunk_rows(tokens, vocab, "cpu")
    whole = trace_loss(tokens, vocab, width, rows, bf16=False) - 4 * width * (tokens + vocab)
    assert found == pytest.approx(whole, rel=1e-3)
