"""Test layouts against their definitions, applied to the positions row by row."""

import numpy as np
import pytest
import torch
from closeness import off

from gam_scale.model.layout import Layout
from gam_scale.model.rotary import Rotation


def random_positions(rows: int, length: int, seed: int, density: float = 0.2) -> torch.Tensor:
    """Return positions of documents of random lengths; some rows continue a document."""
    rng = np.random.default_rng(seed)
    positions = np.empty((rows, length), np.int64)
    for row in positions:
        now = -1 if rng.random() < 0.5 else int(rng.integers(0, 50))
        for t in range(length):
            now = 0 if t and rng.random() < density else now + 1
            row[t] = now
    return torch.from_numpy(positions)


CASES = {
    "random": random_positions(3, 37, 0),
    "ragged": random_positions(5, 130, 1, density=0.05),
    "many": random_positions(4, 100, 2, density=0.9),
    "every token a start": torch.zeros(2, 9, dtype=torch.int64),
    "no start": torch.arange(5, 17).repeat(2, 1),
    "goes on": torch.tensor([[1, 2, 3, 0, 1], [1, 0, 0, 1, 2]]),
    "one token": torch.tensor([[0], [7]]),
}
cases = pytest.mark.parametrize("positions", CASES.values(), ids=CASES)


def expected_stretches(positions: torch.Tensor) -> list[tuple[int, bool]]:
    """Return each stretch's first token, rows laid end to end, and whether a document starts."""
    found = []
    for r, row in enumerate(positions.tolist()):
        for t, position in enumerate(row):
            if t == 0 or position == 0:
                found.append((r * len(row) + t, position == 0))
    return found


def check(layout: Layout, positions: torch.Tensor) -> None:
    """Check everything in a layout that follows from the positions."""
    rows, length = positions.shape
    assert (layout.rows, layout.length) == (rows, length)
    assert torch.equal(layout.positions, positions)
    assert torch.equal(layout.starts, positions == 0)
    assert layout.documents.dtype == torch.int32
    for row, documents in zip(positions.tolist(), layout.documents.tolist(), strict=True):
        assert documents == [row[: t + 1].count(0) for t in range(length)]
    expected = expected_stretches(positions)
    ends, starts = (x.tolist() for x in layout.stretches_host)
    n = len(expected)
    assert list(zip(ends[:-1], starts, strict=True))[:n] == expected
    assert layout.ends.dtype == torch.int32
    assert len(ends) == max(64, 1 << n.bit_length()) and len(starts) == len(ends) - 1
    assert set(ends[n:]) == {rows * length} and not any(starts[n:])


@cases
def test_layout_of_positions(positions):
    check(Layout.of(positions), positions)
    check(Layout.of(positions.numpy().astype(np.int32)), positions)


@pytest.mark.parametrize("count", [62, 63, 64, 127, 128])
def test_ends_have_one_of_few_lengths(count):
    ends = Layout.of(torch.zeros(1, count, dtype=torch.int64)).ends
    assert len(ends) == {62: 64, 63: 64, 64: 128, 127: 128, 128: 256}[count]
    assert ends.tolist() == [*range(count + 1)] + [count] * (len(ends) - count - 1)


@pytest.mark.parametrize(("rows", "length", "first"), [(3, 7, 0), (1, 1, 5), (2, 4, 100_000)])
def test_plain_stream(rows, length, first):
    layout = Layout.stream(rows, length, first)
    assert layout.documents is None and layout.starts is None
    assert layout.positions.tolist() == [list(range(first, first + length))]
    ends = layout.ends.tolist()
    assert ends[: rows + 1] == [i * length for i in range(rows + 1)]
    assert set(ends[rows:]) == {rows * length} and len(ends) == 64
    assert not layout.stretches.starts_document.any()


