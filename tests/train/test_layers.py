"""Statistics of every layer, under every engine: they are right and do not change the run."""

from types import SimpleNamespace

import pytest
import torch
from engines import ENGINES
from ranks import run_ranks
from small import small
from torch._dynamo.testing import CompileCounter
from whole_runs import assert_equal_runs, killed_after, train

from gam_scale.data.packing import make_batch
from gam_scale.model.lm import build_model
from gam_scale.parallel.blocks import prepare_blocks
from gam_scale.run.records import LAYERS, QUANTILES, read_records
from gam_scale.train.hooks.layers import LayerStatistics, quantiles
from gam_scale.train.metrics import Throughput

KINDS = ["static", "slot", "delta", "phase", "scan", "attention"]
MODEL = {
    "layers": KINDS,
    "n_layers": len(KINDS),
    "position": "none",
    "memory": {"n_heads": 2, "n_slots": 8, "top_k": 2},
    "attention": {"n_heads": 2},
}
NAMES = {
    "static": {"conv_gate", "memory_gate"},
    "slot": {"conv_gate", "memory_gate", "horizon", "state_norm"},
    "delta": {"conv_gate", "memory_gate", "horizon", "state_norm", "beta"},
    "phase": {"conv_gate", "memory_gate", "horizon", "state_norm"},
    "scan": {"conv_gate", "memory_gate", "horizon", "output_gate", "state_norm"},
    "attention": set(),
}


def layers_of(run):
    return read_records(run / LAYERS)


def test_quantiles_of_all_and_of_each_head():
    values = torch.arange(101.0).repeat(3, 1).T * torch.tensor([1.0, 10.0, 100.0])
    found = quantiles(values[torch.randperm(101)])
    assert found[1].tolist() == [5, 50, 95] and found[3].tolist() == [500, 5000, 9500]
    assert found[0].tolist() == quantiles(values.reshape(-1, 1))[0].tolist()
    assert found.shape == (1 + 3, len(QUANTILES))


