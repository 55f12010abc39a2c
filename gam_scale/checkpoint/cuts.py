"""Parts of tensors: a part's elements, what two parts share, whether parts are all of a tensor.

A part is a box of a tensor, given by its offset and extent in each dimension, or a range of the
flattened tensor, whose offset and extent are one number each.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

Box = tuple[Sequence[int], Sequence[int]]
"""Offset and extent."""
Common = tuple[int, int, int]
"""A run of elements that two parts share: where it begins in the first part's data, where in the
second's, and its length."""


def grid_of(shape: Sequence[int], offset: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that a part's offset refers to: the tensor's, or flattened for a range."""
    return tuple(shape) if len(offset) == len(shape) else (math.prod(shape),)


def runs(
    shape: Sequence[int], offset: Sequence[int], extent: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield the ranges (first element, end) of the flattened tensor that are a part, ascending."""
    grid = grid_of(shape, offset)
    axis = max(len(grid) - 1, 0)
    while axis and extent[axis] == grid[axis]:  # whole rows lie one after another
        axis -= 1
    length = math.prod(extent[axis:])
    strides = [math.prod(grid[i + 1 :]) for i in range(len(grid))]
    base = sum(first * stride for first, stride in zip(offset, strides, strict=True))
    for index in product(*map(range, extent[:axis])):
        first = base + sum(i * stride for i, stride in zip(index, strides, strict=False))
        yield first, first + length


def shared(ours: Iterable[tuple[int, int]], theirs: Iterable[tuple[int, int]]) -> Iterator[Common]:
    """Yield the elements that two parts have in common.

    Args:
        ours, theirs: the parts' :func:`runs`.
    """
    others = _placed(theirs)
    other = next(others, None)
    for start, stop, place in _placed(ours):
        while other and other[0] < stop:
            first, last = max(start, other[0]), min(stop, other[1])
            if first < last:
                yield place + first - start, other[2] + first - other[0], last - first
            if other[1] > stop:
                break
            other = next(others, None)


def _placed(parts: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield each run with its place in the part's data."""
    place = 0
    for start, stop in parts:
        yield start, stop, place
        place += stop - start


def fault(grid: Sequence[int], boxes: Sequence[Box]) -> str:
    """Return what keeps ``boxes`` from covering ``grid`` exactly once, in a phrase; "": nothing."""
    for offset, extent in boxes:
        if not len(offset) == len(extent) == len(grid):
            return "is cut in several ways"
        if any(o < 0 or e < 1 or o + e > n for o, e, n in zip(offset, extent, grid, strict=True)):
            return f"has a part of {list(extent)} at {list(offset)}, outside {list(grid)}"
    elements = sum(math.prod(extent) for _, extent in boxes)
    if elements != math.prod(grid):
        return f"has {elements} elements in its parts; expected {math.prod(grid)}"
    if not grid:
        return ""
    # Along the axis that is cut most, few boxes reach past where the next one begins.
    axis = max(range(len(grid)), key=lambda i: len({offset[i] for offset, _ in boxes}))
    reaching: list[Box] = []
    for box in sorted(boxes, key=lambda box: box[0][axis]):
        reaching = [b for b in reaching if b[0][axis] + b[1][axis] > box[0][axis]]
        if any(_overlap(box, other) for other in reaching):
            return f"has parts that overlap at {list(box[0])}"
        reaching.append(box)
    return ""


def _overlap(one: Box, other: Box) -> bool:
    sides = zip(*one, *other, strict=True)
    return all(a < b + m and b < a + n for a, n, b, m in sides)
