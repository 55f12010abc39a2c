"""Test attention within stretches against masked softmax on all pairs, in float64."""

import pytest
import torch
from all_pairs import HEADS, WIDTH, compare, same_stretch, spans_of, tensors
from closeness import off
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

from gam_scale.hardware.memory import allocated_at_most
from gam_scale.kernels import attention_blocks as blocks
from gam_scale.kernels.attention import attend
from gam_scale.kernels.pieces import RUN

# Lengths of each row's stretches. Short ones are computed together, in runs of at most RUN tokens;
# "runs" has lengths at, below and above that limit.
ROWS = {
    "one": [[37], [37]],
    "single tokens": [[1] * 37, [36, 1], [1, 36]],
    "short": [[3, 1, 5, 9, 2, 17], [30, 1, 1, 5], [37]],
    "runs": [[RUN, 1, RUN - 1, RUN + 1, 2, 60, 60, 60], [5] * 113 + [2]],
    "long": [[1, 2 * RUN + 3, 7, 1, 300]],
    "a token": [[1], [1]],
}
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}  # a few roundings each


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_stretches_see_themselves_alone(rows, dtype):
    inputs, grad = tensors(len(rows), [sum(rows[0])] * 2, dtype)
    spans = spans_of(rows)
    compare(inputs, grad, attend(*inputs, spans, spans), same_stretch(rows), DTYPES[dtype])


@pytest.mark.parametrize("seed", range(4))
def test_random_stretches(seed):
    generator = torch.Generator().manual_seed(seed)
    length = int(torch.randint(1, 500, (), generator=generator))
    starts = torch.rand(3, length, generator=generator) < 0.5 ** (1 + 2 * seed)
    rows = []
    for row in starts:
        at = [0, *(row[1:].nonzero().flatten() + 1).tolist(), length]
        rows.append([b - a for a, b in zip(at, at[1:], strict=False)])
    inputs, grad = tensors(3, [length, length])
    spans = spans_of(rows)
    compare(inputs, grad, attend(*inputs, spans, spans), same_stretch(rows), 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [150, 151, 400])
def test_whole_rows_of_more_keys_than_queries(keys, dtype):
    """As when a text was read before: the surplus keys come first, the last query sees all."""
    inputs, grad = tensors(2, [150, keys], dtype)
    sees = torch.ones(150, keys, dtype=torch.bool).tril(keys - 150)
    compare(inputs, grad, attend(*inputs), sees.expand(2, 1, -1, -1), DTYPES[dtype])


def test_queries_of_one_rank_among_the_keys_of_all():
    """Queries are tokens 10 to 19 of rows of 30; stretches begin before and end after them."""
    rows = [[4, 9, 2, 15], [10, 10, 10], [30], [3, 12, 1, 1, 13]]
    lengths, key_lengths = [], []
    for row in rows:
        start = 0
        for n in row:
            end = start + n
            n_queries = max(0, min(end, 20) - max(start, 10))
            # Keys of a stretch that lie behind the queries form a stretch without queries.
            seen = min(end, 20) - start if n_queries else n
            lengths += [n_queries, 0]
            key_lengths += [seen, n - seen]
            start = end
    inputs, grad = tensors(4, [10, 30])
    spans = tuple(torch.tensor([0, *n]).cumsum(0).int() for n in (lengths, key_lengths))
    found = attend(*inputs, spans, spans)
    compare(inputs, grad, found, same_stretch(rows)[:, :, 10:20], 1e-12)


WINDOWS = (1, 2, 63, 64, 65, 200, 1000)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_a_window_hides_what_lies_before_it(rows, window):
    inputs, grad = tensors(len(rows), [sum(rows[0])] * 2)
    spans, length = spans_of(rows), sum(rows[0])
    near = torch.ones(length, length, dtype=torch.bool).triu(1 - window)
    found = attend(*inputs, spans, spans, window=window)
    compare(inputs, grad, found, same_stretch(rows) & near, 1e-12)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("keys", [150, 151, 400])
