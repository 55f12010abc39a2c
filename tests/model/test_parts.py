"""Every part: one row each, and what holds of all of them.

A new kind of layer, feed-forward network or norm has a row here and is otherwise one file.
"""

import importlib
import math
import re
import sys
from contextlib import nullcontext

import pytest
import torch
from closeness import is_alive, off, worst
from engines import differences
from ranks import run_ranks
from small import BY_CHANNEL, PUBLISHED_RAVEN, WHOLE
from torch import Tensor

from gam_scale.config import ParallelConfig
from gam_scale.data.packing import Batch
from gam_scale.errors import UserError
from gam_scale.evaluate.state_size import state_size
from gam_scale.export.sources import flat_sources
from gam_scale.model.config import ModelConfig
from gam_scale.model.feedforwards.relu2 import ReLU2Config
from gam_scale.model.feedforwards.swiglu import SwiGLUConfig
from gam_scale.model.layout import Layout
from gam_scale.model.lm import LanguageModel, build_model
from gam_scale.model.norms.rmsnorm import RMSNormConfig
from gam_scale.model.parts import FEED_FORWARDS, NORMS, MixerConfig, implementations
from gam_scale.model.policy import policies
from gam_scale.parallel.context import SequenceContext
from gam_scale.strict import from_dict, to_dict

ROWS = {
    "static": {"layers": [{"kind": "static", "n_slots": 6}]},
    "slot": {"layers": [{"kind": "slot", "n_heads": 2, "n_slots": 6, "top_k": 2}]},
    "raven": {
        "layers": [{"kind": "raven", "n_heads": 2, "n_slots": 6, "top_k": 2}],
        "position": "rotary",
    },
    "raven, published": {
        "layers": [PUBLISHED_RAVEN | {"n_heads": 2, "n_slots": 6, "top_k": 2, "router_noise": 0.0}],
        "position": "rotary",
    },
    "delta": {"layers": [{"kind": "delta", "n_heads": 2}], "position": "rotary"},
    "recipe": {"layers": [WHOLE | {"fusion": "local"}], "position": "rotary"},
    "recipe by channel": {"layers": [BY_CHANNEL], "position": "rotary"},
    "phase": {"layers": [{"kind": "phase", "n_heads": 2}]},
    "scan": {"layers": [{"kind": "scan"}]},
    "scan, whole": {
        "layers": [{"kind": "scan", "conv_size": 4, "activation": "silu", "output_norm": True}]
    },
    "attention": {"layers": [{"kind": "attention", "n_heads": 2}]},
    "mamba": {"layers": [{"kind": "mamba", "d_state": 4, "expand": 2}]},
    "mamba2": {"layers": [{"kind": "mamba2", "d_state": 4, "head_dim": 8, "n_groups": 2}]},
    "grouped queries": {"layers": [{"kind": "attention", "n_heads": 4, "n_kv_heads": 2}]},
    "window": {"layers": [{"kind": "attention", "n_heads": 2, "window": 7}]},
    "qk norm": {
        "layers": [
            {"kind": "attention", "n_heads": 4, "n_kv_heads": 1, "window": 5, "qk_norm": True}
        ],
        "position": "rotary",
    },
    "rotary in attention": {
        "layers": [{"kind": "delta", "n_heads": 2}, {"kind": "attention", "n_heads": 2}],
        "position": "rotary_attention",
    },
    "rotary in a layer": {
        "layers": [
            {"kind": "attention", "n_heads": 2, "positions": "rotary"},
            {"kind": "attention", "n_heads": 2, "positions": "none"},
        ]
    },
    "mlp": {"layers": [{"kind": "mamba", "d_state": 4, "expand": 2, "ffn": "mlp"}]},
    "swiglu": {"layers": [{"kind": "delta", "n_heads": 2}], "ffn": "swiglu"},
    "relu2": {
        "layers": [{"kind": "delta", "n_heads": 2, "ffn": {"kind": "relu2", "mult": 3}}],
    },
    "none": {"layers": [{"kind": "attention", "n_heads": 2, "ffn": "none"}]},
    "layernorm": {"layers": ["static"], "norm": "layernorm"},
    "rmsnorm": {"layers": ["static"], "norm": {"kind": "rmsnorm", "eps": 1e-6}},
    "no biases": {
        "layers": ["static", {"kind": "attention", "n_heads": 2}, "mamba"],
        "biases": False,
    },
    "untied head": {"layers": ["static"], "tied_head": False},
}
"""Settings of a model that has the part."""

