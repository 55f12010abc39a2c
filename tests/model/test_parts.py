"""Test what must hold of every part, each in a small model of its own.

A new kind of layer, feed-forward network or norm is one file and one row in ROWS.
"""

import importlib
import math
import sys

import pytest
import torch
from closeness import is_alive, off, worst
from engines import differences
from ranks import run_ranks
from small import BY_CHANNEL, PUBLISHED_RAVEN, WHOLE
from torch import Tensor

from gam_scale.config import ParallelConfig
from gam_scale.data.packing import Batch
from gam_scale.evaluate.state_size import state_size
from gam_scale.export.sources import flat_sources
from gam_scale.model.config import ModelConfig
from gam_scale.model.embedding import Head
from gam_scale.model.layout import Layout
from gam_scale.model.lm import LanguageModel, build_model
from gam_scale.model.memory.base import Memory, WrittenMemory
from gam_scale.model.parts import FEED_FORWARDS, NORMS, implementations
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
"""By part: settings of a small model that has it."""

T, VOCAB = 24, 23


def config_of(name: str, **changes) -> ModelConfig:
    row = ROWS[name] | changes
    usual = {"d_model": 16, "vocab_size": VOCAB, "max_seq_len": T, "dropout": 0.0}
    usual |= {"n_layers": 2 * len(row["layers"]) if len(row["layers"]) < 2 else len(row["layers"])}
    config = from_dict(ModelConfig, usual | row, "model")
    config.check()
    return config


def model_of(name: str) -> LanguageModel:
    """Build a row's model in float64, where two forms differ by rounding of 1e-16 alone."""
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
    ".gate.weight": "gate",
    ".gate.down.weight": "gate",
    "strength.weight": "gate",
    "beta.weight": "gate",
    "erase.weight": "gate",
    "write.weight": "gate",
    "router.weight": "gate",
    "dt_proj.weight": "gate",
}


def role_of(name: str, p: Tensor) -> str:
    """Return the role that a parameter must have.

    A vector acts on single channels. A matrix maps hidden states; if it opens paths, or decides
    what a memory forgets and takes, it is a gate.
    """
    if name.endswith("memory.bank"):  # the paper's is a matrix; others are initial states
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
def test_what_reports_ask_of_a_memory_is_answered(name):
    model = model_of(name)
    layout = Layout.stream(2, T).turned(model.config.rotation())
    h = torch.randn(2, T, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for memory in (m for m in model.modules() if isinstance(m, Memory)):
        for values in memory.statistics(h).values():
            assert values.isfinite().all() and values.dim() == 2
        if isinstance(memory, WrittenMemory):
            assert memory.longest_horizon >= 0
            norms = memory.state_norm(h, layout)
            assert norms.shape == (2, memory.n_heads) and norms.isfinite().all()


def test_a_part_with_a_buffer_is_refused(monkeypatch):
    """It would never be filled, and no checkpoint has it."""
    init = Head.__init__

    def with_buffer(self, *sizes):
        init(self, *sizes)
        self.register_buffer("decays", torch.ones(2))

    monkeypatch.setattr(Head, "__init__", with_buffer)
    with pytest.raises(AssertionError, match=r"\['head.decays'\] would never be filled"):
        model_of("untied head")


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
    """Return a function that imports a module of the flat folder that an export writes."""
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
    """Return, by part, the largest relative error of loss and gradients against one rank."""
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