def test_a_window_over_more_keys_than_queries(keys, window):
    inputs, grad = tensors(2, [150, keys])
    sees = torch.ones(150, keys, dtype=torch.bool).tril(keys - 150).triu(keys - 149 - window)
    compare(inputs, grad, attend(*inputs, window=window), sees.expand(2, 1, -1, -1), 1e-12)


@pytest.mark.parametrize("options", [{}, {"window": 20}, {"dropout": 0.2}], ids=str)
@pytest.mark.parametrize("keys", [90, 130])
def test_heads_of_keys_serve_several_of_queries(keys, options):
    """The result is that of keys and values repeated per query head; gradients are summed."""
    (q, k, v), grad = tensors(2, [90, keys])
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k[:, :1], v[:, :1]))
    repeated = [x.repeat_interleave(HEADS, 1) for x in (k, v)]
    torch.manual_seed(0)
    expected = attend(q, *repeated, **options)
    wanted = torch.autograd.grad(expected, (q, k, v), grad)
    torch.manual_seed(0)
    found = attend(q, k, v, **options)
    assert off(found, expected) < 1e-12
    for a, b in zip(torch.autograd.grad(found, (q, k, v), grad), wanted, strict=True):
        assert off(a, b) < 1e-12


def weights_of(inputs, **options) -> Tensor:
    """Return the weights (B, H, T, S), which come out if each key's value is a unit vector."""
    q, k, _ = inputs
    rows, heads, n_keys, _ = k.shape
    q, k = (torch.nn.functional.pad(x, (0, n_keys - WIDTH)) for x in (q, k))
    q = q * (n_keys / WIDTH) ** 0.5  # undo the scale of the wider heads
    values = torch.eye(n_keys, dtype=q.dtype).expand(rows, heads, -1, -1)
    return attend(q, k, values, **options).detach()


def test_dropout_zeroes_weights_and_keeps_their_mean():
    rows = [[300], [40, 40, 220], [150, 150]]  # blocks, runs
    inputs, _ = tensors(3, [300, 300])
    spans = spans_of(rows)
    whole = weights_of(inputs, spans=spans, spans_host=spans)
    torch.manual_seed(0)
    dropped = weights_of(inputs, spans=spans, spans_host=spans, dropout=0.25)
    seen = same_stretch(rows).expand_as(whole)
    assert (dropped[~seen] == 0).all()
    ratio = dropped[seen] / whole[seen]
    stays = ratio != 0
    torch.testing.assert_close(
        ratio[stays], torch.full_like(ratio[stays], 4 / 3), rtol=1e-9, atol=0
    )
    assert 0.74 < stays.double().mean() < 0.76  # 260,000 coins: 11 standard deviations
    # No two heads or queries share their coins: those of neighbours agree as often as independent
    # ones, 0.75^2 + 0.25^2.
    coin = dropped != 0
    for agree in (coin[:, 1:] == coin[:, :1], coin[:, :, 1:] == coin[:, :, :-1]):
        here = agree[seen[:, 1:] if agree.shape[1] == 2 else (seen[:, :, 1:] & seen[:, :, :-1])]
        assert 0.61 < here.double().mean() < 0.64


@pytest.mark.parametrize("keys", [150, 400])
def test_a_callers_autocast_stays_outside(keys):
    """Blocks of queries compute in float32 even under autocast."""
    inputs, grad = tensors(2, [150, keys], torch.bfloat16)
    sees = torch.ones(150, keys, dtype=torch.bool).tril(keys - 150)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        dropped = attend(*inputs, dropout=0.25)
        whole = attend(*inputs)
    compare(inputs, grad, whole, sees.expand(2, 1, -1, -1), DTYPES[torch.bfloat16])
    torch.manual_seed(0)
    assert torch.equal(dropped, attend(*inputs, dropout=0.25))
    with torch.autocast("cpu", torch.bfloat16):
        grads = torch.autograd.grad(dropped, inputs, grad)
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("rows", [None, [[70, 3, 227], [300]]])
def test_gradients_with_dropout_are_those_of_what_was_computed(rows):
    """In float64, a step along a direction changes the result as the gradients say."""
    inputs, grad = tensors(2, [300, 300])
    spans = spans_of(rows) if rows else None

    def result(step: float) -> Tensor:
        torch.manual_seed(3)
        moved = [x + step * d for x, d in zip(inputs, directions, strict=True)]
        return (attend(*moved, spans, spans, dropout=0.3) * grad).sum()

    directions = [torch.randn_like(x) for x in inputs]
    gradients = torch.autograd.grad(result(0.0), inputs)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    step = 1e-5
    measured = (result(step) - result(-step)) / (2 * step)
    assert off(measured, slope) < 1e-7  # the error of a central difference


