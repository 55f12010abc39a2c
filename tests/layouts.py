"""Layouts of the inputs of blocks."""

from torch import Tensor

from gam_scale.model.layout import Layout


def plain(x: Tensor, first: int = 0) -> Layout:
    """Lay out x (B, T, ...): each row is one stream whose first token is number ``first``."""
    return Layout.stream(*x.shape[:2], first=first)
