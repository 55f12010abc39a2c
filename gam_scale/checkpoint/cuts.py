"""Tensors cut into parts: which elements a part is, what two have in common, whether they are all.

A part is a box of a tensor, given by its offset and extent in each dimension, or a range of the
flattened tensor, whose offset and extent are one number each.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

Box = tuple[Sequence[int], Sequence[int]]
"""Offset and extent."""
Common = tuple[int, int, int]
"""Elements of two parts: where they begin in the data of the one, of the other; how many."""


def grid_of(shape: Sequence[int], offset: Sequence[int]) -> tuple[int, ...]:
    """The shape in which a part's offset counts: the tensor's, for a range the flattened one's."""
    return tuple(shape) if len(offset) == len(shape) else (math.prod(shape),)


def runs(
    shape: Sequence[int], offset: Sequence[int], extent: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """The ranges of the flattened tensor that make up a part, ascending: first element, end."""
    grid = grid_of(shape, offset)
    axis = max(len(grid) - 1, 0)
    while axis and extent[axis] == grid[axis]:  # rows that are whole lie one behind another
        axis -= 1
    length = math.prod(extent[axis:])
    strides = [math.prod(grid[i + 1 :]) for i in range(len(grid))]
    base = sum(first * stride for first, stride in zip(offset, strides, strict=True))
    for index in product(*map(range, extent[:axis])):
        first = base + sum(i * stride for i, stride in zip(index, strides, strict=False))
        yield first, first + length


def shared(ours: Iterable[tuple[int, int]], theirs: Iterable[tuple[int, int]]) -> Iterator[Common]:
    """What two parts have in common.

    Args:
        ours, theirs: their runs.
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
    """With the place of each run in the data."""
    place = 0
    for start, stop in parts:
        yield start, stop, place
        place += stop - start


def fault(grid: Sequence[int], boxes: Sequence[Box]) -> str:
    """What keeps ``boxes`` from being all of ``grid``, each element once; "" where nothing does."""
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
