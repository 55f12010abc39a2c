"""Have FSDP2 gather some parameters in fp32 together with others that it gathers in bfloat16.

FSDP2 has one precision policy for all parameters of a group. A second group for the few that keep
fp32 would cost two more collectives per block and pass, each waited for, and its hooks would cut
the block's graph in two. But one all-gather can carry any mixture of dtypes as bytes: FSDP2 only
does not ask for each parameter's own precision, which this module adds.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from gam_scale.model.policy import policy_of


def keep_fp32(unit: FSDPModule, gathered: torch.dtype) -> None:
    """Have FSDP2 gather in fp32 those parameters of ``unit`` whose policy keeps fp32.

    Their gradients travel with the others: rounded once to ``gathered``, then summed over ranks and
    micro-batches in float32.
    """
    group = unit._get_fsdp_state()._fsdp_param_group
    assert group is not None
    for parameter in group.fsdp_params:
        info = parameter._module_info
        if policy_of(info.module, info.param_name).precision == "fp32":
            _after(parameter, "init_dtype_attrs", _uncast)
            _after(parameter, "accumulate_unsharded_grad_if_needed", _rounding(gathered))


def _after(parameter: Any, name: str, then: Callable[[Any], None]) -> None:
    """Call ``then`` after each call of a method; fail where another torch lacks the method."""
    method = getattr(parameter, name, None)
    assert callable(method), f"FSDP's parameters have no {name} in torch {torch.__version__}"

    @wraps(method)
    def both(*args: Any) -> None:
        method(*args)
        then(parameter)

    setattr(parameter, name, both)


def _uncast(parameter: Any) -> None:
    parameter.param_dtype = None


def _rounding(gathered: torch.dtype) -> Callable[[Any], None]:
    def rounded(parameter: Any) -> None:
        gradient = parameter.unsharded_param.grad
        if gradient is not None:
            parameter.unsharded_accumulated_grad = gradient.to(gathered)
            parameter.unsharded_param.grad = None

    return rounded
