"""How wide a feed-forward network is: a multiple of the model's width, or a number of channels."""

from dataclasses import dataclass
from typing import Any

from gam_scale.errors import UserError
from gam_scale.model.parts import FeedForwardConfig, Naming
from gam_scale.model.shape import WIDEST, Shape
from gam_scale.strict import option

MULT = 4
"""The multiple where nothing is said."""


def mult_option(doc: str) -> Any:
    """The field ``mult``, a multiple of d_model."""
    return option(MULT, doc, at_least=1, at_most=1000)


@dataclass(frozen=True)
class WideConfig(FeedForwardConfig):
    """Of a network between whose matrices there are more channels than d_model."""

    mult: int = mult_option("width as a multiple of d_model")
    width: int = option(
        0, "channels between its matrices, instead of mult; 0: by mult", at_least=0, at_most=WIDEST
    )

    def channels(self, shape: Shape) -> int:
        """Between the matrices."""
        return self.width or self.by_mult(shape)

    def by_mult(self, shape: Shape) -> int:
        """The channels that ``mult`` stands for."""
        return self.mult * shape.d_model

    def check(self, shape: Shape, name: Naming) -> None:
        """See :meth:`Part.check`."""
        if self.width and self.mult != MULT:
            raise UserError(
                f"{name('width')} is {self.width} beside mult {self.mult}, which is a width too; "
                "expected one of them"
            )
