"""Test the choice of an implementation: the first that runs and is right on every rank."""

import pytest
import torch
from torch import Tensor, nn

from gam_scale.kernels.choice import HasKernels, Trial, choose
from gam_scale.model.layout import Layout

CPU = torch.device("cpu")


def portable(a: Tensor, b: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    assert layout.documents is not None
    return a * b, (a * b).sum(0)


def raising(*_):
    raise ModuleNotFoundError("No module named 'fla'\nand more")


def of_nan(a, b, layout):
    return a * b * torch.nan, (a * b).sum(0)


def wrong(a, b, layout):
    return a * b, 1.1 * (a * b).sum(0)


def detached(a, b, layout):
    """Compute right outputs, whose gradients are right for a but zero for b."""
    return a * b.detach() + b * 0, (a * b.detach()).sum(0)


def rounded(a, b, layout):
    assert a.dtype == torch.bfloat16 and b.dtype == torch.float32
    return portable(a, b.bfloat16(), layout)


def trial(kernels, products=("a",)) -> Trial:
    a, b = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    layout = Layout.of(torch.tensor([[3, 4, 0, 1]]))
    return Trial(portable, kernels, {"a": a, "b": b}, products, layout)


def chosen(kernels, dtype=torch.bfloat16, precision="ieee", agree=lambda here: here, **options):
    return choose([trial(kernels, **options)], CPU, dtype, precision, agree)


def test_the_first_that_agrees_is_taken():
    choice = chosen(dict(first=rounded, second=raising))
    assert (choice.implementation, choice.reasons) == ("first", [])


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (raising, "bad: ModuleNotFoundError: No module named 'fla'"),
        (of_nan, "bad: its output 0 is off by nan"),
        (wrong, "bad: its output 1 is off by 1.0e-01"),
        (detached, "bad: its gradient of b is off by 1.0e+00"),
    ],
)
def test_any_other_is_passed_over_with_its_reason(kernel, reason):
    choice = chosen(dict(bad=kernel, good=rounded))
    assert (choice.implementation, choice.reasons) == ("good", [reason])
    choice = chosen(dict(bad=kernel))
    assert (choice.implementation, choice.reasons) == ("portable", [reason])


def test_one_rank_without_it_means_that_none_uses_it():
    heard = []
    choice = chosen(dict(first=rounded), agree=lambda here: heard.append(here))
    assert heard == [True]
    assert (choice.implementation, choice.reasons) == ("portable", ["first: not on every rank"])


def test_every_rank_is_asked_about_the_same_ones():
    heard = []
    chosen(dict(a=raising, b=wrong), agree=lambda here: heard.append(here))
    assert heard == [False, False]


def test_float32_products_are_tf32_by_permission_only():
    kernels = {"kernel": portable}
    choice = chosen(kernels, torch.float32)
    assert choice.implementation == "portable"
    assert "train.fp32_matmul is ieee" in choice.reasons[0]
    assert chosen(kernels, torch.float32, "tf32").implementation == "kernel"
    assert chosen(kernels, torch.float32, products=()).implementation == "kernel"


def test_it_is_tried_as_in_training_whatever_is_going_on():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert chosen(dict(first=rounded)).implementation == "first"


def test_a_layer_runs_in_its_portable_form_until_it_is_told():
    assert isinstance(HasKernels(), nn.Module) and HasKernels().implementation == "portable"
    choice = choose(HasKernels().trials(1), CPU, torch.float32, "tf32", bool)
    assert (choice.implementation, choice.reasons) == ("portable", [])
