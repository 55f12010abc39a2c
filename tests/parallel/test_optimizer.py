"""Weight decay: which parameters of every kind of layer decay, and that horizons do not."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from gam_scale.checkpoint.shard import StateSpec
from gam_scale.config import RunConfig
from gam_scale.model.lm import build_model, outline
from gam_scale.model.parts import implementations
from gam_scale.parallel.algorithm import ADAMW, Algorithm
from gam_scale.parallel.optimizer import OPTIMIZERS, build_optimizer
from gam_scale.parallel.plain import whole_shards
from gam_scale.parallel.world import World
from gam_scale.strict import from_dict

# A parameter decays always, only with train.decay all (as in the paper), or never.
MODEL = {"always": "embedding.weight position.weight", "all": "norm.weight norm.bias", "never": ""}
GAM = {
    "always": "conv.weight ffn.up.weight ffn.down.weight",
    "all": "norm1.weight norm1.bias norm2.weight norm2.bias conv.bias gate.weight gate.bias "
    "ffn.up.bias ffn.down.bias",
    "never": "",
}
WRITTEN = "memory.gate.log_rate memory.gate.strength.weight memory.gate.strength.bias"
HEADS = {"always": "memory.qkv.weight memory.out.weight", "never": WRITTEN}
PUBLISHED = {
    "always": "memory.qkv.weight memory.out.weight memory.gate.strength.weight "
    "memory.output_gate.linear.weight",
    "all": "memory.output_gate.norm.weight",
    "never": "memory.gate.log_rate memory.gate.strength.bias",
}
LAYERS = {
    "static": [GAM, {"always": "memory.bank"}],
    "slot": [GAM, HEADS, {"never": "memory.bank"}],
    "raven": [GAM, HEADS, {"always": "memory.router.weight", "never": "memory.bank"}],
    "delta": [GAM, HEADS, {"never": "memory.beta.weight memory.beta.bias"}],
    "gdn2": [
        PUBLISHED,
        {
            "always": "memory.conv.weight ffn.up.weight ffn.down.weight memory.gate.down.weight "
            "memory.output_gate.down.weight memory.erase.weight memory.write.weight",
            "all": "norm1.weight norm1.bias norm2.weight norm2.bias ffn.up.bias ffn.down.bias "
            "memory.output_gate.linear.bias",
        },
    ],
    "gam_delta": [GAM, PUBLISHED, {"always": "memory.beta.weight memory.conv.weight"}],
    "phase": [GAM, HEADS],
    "scan": [GAM, {"always": "memory.value.weight memory.out.weight", "never": WRITTEN}],
    "attention": [
        {
            "always": "qkv.weight out.weight ffn.up.weight ffn.down.weight",
            "all": "norm1.weight norm1.bias norm2.weight norm2.bias qkv.bias out.bias ffn.up.bias "
            "ffn.down.bias",
        }
    ],
    "mamba": [
        {
            "always": "mixer.in_proj.weight mixer.conv.weight mixer.x_proj.weight "
            "mixer.out_proj.weight",
            "all": "norm.weight norm.bias mixer.A_log mixer.D mixer.conv.bias mixer.dt_proj.weight "
            "mixer.dt_proj.bias",
        }
    ],
    "mamba2": [
        {
            "always": "mixer.in_proj.weight mixer.conv.weight mixer.out_proj.weight",
            "all": "norm.weight norm.bias mixer.conv.bias mixer.norm.weight",
            "never": "mixer.A_log mixer.D mixer.dt_bias",
        }
    ],
}


def names(kind: str, *decays: str) -> Iterator[str]:
    for decay in decays:
        yield from MODEL[decay].split()
        for part in LAYERS[kind]:
            yield from (f"blocks.0.{name}" for name in part.get(decay, "").split())


def make_config(kind: str, layers: list[dict] | None = None, **train: object) -> RunConfig:
    model = {"d_model": 16, "n_layers": 1, "vocab_size": 9, "layers": layers or [kind]}
    model |= {"memory": {"n_heads": 2, "n_slots": 4}, "attention": {"n_heads": 2}}
    return from_dict(RunConfig, {"model": model, "train": {"steps": 1, **train}})


def decaying(config: RunConfig) -> dict[str, bool]:
    """Return, by a parameter's name, whether its group in the optimizer decays."""
    model = outline(config.model)
    groups = build_optimizer(model, config).param_groups
    decays = {id(p): group["weight_decay"] > 0 for group in groups for p in group["params"]}
    assert len(decays) == sum(len(group["params"]) for group in groups), "in two groups"
    return {name: decays[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", [*implementations(), "gdn2", "gam_delta"])
def test_the_group_of_every_parameter(kind):
    listed = set(names(kind, "always", "all", "never"))
    for decay, those in (("matrices", ["always"]), ("all", ["always", "all"])):
        found = decaying(make_config(kind, decay=decay))
        assert found.keys() == listed, "a parameter that the test does not list, or no parameter"
        assert {n for n, d in found.items() if d} == set(names(kind, *those)), (
            f"decays with {decay}"
        )


def test_gates_decay_or_do_not():
    """decay_gates is for matrices of decays and strengths; the output gate's is a projection."""
    layers = [{"kind": "gdn2", "n_heads": 2, "decay_gates": False}]
    on, off = decaying(make_config("gdn2")), decaying(make_config("gdn2", layers))
    gates = ("gate.down", "gate.strength", "erase", "write")
    assert {name for name in on if on[name] != off[name]} == {
        f"blocks.0.memory.{gate}.weight" for gate in gates
    }
    assert not any(off[f"blocks.0.memory.{gate}.weight"] for gate in gates)


def declaring(elementwise: bool, **states: StateSpec) -> Algorithm:
    return Algorithm(ADAMW.make, lambda shape: states, elementwise)


@pytest.mark.parametrize(
    "algorithm",
    [
        declaring(False, param=StateSpec((3, 2))),
        declaring(False, **{"a.b": StateSpec(())}),
        declaring(False, angle=StateSpec((3, 2), torch.complex64)),
        declaring(False, nothing=StateSpec((3, 0))),
        declaring(True, row=StateSpec((3,))),
    ],
)
def test_states_that_cannot_be_cut_or_saved_are_refused(algorithm):
    ADAMW.check((3, 2))
    with pytest.raises(AssertionError):
        algorithm.check((3, 2))


def test_what_is_kept_is_what_was_declared(monkeypatch):
    """amsgrad keeps one average more than ADAMW declares."""

    def make(groups, train):
        return torch.optim.AdamW(groups, amsgrad=True)

    monkeypatch.setitem(OPTIMIZERS, "odd", lambda policy: replace(ADAMW, make=make))
    config = make_config("static", optimizer="odd")
    model = build_model(config.model, seed=0)
    optimizer = build_optimizer(model, config)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(AssertionError, match="max_exp_avg_sq.*but declares"):
        whole_shards(model, optimizer, World(0, 1, 0, 1, torch.device("cpu")))


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_decay_leaves_horizons_alone(decay):
    """Decay shrank horizons of 16 to 65,536 tokens to 4 to 250 in 600 steps at a rate of 1e-2."""
    config = make_config("delta", decay=decay, lr=1e-2)
    model = build_model(config.model, seed=0)
    optimizer = build_optimizer(model, config)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(50):
        optimizer.step()
    after = dict(model.named_parameters())
    for name in names("delta", "never"):
        assert torch.equal(after[name], before[name]), f"{name} decayed"
    assert after["embedding.weight"].norm() < 0.96 * before["embedding.weight"].norm()
