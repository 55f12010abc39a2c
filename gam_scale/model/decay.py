"""Which parameters weight decay pulls towards zero: a property of each, like its initial value."""

from collections.abc import Iterator
from typing import Literal

from torch import nn

Decay = Literal["always", "all", "never"]
"""always; with ``train.decay`` all only; or never.

A matrix decays always and a vector with all, if its module's ``decay``, a dict by name, does not
say otherwise.
"""


def decays(model: nn.Module) -> Iterator[tuple[str, Decay]]:
    """Every parameter's name and whether it decays, in the order of ``model.parameters()``."""
    for prefix, module in model.named_modules():
        own: dict[str, Decay] = getattr(module, "decay", {})
        for name, parameter in module.named_parameters(recurse=False):
            usual: Decay = "always" if parameter.dim() >= 2 else "all"
            yield f"{prefix}.{name}".removeprefix("."), own.get(name, usual)
