"""Test that an operator defined again, as by an exported model, stays the first one."""

import torch
from torch import Tensor

from gam_scale.kernels.operator import operator


def test_a_second_definition_leaves_the_first_alone():
    def define():
        @operator("gam_scale_test::twice")
        def twice(x: Tensor) -> Tensor:
            return 2 * x

        return twice

    first, second = define(), define()
    assert first is second
    assert torch.equal(first(torch.ones(3)), torch.full((3,), 2.0))