T, VOCAB = 24, 23


def config_of(name: str, **changes) -> ModelConfig:
    row = ROWS[name] | changes
    usual = {"d_model": 16, "vocab_size": VOCAB, "max_seq_len": T, "dropout": 0.0}
    usual |= {"n_layers": 2 * len(row["layers"]) if len(row["layers"]) < 2 else len(row["layers"])}
    config = from_dict(ModelConfig, usual | row, "model")
    config.check()
    return config


def model_of(name: str) -> LanguageModel:
    """In float64, where two ways to the same numbers differ by rounding of 1e-16 alone."""
    return build_model(config_of(name), seed=0).double().eval()


def tokens(rows: int = 2, length: int = T) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(0))


def test_every_kind_has_a_row():
    layers = [layer for name in ROWS for layer in config_of(name).stack()]
    kinds = {kind for x in layers for kind in (x.kind, x.ffn.kind, x.norm.kind)}
    assert kinds >= {*implementations(), *FEED_FORWARDS, *NORMS}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("chunks", [[1] * T, [9, 1, 1, 10, 3]])
def test_decoding_gives_the_logits_of_training(name, chunks):
    model = model_of(name)
    with torch.no_grad():
        expected, state, seen = model(tokens()), model.init_state(2), 0
        for text in tokens().split(chunks, 1):
            logits, state = model.extend(text, state)
            seen += text.shape[1]
            assert off(logits, expected[:, seen - 1]) < 1e-12, f"after {seen} tokens"


@pytest.mark.parametrize("name", ROWS)
def test_nothing_crosses_from_document_to_document(name):
    model = model_of(name)
    starts = [[0, 1, 9, 20], [0, 13]]
    positions = torch.tensor(
        [[t - max(s for s in row if s <= t) for t in range(T)] for row in starts]
    )
    found = model(tokens(), layout=Layout.of(positions))
    for row, (text, begins) in enumerate(zip(tokens(), starts, strict=True)):
        for begin, end in zip(begins, [*begins[1:], T], strict=True):
            assert off(found[row, begin:end], model(text[None, begin:end])[0]) < 1e-12


ROLES = {
    "embedding.weight": "embedding",
    "position.weight": "embedding",
    "head.weight": "head",
    "conv.weight": "vector",
    "A_log": "vector",
    "log_rate": "vector",
}


def role_of(name: str, p: Tensor) -> str:
    """A vector is what acts on channels by themselves; a matrix, what maps hidden states."""
    if name.endswith("memory.bank"):  # the paper's is the one matrix; rows that others begin with
        return "matrix" if p.dim() == 2 else "embedding"
    own = [role for end, role in ROLES.items() if name.endswith(end)]
    return own[0] if own else "vector" if p.dim() < 2 else "matrix"


@pytest.mark.parametrize("name", ROWS)
def test_everything_learns_and_has_a_policy(name):
    model = model_of(name)
    model(tokens(), tokens().roll(-1, 1)).backward()
    known = dict(policies(model))
    for parameter, p in model.named_parameters():
        assert is_alive(p.grad), f"{parameter} does not learn"
        assert known[parameter].role == role_of(parameter, p), parameter