@cases
@pytest.mark.parametrize("size", [1, 4, 64, 1000])
def test_segments_are_layouts_of_their_own_tokens(positions, size):
    layout = Layout.of(positions)
    segments = layout.segments(size)
    assert segments is layout.segments(size)
    parts = positions.split(size, 1)
    for segment, part in zip(segments, parts, strict=True):
        check(segment, part)
        alone = (segment.positions, segment.documents, segment.starts)
        assert all(x.stride() == (part.shape[1], 1) for x in alone)
    stream = Layout.stream(2, 11, 3).segments(size)
    for segment, part in zip(stream, range(0, 11, size), strict=True):
        assert segment.documents is None
        assert segment.positions[0, 0] == 3 + part and segment.ends[2] == 2 * segment.length


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", ["random", "no start", "every token a start", "stream"])
def test_parts_of_ranks_say_which_keys_their_queries_see(size, kind):
    rows, length = 3, 24
    positions = {
        "random": random_positions(rows, length, 7),
        "no start": torch.arange(5, 5 + length).repeat(rows, 1),
        "every token a start": torch.zeros(rows, length, dtype=torch.int64),
        "stream": torch.arange(length).repeat(rows, 1),
    }[kind]
    layout = Layout.stream(rows, length) if kind == "stream" else Layout.of(positions)
    here = length // size
    for rank in range(size):
        part, first = layout.part(rank, size), rank * here
        cut = slice(first, first + here)
        if kind == "stream":
            assert torch.equal(part.positions, positions[:1, cut]) and part.documents is None
        else:
            check(part, positions[:, cut])
        queries, keys = (x.tolist() for x in part.spans_host)
        assert [x.tolist() for x in part.spans] == [queries, keys]
        assert (
            queries[-1] == rows * here and keys[-1] == rows * length and len(queries) == len(keys)
        )
        seen = torch.zeros(rows * here, rows * length, dtype=torch.bool)
        for q, q_end, k, k_end in zip(queries, queries[1:], keys, keys[1:], strict=False):
            for back in range(q_end - q):
                seen[q_end - 1 - back, k : k_end - back] = True
        for r in range(rows):
            for t in range(here):
                at = first + t
                expected = torch.zeros(rows, length, dtype=torch.bool)
                expected[r, max(0, at - int(positions[r, at])) : at + 1] = True
                assert torch.equal(seen[r * here + t], expected.flatten())


def test_without_ranks_the_spans_are_the_stretches():
    layout = Layout.of(CASES["random"])
    assert layout.spans.queries is layout.spans.keys is layout.ends


def test_rows_count_on_up_to_their_first_document():
    positions = torch.tensor([[1, 2, 0, 1], [1, 2, 3, 4], [0, 1, 2, 0]])
    layout = Layout.of(positions).turned(Rotation(100.0, (4,)))
    layout.segments(2)
    new = layout.continued(torch.tensor([6, -1, 9]))
    expected = torch.tensor([[7, 8, 0, 1], [0, 1, 2, 3], [0, 1, 2, 0]])
    assert torch.equal(new.positions, expected)
    assert torch.equal(new.documents, layout.documents) and new.stretches is layout.stretches
    assert torch.equal(new.segments(2)[0].positions, expected[:, :2])
    assert torch.equal(new.turns[4][0], Layout.of(expected).turned(layout.rotation).turns[4][0])
    stream = Layout.stream(2, 3, 1).continued(torch.tensor([4, -1]))
    assert stream.positions.tolist() == [[5, 6, 7], [0, 1, 2]] and stream.documents is None


def test_tables_are_cut_with_the_rest():
    layout = Layout.of(CASES["ragged"])
    rotation = Rotation(1000.0, (4, 10))
    turned = layout.turned(rotation)
    assert turned.turned(rotation) is turned and not layout.turns
    frequencies = 1000.0 ** -(np.arange(0, 10, 2) / 10)
    angles = torch.from_numpy(CASES["ragged"].numpy()[..., None] * frequencies)
    cos, sin = turned.turns[10]
    assert cos.dtype == torch.float32
    assert off(cos, angles.cos()) < 1e-7 and off(sin, angles.sin()) < 1e-7  # one rounding each
    assert torch.equal(turned.segments(50)[1].turns[10][1], sin[:, 50:100])
    assert torch.equal(turned.part(1, 2).turns[10][0], cos[:, 65:])


def test_a_copy_on_a_device_keeps_what_the_host_reads():
    layout = Layout.of(CASES["random"]).turned(Rotation(100.0, (8,)))
    layout.segments(10)
    assert layout.to("cpu") is layout
    there = layout.to("meta")
    tensors = [there.positions, there.documents, there.starts, *there.stretches, *there.spans]
    tensors += [*there.turns[8], there.segments(10)[3].ends, there.segments(10)[0].positions]
    assert all(x.is_meta for x in tensors)
    for host in (there, there.segments(10)[1], there.part(0, 1)):
        assert all(not x.is_meta for x in (*host.stretches_host, *host.spans_host))
    assert there.ends_host is layout.ends_host
    assert there.spans.queries is there.ends
    assert there.part(0, 1).spans.queries.is_meta and there.segments(9)[0].ends.is_meta


def test_page_locked_copies(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # a CPU build has none
    layout = Layout.of(CASES["goes on"])
    pinned = layout.pin()
    assert torch.equal(pinned.ends, layout.ends) and pinned.ends is not layout.ends
