"""Test that the flat copy of the model's source, by itself, computes what the source does."""

import importlib
import re
import sys

import pytest
import torch

from gam_scale.config import ModelConfig
from gam_scale.export.sources import flat_sources
from gam_scale.model.lm import build_model
from gam_scale.strict import to_dict

TEMPLATES = ("configuration_gam_scale", "modeling_gam_scale", "tokenization_gam_scale")


@pytest.fixture
def flat(tmp_path, monkeypatch):
    """Return a function that imports a module of the flat folder, without transformers."""
    folder = tmp_path / "flat_gam"
    folder.mkdir()
    for name, text in flat_sources(TEMPLATES).items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name: importlib.import_module(f"flat_gam.{name}")
    for name in [n for n in sys.modules if n.startswith("flat_gam")]:
        del sys.modules[name]


def test_every_import_of_ours_is_relative_and_there():
    files = flat_sources(TEMPLATES)
    assert {f"{name}.py" for name in TEMPLATES} < set(files)
    for name, text in files.items():
        assert not re.search(r"^\s*(from|import) gam_scale", text, re.MULTILINE), name
        assert '"gam_scale::' not in text, name
        for needed in re.findall(r"^\s*from \.(\w+) import", text, re.MULTILINE):
            assert f"{needed}.py" in files, f"{name} needs {needed}"


def test_a_configuration_names_every_other_file():
    files = flat_sources(TEMPLATES)
    named = re.findall(
        r"^\s*from \.(\w+) import", files["configuration_gam_scale.py"], re.MULTILINE
    )
    assert {f"{name}.py" for name in named} == {name for name in files if name[:4] == "gam_"}


@pytest.mark.parametrize("block", ["gam", "attention", "mamba"])
def test_the_copy_computes_the_same_bits(flat, block):
    config = ModelConfig(block=block, d_model=16, n_layers=2, vocab_size=31, max_seq_len=8)
    ours = build_model(config, seed=3).eval()
    module = flat("gam_scale_model_lm")
    strict, configs = flat("gam_scale_strict"), flat("gam_scale_model_config")
    copied = module.LanguageModel(strict.from_dict(configs.ModelConfig, to_dict(config))).eval()
    assert type(copied.blocks[0]).__module__.startswith("flat_gam.")
    copied.load_state_dict(ours.state_dict())
    tokens = torch.randint(31, (2, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(copied(tokens), ours(tokens))
    losses = [model(tokens, tokens) for model in (ours, copied)]  # custom operators, both ways
    for loss in losses:
        loss.backward()
    for (name, a), b in zip(ours.named_parameters(), copied.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
