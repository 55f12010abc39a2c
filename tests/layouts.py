"""Layouts of what tests feed to blocks."""

from torch import Tensor

from gam_scale.model.layout import Layout


def plain(x: Tensor, first: int = 0) -> Layout:
    """Rows (B, T, ...) of one stream each, the first token being number ``first``."""
    return Layout.stream(*x.shape[:2], first=first)