def test_the_generator_alone_decides_what_is_dropped():
    inputs, _ = tensors(1, [50, 50])
    torch.manual_seed(0)
    first, second = (attend(*inputs, dropout=0.5) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(attend(*inputs, dropout=0.5), first)
    assert not torch.equal(first, second)


def test_operators_are_what_their_fakes_say():
    """Check shapes, strides, dtypes, registered gradients, and that inputs are left alone."""
    ends, seed = spans_of([[30, 7], [37]])[0], torch.tensor(5)
    for keys, dropout, window in ((37, 0.0, 0), (37, 0.1, 0), (50, 0.0, 0), (37, 0.0, 9)):
        for dtype in (torch.float64, torch.bfloat16):
            inputs, grad = tensors(2, [37, keys], dtype)
            key_ends = torch.tensor([0, 30, 50, 100, *[100] * 5]).int() if keys == 50 else ends
            rest = [ends, key_ends] * 2
            arguments = (*inputs, *rest, dropout, seed if dropout else None, window)
            torch.library.opcheck(torch.ops.gam_scale.varlen_attention.default, arguments)
            found = torch.ops.gam_scale.varlen_attention(*arguments)
            backward = torch.ops.gam_scale.varlen_attention_backward.default
            inputs = [x.detach() for x in inputs]
            torch.library.opcheck(
                backward, (grad, *(x.detach() for x in found), *inputs, *arguments[3:])
            )


def test_flops_are_those_of_pairs_that_are_seen():
    rows = [[30, 7], [37]]
    inputs, grad = tensors(2, [37, 37])
    spans = spans_of(rows)
    pairs = HEADS * int(same_stretch(rows).sum())
    with FlopCounterMode(display=False) as counter:
        found = attend(*inputs, spans, spans)
    assert counter.get_total_flops() == 4 * WIDTH * pairs
    with FlopCounterMode(display=False) as counter:
        found.backward(grad)
    assert counter.get_total_flops() == 10 * WIDTH * pairs
    for window in (1, 8, 29, 99):
        near = torch.ones(37, 37, dtype=torch.bool).triu(1 - window)
        pairs = HEADS * int((same_stretch(rows) & near).sum())
        with FlopCounterMode(display=False) as counter:
            attend(*inputs, spans, spans, window=window)
        assert counter.get_total_flops() == 4 * WIDTH * pairs


def test_other_stretches_compile_nothing_anew():
    counter = CompileCounter()
    compiled = torch.compile(attend, backend=counter, fullgraph=True, dynamic=False)
    for rows in ([[30, 7], [37]], [[37], [1] * 37], [[1, 36], [20, 10, 7]]):
        inputs, grad = tensors(2, [37, 37])
        spans = spans_of(rows, padding=64 - sum(map(len, rows)))
        compare(inputs, grad, compiled(*inputs, spans, spans), same_stretch(rows), 1e-12)
        compiled(*inputs, spans, spans, dropout=0.1).backward(grad)
    assert counter.frame_count == 2


def test_memory_grows_with_tokens_alone():
    """All pairs of 2,000 tokens would take 48 MB. What one block of queries holds is subtracted."""
    taken = []
    for length in (1000, 2000):
        inputs, grad = tensors(1, [length, length], torch.float32)
        for dropout in (0.0, 0.1):
            step = lambda: attend(*inputs, dropout=dropout).backward(grad)  # noqa: B023, E731
            taken.append(allocated_at_most(step) - 3 * 4 * blocks.WEIGHTS * (dropout > 0))
    assert max(taken) < 12e6