@pytest.mark.parametrize("width", [3, 12, 15, 35, 64])
def test_some_of_many_values_are_of_every_channel(width):
    """Where only every n-th value is read (n = 2, 3, 5, 7 and others), no channel is left out."""
    for values in (100_000, 150_000, 300_000, 400_000):
        found = quantiles(torch.arange(float(width)).repeat(values // width).unsqueeze(1))[0]
        low, middle, high = (level * (width - 1) for level in (0.05, 0.5, 0.95))
        assert found.tolist() == pytest.approx([low, middle, high], abs=1), values


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_every_layer_says_what_it_decides_and_the_run_is_the_same(
    tmp_path, tiny, whole, curve, recompute
):
    short = {"steps": 6, "recompute": recompute}
    plain = whole(model=MODEL, train=short)
    train(tiny(tmp_path / "run", model=MODEL, train=short, log={"layers_every": 3}))
    assert_equal_runs(plain, tmp_path / "run", curve)
    assert not (plain / LAYERS).exists()
    records = layers_of(tmp_path / "run")
    assert [record["step"] for record in records] == [3, 6]
    for record in records:
        for kind, layer in zip(KINDS, record["layers"], strict=True):
            assert layer.keys() == NAMES[kind] | {"activation", "gradient"}
            for name, values in layer.items():
                low, middle, high = values["all"]
                assert (low > 0 or name == "output_gate") and low <= middle <= high, (kind, name)
                in_heads = name in ("beta", "horizon", "state_norm") and kind != "scan"
                assert len(values.get("heads", [])) == 2 * in_heads
                assert high < 1 or name not in ("conv_gate", "memory_gate", "beta")


def test_compiled_blocks_stay_as_they_are():
    """Listeners add no graph and change no gradient, in bf16 too."""
    model, counter = build_model(small("delta", "static"), 0), CompileCounter()
    prepare_blocks(model, "selective", compiled=True, backend=counter)
    rows = torch.randint(2, 20, (2, 17), generator=torch.Generator().manual_seed(0))
    batch = make_batch(list(rows.numpy()), 16, 1, "reset")
    loop, found = SimpleNamespace(clock=Throughput()), []
    loop.config = SimpleNamespace(log=SimpleNamespace(layers_every=2))
    loop.world, loop.strategy = SimpleNamespace(is_main=True), SimpleNamespace(module=model)
    log = SimpleNamespace(layers=lambda step, layers: found.append(layers))
    hook = LayerStatistics(log, lambda: None)
    gradients = []
    for step in range(4):
        loop.state = SimpleNamespace(step=step)
        hook.before_step(loop, [batch])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(*batch)
        loss.backward()
        loop.state.step += 1
        hook.after_step(loop, None)
        hook.between(loop)
        gradients.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
        assert counter.frame_count == 2, "another graph"
    assert [len(layers) for layers in found] == [2, 2] and found[0] == found[1]
    assert all(
        torch.equal(a, b) for each in gradients for a, b in zip(gradients[0], each, strict=True)
    )
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.blocks)


def train_on_ranks(world, config):
    train(config)


@pytest.mark.parametrize("engine", ["torch", "zero0", "zero1", "zero2", "zero3", "fsdp"])
def test_every_engine_says_the_same(tmp_path, tiny, whole, engine):
    """The first of two ranks has half of the rows; gradients are those of the summed loss."""
    still = {"model": MODEL | {"dropout": 0.0}, "train": {"steps": 2, "warmup_steps": 1}}
    still["log"] = {"layers_every": 1}
    one = whole(**still)
    config = tiny(tmp_path / "two", parallel=ENGINES[engine] | {"device": "cpu"}, **still)
    run_ranks(train_on_ranks, 2, config=config)
    # On one rank, the first of two micro-batches has the same rows.
    for ours, theirs in zip(layers_of(tmp_path / "two"), layers_of(one), strict=True):
        for layer, expected in zip(ours["layers"], theirs["layers"], strict=True):
            assert layer.keys() == expected.keys()
            for name in layer:
                # fp32 sums are in another order; Adam enlarges that for the weights of step 2
                assert layer[name]["all"] == pytest.approx(expected[name]["all"], rel=2e-3), name


def test_a_killed_run_has_each_step_once(tmp_path, tiny):
    settings = {"train": {"steps": 12}, "log": {"layers_every": 2}}
    train(tiny(tmp_path / "whole", **settings))
    with killed_after(9):
        train(tiny(tmp_path / "run", **settings))
    assert [r["step"] for r in layers_of(tmp_path / "run")] == [2, 4, 6, 8]
    train(tiny(tmp_path / "run", **settings))
    assert layers_of(tmp_path / "run") == layers_of(tmp_path / "whole")


def test_the_horizon_of_a_routed_slot_counts_what_is_written_to_it():
    """Every token writes to the same two slots, and none to the others."""
    model = build_model(small("slot", position="none"), 0)
    memory = model.blocks[0].memory
    chosen = torch.zeros(memory.n_heads, memory.bank.shape[1])
    chosen[:, : memory.top_k] = 1.0
    torch.nn.init.zeros_(memory.gate.strength.weight)
    memory.gate.strength.bias.data = chosen.flatten()
    batch = make_batch([torch.randint(2, 20, (17,)).numpy()], 16, 1, "reset")
    horizon = model.blocks[0].statistics(torch.randn(1, 16, 16), batch.layout)["horizon"]
    every = memory.gate(torch.randn(1, 1, 16))[0, 0].T  # log decays if every slot were written to
    torch.testing.assert_close(horizon[: memory.top_k], -1 / every[: memory.top_k])
    assert horizon[memory.top_k :].min() > 1e8, "a slot that keeps what it holds seems to forget"


def test_the_norm_of_a_state_is_that_which_generation_ends_with():
    """For each head and row, also where a second document begins within the row."""
    model = build_model(small("delta", "scan", position="none"), 0)
    rows = torch.randint(2, 20, (2, 17), generator=torch.Generator().manual_seed(0))
    rows[0, 7] = 1  # a document ends
    layout = make_batch(list(rows.numpy()), 16, 1, "reset").layout
    for block in model.blocks:
        x = torch.randn(2, 16, model.config.d_model)
        found = block.statistics(x, layout)["state_norm"]
        state = block.init_state(2, x.device, x.dtype)
        for t, one in enumerate(layout.segments(1)):
            _, state = block.extend(x[:, t : t + 1], state, one)
        expected = state["memory"].reshape(2, block.memory.n_heads, -1).norm(dim=-1)
        torch.testing.assert_close(found, expected)


def test_horizons_at_the_start_are_those_that_were_asked_for():
    """They are exact with a gate's weights and biases at zero, since only its rates are left."""
    config = small("delta", "slot", "phase", "scan", position="none")
    model = build_model(config, 0)
    batch = make_batch([torch.randint(2, 20, (17,)).numpy()], 16, 1, "reset")
    for block in model.blocks:
        torch.nn.init.zeros_(block.memory.gate.strength.weight)
        torch.nn.init.zeros_(block.memory.gate.strength.bias)
        x = torch.randn(1, 16, config.d_model)
        horizon = block.statistics(x, batch.layout)["horizon"]
        low, high = block.memory.gate.log_horizons
        expected = torch.tensor([low, high]).exp()
        torch.testing.assert_close(horizon.aminmax().min, expected[0])
        torch.testing.assert_close(horizon.aminmax().max, expected[1])
