"""Test settings of parts: what is refused, and what the short form of a stack means."""

import re
from contextlib import nullcontext

import pytest

from gam_scale.errors import UserError
from gam_scale.model.config import ModelConfig
from gam_scale.model.feedforwards.relu2 import ReLU2Config
from gam_scale.model.feedforwards.swiglu import SwiGLUConfig
from gam_scale.model.norms.rmsnorm import RMSNormConfig
from gam_scale.model.parts import MixerConfig
from gam_scale.strict import from_dict


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["gru"]}, r'model.layers\[0\] is "gru"; expected one of "attention", "delta"'),
        ({"layers": [{"n_heads": 2}]}, r"model.layers\[0\] has no kind; expected one of"),
        (
            {"layers": ["static", {"kind": "delta", "window": 9}]},
            r"model.layers\[1\].window is 9, but a layer of kind delta has no such setting; "
            "expected some of ffn, norm, kernel_size",
        ),
        (
            {"layers": [{"kind": "delta", "n_heads": 3}]},
            r"model.layers\[0\].n_heads is 3, which does not divide model.d_model 512",
        ),
        (
            {"layers": [{"kind": "attention", "n_kv_heads": 3}]},
            r"layers\[0\].n_kv_heads is 3, which does not divide n_heads 8; expected a divisor",
        ),
        ({"block": "attention", "attention": {"window": 1}}, "model.attention.window is 1, in"),
        (
            {"layers": [{"kind": "mamba2", "head_dim": 48}]},
            r"layers\[0\].head_dim is 48, which does not divide the inner width 1024, model.layers",
        ),
        (
            {"layers": [{"kind": "mamba2", "n_groups": 3}]},
            r"layers\[0\].n_groups is 3, which does not divide the 16 heads; expected a divisor",
        ),
        (
            {"layers": [{"kind": "mamba", "stack": "paper", "ffn": "mlp"}]},
            r"layers\[0\].stack is paper, a bare block, with a feed-forward network of kind mlp",
        ),
        (
            {"layers": [{"kind": "delta", "paths": "global", "fusion": "local"}]},
            r"layers\[0\].fusion is local, a gate on the local path, with paths global",
        ),
        (
            {"gam": {"fusion": "local"}},
            r"model.gam.fusion is local beside a memory without an output gate, whose path would",
        ),
        (
            {"layers": [{"kind": "slot", "fusion": "local"}]},
            r"layers\[0\].fusion is local beside a memory without an .*; expected fusion gate, or",
        ),
        (
            {"layers": [{"kind": "gam_delta", "output_gate": "none"}]},
            r"layers\[0\].fusion is local, the default of gam_delta, beside a memory without",
        ),
        (
            {"layers": [{"kind": "gdn2", "strength_bias": True}]},
            r"layers\[0\].strength_bias is true with strength_per channel, whose gates have none",
        ),
        (
            {"layers": [{"kind": "delta", "paths": "global", "memory_input": "plain"}]},
            r"layers\[0\].memory_input is plain with paths global, where a memory has no",
        ),
        (
            {"layers": [{"kind": "delta", "n_heads": 2, "n_value_heads": 3}]},
            r"layers\[0\].n_value_heads is 3, which is no multiple of n_heads 2; expected a",
        ),
        (
            {"layers": [{"kind": "gdn", "head_dim": 5, "expand_v": 1.5}]},
            r"layers\[0\].expand_v is 1.5 with keys of 5 channels; expected a multiple",
        ),
        (
            {"layers": [{"kind": "delta", "head_dim": 5}], "position": "rotary"},
            r"layers\[0\].head_dim is 5; expected an even number for rotary",
        ),
        (
            {"layers": [{"kind": "gdn", "max_horizon": 99.0}]},
            r"layers\[0\].max_horizon is 99 with decay_start published, which decides",
        ),
        (
            {"layers": [{"kind": "delta", "output_gate_rank": "head"}]},
            r"layers\[0\].output_gate_rank is head with output_gate none; expected output_gate",
        ),
        ({"ffn": "glu"}, 'model.ffn is "glu"; expected one of "mlp", "none", "relu2", "swiglu"'),
        (
            {"ffn": {"kind": "swiglu", "mult": 0}},
            "model.ffn.mult is 0; expected at least 1 and at most 1000",
        ),
        (
            {"norm": {"kind": "layernorm", "eps": 1}},
            "layernorm has no such setting; expected its kind alone",
        ),
        (
            {"layers": [{"kind": "attention", "window": 10**9}]},
            r"layers\[0\].window is 1000000000; expected at least 0 and at most 1e\+08",
        ),
        (
            {"ffn": {"kind": "swiglu"}, "ffn_mult": 8},
            "model.ffn_mult is 8, which no layer takes: .* expected mult in those settings",
        ),
        (
            {"layers": [{"kind": "delta", "ffn": {"kind": "mlp"}}], "ffn_mult": 8},
            "model.ffn_mult is 8, which no layer takes",
        ),
        ({"layers": ["mamba"], "ffn_mult": 8}, "model.ffn_mult is 8, which no layer takes"),
        (
            {"layers": [{"kind": "mamba", "stack": "paper", "norm": "rmsnorm"}]},
            r"layers\[0\].norm is given with stack paper, a bare block without norms",
        ),
        (
            {"layers": [{"kind": "slot", "gate": "plain", "top_k": 3}]},
            r"layers\[0\].top_k is 3 with gate plain, where a token writes all rows",
        ),
        (
            {"layers": [{"kind": "slot", "paths": "local", "n_slots": 9}]},
            r"layers\[0\].n_slots is 9 with paths local, which leaves out the memory; expected",
        ),
        (
            {"layers": [{"kind": "static", "paths": "global", "kernel_size": 5}]},
            r"layers\[0\].kernel_size is 5 with paths global, which leaves out the convolution",
        ),
        ({"norm": SwiGLUConfig()}, 'model.norm is "swiglu"; expected one of "layernorm"'),
        (
            {"layers": [{"kind": "delta", "ffn": RMSNormConfig()}]},
            r'layers\[0\].ffn is "rmsnorm"; expected one of "mlp", "none"',
        ),
        ({"layers": "delta"}, 'model.layers is "delta"; expected a list of kinds or objects'),
    ],
)
def test_what_a_part_refuses(settings, message):
    with pytest.raises(UserError, match=message):
        from_dict(ModelConfig, settings | {"n_layers": 2}, "model").check()


