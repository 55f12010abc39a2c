"""Blocks of table 2: published and fused attention are equal, and each is measured once."""

import pytest
import torch
from layouts import plain

from gam_scale.reproduce import blocks
from gam_scale.reproduce.published import TABLE_2
from gam_scale.reproduce.spread import Results
from gam_scale.reproduce.tables import block_memory, block_times
from gam_scale.reproduce.words import shows


@pytest.mark.parametrize("length", [1, 7, 64])
def test_published_attention_computes_what_the_fused_kernel_does(length) -> None:
    published, fused = (blocks.build(k, 32, 2, 0.0).double() for k in ("transformer", "fused"))
    torch.manual_seed(0)
    x = torch.randn(3, length, 32, dtype=torch.float64, requires_grad=True)
    results = []
    for block in (published, fused):
        y = block(x, plain(x))
        gradients = torch.autograd.grad(y.square().sum(), [x, *block.parameters()])
        results.append((y, *gradients))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)  # float64, other order of sums


@pytest.mark.parametrize("kind", blocks.KINDS)
def test_memory_grows_as_it_must(kind) -> None:
    """Memory grows with T^2 if scores of attention are kept, and otherwise with T."""
    block = blocks.build(kind, 64, 8, 0.0 if kind == "fused" else 0.1)
    short, long = (blocks._measure(block, 1, n, 0.01)["bytes"] for n in (256, 1024))
    parameters = sum(p.nbytes for p in block.parameters())
    growth = (long - 2 * parameters) / (short - 2 * parameters)  # parameters and their gradients
    assert growth > 8 if kind == "transformer" else growth < 5


def test_a_block_is_measured_once(tmp_path) -> None:
    assert len(blocks.missing(tmp_path, (32, 16, 32))) == 6
    made = blocks.measure_into(tmp_path, "gam", 16, 0.0625, "cpu")
    assert made["ms"] > 0 and made["bytes"] > 0 and (made["batch"], made["timed"]) == (1, 3)
    assert blocks.measured(tmp_path) == [made]
    assert blocks.missing(tmp_path, (16,)) == [("transformer", 16), ("fused", 16)]


def test_what_does_not_fit_is_said(monkeypatch) -> None:
    monkeypatch.setattr(blocks, "available", lambda: 1e9)
    made = blocks.measure("transformer", 8192, 0.125, "cpu")  # 25 GB of scores
    assert made["ms"] is None and made["bytes"] is None
    fits = made | {"kind": "gam", "ms": 12.5, "bytes": 3 << 20, "timed": 5}
    time, memory = block_times([fits, made]).rows[0], block_memory([fits, made]).rows[0]
    assert time == ["8,192", "217.3", "did not fit", "12.5", "does not fit", ""]
    assert memory == ["8,192", "4,707.4", "did not fit", "3.0", "does not fit", ""]
    assert shows(Results([]), [fits, made]) == []
    both = shows(Results([]), [fits, fits | {"kind": "fused", "ms": 25.0}])
    assert "with the fused kernel takes 2.00 times as long as a GAM block, and 1.00" in both[0]


def test_published_lengths_are_measured() -> None:
    assert {T for _, T in TABLE_2} == set(blocks.LENGTHS)
