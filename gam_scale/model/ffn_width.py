"""The width of a feed-forward network: a multiple of d_model, or a number of channels."""

from dataclasses import dataclass
from typing import Any

from gam_scale.errors import UserError
from gam_scale.model.parts import FeedForwardConfig, Naming
from gam_scale.model.shape import WIDEST, Shape
from gam_scale.strict import option

MULT = 4
"""The default multiple."""


def mult_option(doc: str) -> Any:
    """Declare the field ``mult``, a multiple of d_model."""
    return option(MULT, doc, at_least=1, at_most=1000)


@dataclass(frozen=True)
class WideConfig(FeedForwardConfig):
    """The configuration of a feed-forward network with a hidden width of its own."""

    mult: int = mult_option("width as a multiple of d_model")
    width: int = option(
        0,
        "hidden width in channels, given instead of mult; 0: from mult",
        at_least=0,
        at_most=WIDEST,
    )

    def channels(self, shape: Shape) -> int:
        """Return the hidden width, between the matrices."""
        return self.width or self.by_mult(shape)

    def by_mult(self, shape: Shape) -> int:
        """Return the hidden width that ``mult`` stands for."""
        return self.mult * shape.d_model

    def check(self, shape: Shape, name: Naming) -> None:
        """See :meth:`Part.check`."""
        if self.width and self.mult != MULT:
            raise UserError(
                f"{name('width')} is {self.width} beside mult {self.mult}, which is a width too; "
                "expected one of them"
            )