def test_what_a_run_fills_in_is_not_refused_where_it_decides_nothing():
    """A run's complete config, which a user may pass again, has horizons set from its length."""
    layers = [{"kind": "delta", "paths": "local"}, {"kind": "slot", "paths": "global"}]
    model = from_dict(ModelConfig, {"layers": layers, "n_layers": 2}, "model").at_length(4096)
    assert model.layers[0].max_horizon == 4096
    model.check()


@pytest.mark.parametrize(
    ("layer", "tokens", "message"),
    [
        (
            {"kind": "mamba"},
            3,
            r"n is 3 and model.layers\[0\].d_conv 4; expected at least that many tokens",
        ),
        ({"kind": "mamba"}, 4, ""),
        ({"kind": "static", "kernel_size": 5}, 4, r"n is 4 and model.layers\[0\].kernel_size 5"),
        ({"kind": "static", "kernel_size": 5}, 5, ""),
        ({"kind": "static", "paths": "global"}, 1, ""),
        ({"kind": "gdn"}, 3, r"n is 3 and model.layers\[0\].conv_size 4"),
        ({"kind": "gdn", "paths": "local"}, 3, ""),
        ({"kind": "scan", "paths": "local", "conv_size": 4}, 3, ""),
    ],
)
def test_a_rank_has_the_tokens_that_convolutions_reach_back_to(layer, tokens, message):
    model = from_dict(ModelConfig, {"layers": [layer]}, "model")
    with pytest.raises(UserError, match=message) if message else nullcontext():
        model.check_length(tokens, f"n is {tokens}")


def test_a_layer_named_by_its_kind_has_the_sections_settings():
    config = from_dict(
        ModelConfig,
        {
            "layers": ["delta", {"kind": "delta"}, "static"],
            "memory": {"n_heads": 2, "n_slots": 7},
            "gam": {"n_slots": 9, "kernel_size": 5},
            "ffn_mult": 2,
        },
    )
    config.check()
    named, own, static = config.stack()[:3]
    assert (named.n_heads, named.kernel_size, named.ffn.mult) == (2, 5, 2)
    assert (own.n_heads, own.kernel_size, own.ffn.mult) == (4, 3, 2)
    assert static.n_slots == 9


def test_a_network_named_in_a_layer_is_as_wide_as_the_model_says():
    ffns = ["swiglu", {"kind": "mlp", "mult": 3}, None]
    layers = [{"kind": "delta", "ffn": ffn} for ffn in ffns]
    config = from_dict(ModelConfig, {"layers": layers, "n_layers": 3, "ffn_mult": 8})
    config.check()
    assert [layer.ffn.mult for layer in config.stack()] == [8, 3, 8]


def test_what_the_short_form_of_old_runs_leaves_unused_is_no_mistake():
    memory = {"kind": "slot", "gate": "plain", "top_k": 3}
    from_dict(ModelConfig, {"memory": memory, "ffn_mult": 8}).check()
    mamba = {"block": "mamba", "mamba": {"stack": "paper"}, "norm": "rmsnorm", "ffn_mult": 8}
    from_dict(ModelConfig, mamba).check()


def test_a_kind_that_does_not_say_what_it_is_measured_as_is_none():
    with pytest.raises(AssertionError, match="Nameless: gpu_block_kind is what"):

        class Nameless(MixerConfig):
            kind = "nameless"


class Refusal(Exception):
    pass


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"ffn": {"kind": "relu2"}}, "model.ffn.mult"),
        ({"layers": ["delta", {"kind": "delta", "ffn": "relu2"}]}, "model.layers[1].ffn.mult"),
        ({"norm": {"kind": "rmsnorm"}}, "model.norm.mult"),
        ({"layers": [{"kind": "delta", "norm": "rmsnorm"}]}, "model.layers[0].norm.mult"),
        (
            {"norm": "rmsnorm", "layers": [{"kind": "delta", "norm": "layernorm"}]},
            "model.norm.mult",
        ),
    ],
    ids=str,
)
def test_norms_and_feed_forward_networks_may_refuse(settings, wanted, monkeypatch):
    def check(self, shape, name):
        raise Refusal(name("mult"))

    for config in (RMSNormConfig, ReLU2Config):
        monkeypatch.setattr(config, "check", check)
    with pytest.raises(Refusal, match=re.escape(wanted)):
        from_dict(ModelConfig, settings, "model").check()


def test_horizons_of_every_layer_follow_the_length():
    layers = ["delta", {"kind": "slot"}, {"kind": "scan", "max_horizon": 99.0}]
    config = from_dict(ModelConfig, {"layers": layers, "n_layers": 3}).at_length(4096)
    assert [layer.max_horizon for layer in config.stack()] == [4096.0, 4096.0, 99.0]