@pytest.mark.parametrize("name", ROWS)
def test_a_state_is_as_large_as_it_is_said_to_be(name):
    model, length = model_of(name), 70  # more than a cache has room for at first
    _, state = model.extend(tokens(1, length), model.init_state(1))
    size = state_size(model.config)
    held = 0
    for block, kept in zip(model.blocks, state["blocks"], strict=True):
        for tensor in kept.values():
            if tensor.is_floating_point():
                grows = "length" in kept  # in a buffer with room to spare
                seen = length if block.reach is None else min(block.reach, length)
                held += tensor[:, :, :seen].numel() if grows else tensor.numel()
    assert held == size.at(length)


@pytest.mark.parametrize("name", ROWS)
def test_flops_are_counted(name):
    model = model_of(name)
    weights = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2)
    embedded = sum(p.numel() for n, p in model.named_parameters() if n.startswith("position"))
    if model.head is not None:
        embedded += model.embedding.weight.numel()
    matrices = weights - embedded
    assert 1.5 * matrices < model.flops_per_token(T) < 6 * matrices
    assert math.isfinite(model.flops_per_token(1))


@pytest.mark.parametrize("name", ROWS)
def test_settings_come_back_from_a_saved_config(name):
    config = config_of(name)
    saved = to_dict(config)
    assert to_dict(from_dict(ModelConfig, saved)) == saved
    assert from_dict(ModelConfig, saved).stack() == config.stack()


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """Import a module of the flat folder that an export writes."""
    root = tmp_path_factory.mktemp("export")
    (root / "flat_parts").mkdir()
    for name, text in flat_sources(("modeling_gam_scale",)).items():
        (root / "flat_parts" / name).write_text(text)
    sys.path.insert(0, str(root))
    yield lambda name: importlib.import_module(f"flat_parts.{name}")
    sys.path.remove(str(root))
    for name in [n for n in sys.modules if n.startswith("flat_parts")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ROWS)
def test_an_export_has_the_part(flat, name):
    model = model_of(name)
    strict, configs = flat("gam_scale_strict"), flat("gam_scale_model_config")
    config = strict.from_dict(configs.ModelConfig, to_dict(model.config))
    copied = flat("gam_scale_model_lm").LanguageModel(config).double().eval()
    copied.load_state_dict(model.state_dict())
    assert type(copied.blocks[0]).__module__.startswith("flat_parts.")
    assert torch.equal(copied(tokens()), model(tokens()))


LENGTH = 60
DOCUMENTS = [[0, 29, 31, 58], [0, 30]]


def cut_over_ranks(world, names):
    """Largest relative difference of loss and gradients, by part, from those of one rank."""
    world = world.arranged(ParallelConfig(context=world.world_size))
    context = SequenceContext(world)
    places = [[t - max(s for s in row if s <= t) for t in range(LENGTH)] for row in DOCUMENTS]
    text = tokens(2, LENGTH + 1)
    batch = Batch(text[:, :-1], text[:, 1:], Layout.of(torch.tensor(places)))
    found = {}
    for name in names:
        config = config_of(name, max_seq_len=LENGTH)
        whole, cut = (build_model(config, seed=0).double() for _ in range(2))
        cut.context = context
        found[name] = worst(differences(cut, whole, batch, world))
    return found


def test_sequences_may_be_cut_over_ranks():
    for name, difference in run_ranks(cut_over_ranks, 2, names=list(ROWS))[0].items():
        assert difference < 1e-10, f"{name}: {difference:.1e}"  # sums in another order


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
            "model.ffn_mult is 8 beside model.ffn, with settings of its own; expected its mult",
        ),
        (
            {"layers": [{"kind": "delta", "ffn": {"kind": "mlp"}}], "ffn_mult": 8},
            "model.ffn_mult is 8 beside every ffn in model.layers",
        ),
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
    """Its complete config, which may be given to it again, has horizons of its length."""
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
    with pytest.raises(AssertionError, match="Nameless: measured_as is what"):

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
