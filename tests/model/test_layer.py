"""Test ``gam_scale.Layer``, the layer for users' own models, and the page about it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from closeness import off

import gam_scale
from gam_scale import MIXERS, Layer, Layout, UserError
from gam_scale.model.parts import implementations

PAGE = Path(__file__).parents[2] / "docs" / "layer.md"


def test_the_pages_examples_run():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    assert names["losses"][-1] < 0.5 < 4.0 < names["losses"][0]
    assert names["written"] == b"the cat sat on the mat. the cat sat"
    alone = names["model"].layers[0](names["x"][:, 3:])
    assert off(names["y"][:, 3:], alone) < 1e-6  # float32


@pytest.mark.parametrize("kind", implementations())
@pytest.mark.parametrize("rotary", [False, True])
def test_steps_equal_the_whole_sequence(kind, rotary):
    layer = Layer(kind, 32, rotary=rotary, **MIXERS[kind].small_settings).double()
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    state, pieces = layer.init_state(2), []
    for part in (x[:, :4], *x[:, 4:].split(1, dim=1)):
        y, state = layer.step(part, state)
        pieces.append(y)
    assert off(torch.cat(pieces, dim=1), layer(x)) < 1e-12


def test_what_a_kind_does_not_have_is_refused():
    with pytest.raises(UserError, match="no such setting"):
        Layer("scan", 32, n_heads=2)
    with pytest.raises(UserError, match="does not divide"):
        Layer("delta", 32, n_heads=5)


@pytest.mark.parametrize("shape", [(2, 0, 32), (0, 3, 32), (2, 3, 31), (3, 32)])
def test_tokens_of_another_shape_are_refused(shape):
    layer = Layer("delta", 32)
    with pytest.raises(UserError, match=r"expected \(rows, tokens, 32\), at least one of each"):
        layer(torch.zeros(shape))
    with pytest.raises(UserError, match="x has the shape"):
        layer.step(torch.zeros(shape), layer.init_state(2))


@pytest.mark.parametrize("kind", implementations())
def test_a_layer_can_be_made_without_memory_for_it(kind):
    with torch.device("meta"):
        layer = Layer(kind, 32, **MIXERS[kind].small_settings)
    assert all(parameter.is_meta for parameter in layer.parameters())


def test_every_public_name_is_there_and_the_package_alone_loads_nothing():
    assert set(gam_scale.__all__) <= set(dir(gam_scale))
    assert Layout is gam_scale.Layout
    program = "import sys, gam_scale; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="Lair"):
        gam_scale.Lair  # noqa: B018
