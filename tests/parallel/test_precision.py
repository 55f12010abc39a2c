"""What stays fp32 in bf16 runs, under every engine: some parameters, and the residual stream."""

import pytest
import torch
from closeness import worst
from ranks import run_ranks

from gam_scale.config import RunConfig
from gam_scale.data.packing import plain_batch
from gam_scale.model.lm import outline
from gam_scale.model.policy import policy_of
from gam_scale.parallel.build import build_strategy, initialise
from gam_scale.strict import from_dict
from gam_scale.train.step import train_step

RATE, UPDATE = -11.09, 4e-4
LINEAR = {"torch_autocast": {"lower_precision_safe_modules": ["gam_scale.model.linear.Linear"]}}
PARALLEL = {
    "torch": {"engine": "torch"},
    "fsdp": {"engine": "fsdp"},
    "fsdp kept": {"engine": "fsdp", "reshard_after_forward": False},
    "fsdp replicated": {"engine": "fsdp", "shard_ranks": 1},
    "fsdp offloaded": {"engine": "fsdp", "offload": "parameters"},
    "zero 3": {
        "engine": "deepspeed",
        "zero_stage": 3,
        "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}, **LINEAR},
    },
}
KINDS = [
    "static",
    "slot",
    "delta",
    "phase",
    "scan",
    "attention",
    "mamba",
    "mamba2",
]  # the layers of one model, in this order
KEPT = {
    "static": set(),
    "attention": set(),
    "mamba": {"mixer.A_log", "mixer.D", "mixer.dt_proj.weight", "mixer.dt_proj.bias"},
    "mamba2": {"mixer.A_log", "mixer.D", "mixer.dt_bias"},
    "delta": {"memory.beta.weight", "memory.beta.bias"},
}
GATE = {"memory.gate.log_rate", "memory.gate.strength.weight", "memory.gate.strength.bias"}
for _kind in ("slot", "delta", "phase", "scan"):
    KEPT[_kind] = KEPT.get(_kind, set()) | GATE


def make_config(parallel):
    return from_dict(
        RunConfig,
        {
            "model": {
                "layers": KINDS,
                "n_layers": len(KINDS),
                "d_model": 28,  # 5 slots: two ranks hold unequal shares of them
                "vocab_size": 50,
                "max_seq_len": 16,
                "dropout": 0.0,
                "position": "none",
                "memory": {"n_heads": 2, "n_slots": 5, "top_k": 2},
                "attention": {"n_heads": 2},
                "gam": {"n_slots": 5},
            },
            "data": {"sets": [{"path": "none"}], "seq_len": 16},
            "train": {
                "steps": 9,
                "global_batch_size": 4,
                "micro_batch_size": 2,
                "precision": "bf16",
                "compile": "off",
            },
            "parallel": parallel | {"device": "cpu"},
        },
    )


def kept_names(model):
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if policy_of(module, name).precision == "fp32"
    }


def watch(module, seen, stream):
    """Note what each block computes with while its forward runs.

    ``seen`` gets its parameters by name, ``stream`` the dtypes of its input and its output.
    """
    for index, block in enumerate(module.blocks):

        def forward(x, *args, _index=index, _block=block, _forward=block.forward):
            for name, parameter in _block.named_parameters():
                seen[f"blocks.{_index}.{name}"] = parameter.detach().clone()
            y = _forward(x, *args)
            stream.update(str(t.dtype) for t in (x, y))
            return y

        block.forward = forward


def gathered(world, engine):
    """Set the parameters that keep fp32, train a step, and report the values that were used."""
    config = make_config(PARALLEL[engine])
    world = world.arranged(config.parallel)
    strategy, seen, stream = build_strategy(config, world, compiled=False), {}, set()
    initialise(strategy, config)
    watch(strategy.module, seen, stream)
    kept = kept_names(outline(config.model))
    generator = torch.Generator().manual_seed(world.rank)
    tokens = torch.randint(50, (2, 17), generator=generator)
    batch = plain_batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    wrong = []
    for value in (RATE, RATE + UPDATE):
        values = {name: torch.full(p.shape, value) for name, p in named(config) if name in kept}
        strategy.fill(values.items())
        loss, _, norm = train_step(strategy, [batch], 0.0, n_targets=64)
        if worst([float(loss), float(norm)]) == float("inf"):
            wrong.append("a loss or norm that is not finite")
        for name, expected in values.items():
            found = seen[name]
            if found.dtype != torch.float32 or not torch.equal(found, expected):
                wrong.append(f"{name}: {found.dtype}, {found.flatten()[0]} for {value}")
    others = {str(p.dtype) for name, p in seen.items() if name not in kept}
    return {
        "kept": sorted(kept),
        "wrong": wrong,
        "others": sorted(others),
        "stream": sorted(stream),
    }


def named(config):
    return outline(config.model).named_parameters()


@pytest.mark.parametrize("engine", PARALLEL)
def test_what_keeps_fp32_is_gathered_as_it_is(engine):
    """A log rate of -11.09 stays exact, before and after an update of 4e-4."""
    expected = {f"blocks.{i}.{name}" for i, kind in enumerate(KINDS) for name in KEPT[kind]}
    for result in run_ranks(gathered, 2, engine=engine):
        assert set(result["kept"]) == expected
        assert not result["wrong"], result["wrong"]
        assert result["stream"] == ["torch.float32"]
        if engine.startswith("fsdp"):
            assert result["others"] == ["torch.bfloat16"], "gathers in twice the bytes"


def trained(world, engine):
    """Return the losses and gradient norms of three steps, one pair after another."""
    config = make_config(PARALLEL[engine])
    strategy = build_strategy(config, world.arranged(config.parallel), compiled=False)
    initialise(strategy, config)
    tokens = torch.randint(50, (4, 17), generator=torch.Generator().manual_seed(0))
    rows = tokens[2 * world.rank : 2 * world.rank + 2]
    batch = plain_batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
    losses = []
    for _ in range(3):
        loss, _, norm = train_step(strategy, [batch], 1e-2, n_targets=64)
        losses += [world.sum(float(loss))[0], float(norm)]
    return losses


def test_gradients_of_what_keeps_fp32_are_summed_as_the_others():
    expected = run_ranks(trained, 2, engine="torch")[0]
    for engine in ("fsdp", "fsdp replicated"):
        # bf16 weights and gradients: 8 bits each, in sums over a batch.
        assert run_ranks(trained, 2, engine=engine)[0] == pytest.approx(expected, rel=2e-2), engine
