"""Test stretches of packed rows: ragged and edge cases, without a wait for the device."""

import pytest
import torch

from gam_scale.kernels.stretches import CHUNK, stretches

LENGTH = 150
CASES = {
    "none": [[], []],
    "first tokens": [[0], [0]],
    "one row goes on": [[], [0]],
    "every token": [list(range(LENGTH))] * 2,
    "last token": [[LENGTH - 1], [0, LENGTH - 1]],
    "chunk by chunk": [[0, 64, 128], [63, 65]],
    "ragged": [[0, 7, 8, 80], [33, 140]],
}


def layout(starts, padding=0):
    """Return ``starts_document`` and ``ends`` of rows whose documents start at ``starts``."""
    begins = [row * LENGTH + token for row, tokens in enumerate(starts) for token in tokens]
    firsts = sorted({*begins, *(row * LENGTH for row in range(len(starts)))})
    starts_document = torch.tensor([first in begins for first in firsts] + [False] * padding)
    total = len(starts) * LENGTH
    return starts_document, torch.tensor([*firsts, *[total] * (1 + padding)], dtype=torch.int32)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("case", CASES)
def test_what_rows_are_made_of(case, padding):
    starts_document, ends = layout(CASES[case], padding)
    cut = stretches(2, starts_document, ends, ends.clone())
    bounds = [end for i, end in enumerate(ends.tolist()) if i == 0 or end != ends[i - 1]]
    assert cut.ends.tolist() == bounds
    firsts = bounds[:-1]
    assert cut.row.tolist() == [first // LENGTH for first in firsts]
    assert cut.starts_document.tolist() == starts_document[: len(firsts)].tolist()
    for row in range(2):
        of_row = [i for i, first in enumerate(firsts) if first // LENGTH == row]
        assert (int(cut.first[row]), int(cut.last[row])) == (of_row[0], of_row[-1])
    expected = [
        [i, place]
        for i, (a, b) in enumerate(zip(bounds, bounds[1:], strict=False))
        for place in range(-(-(b - a) // CHUNK))
    ]
    assert cut.chunks.tolist() == expected
    assert [int(n) for n in cut.chunk_ends.diff()] == [
        sum(pair[0] == i for pair in expected) for i in range(len(firsts))
    ]


@pytest.mark.parametrize("case", CASES)
def test_states_and_their_gradients(case):
    starts_document, ends = layout(CASES[case])
    cut = stretches(2, starts_document, ends, ends.clone())
    initial, begin = torch.tensor([[1.0], [2.0]]), torch.tensor([5.0])
    states = cut.states(initial, begin).flatten().tolist()
    pairs = zip(cut.starts_document.tolist(), cut.row.tolist(), strict=True)
    assert states == [5.0 if starts else row + 1.0 for starts, row in pairs]
    grads = torch.arange(1.0, 1 + len(states)).unsqueeze(1)
    leaves = [initial.requires_grad_(), begin.requires_grad_()]
    expected = torch.autograd.grad(cut.states(*leaves), leaves, grads)
    for a, b in zip(cut.gradients(grads), expected, strict=True):
        assert torch.equal(a, b)
    assert cut.at_ends(torch.ones(2, 1)).flatten().nonzero().flatten().tolist() == cut.last.tolist()


def test_nothing_waits_for_the_device():
    """The meta device holds no numbers, so code that waited to read some would fail."""
    starts_document, ends = layout(CASES["ragged"], padding=3)
    here = stretches(2, starts_document, ends, ends.clone())
    there = stretches(2, starts_document.to("meta"), ends.to("meta"), ends.clone())
    for a, b in zip(here, there, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype) and b.is_meta


def test_a_batch_is_cut_once_and_another_one_anew():
    starts_document, ends = layout(CASES["ragged"])
    host = ends.clone()
    cut = stretches(2, starts_document, ends, host)
    assert stretches(2, starts_document, ends, host) is cut
    other = torch.zeros_like(starts_document)
    assert not stretches(2, other, ends, host).starts_document.any()
    assert not stretches(2, other, ends, ends.clone()).starts_document.any()
