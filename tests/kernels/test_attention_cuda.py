"""Test the arguments of torch's CUDA attention kernels, and the use of their results.

There is no GPU here. Stand-ins compute what the kernels are documented to, from the same arguments,
and torch's own shape functions check the calls.
"""

from types import SimpleNamespace

import pytest
import torch
from all_pairs import HEADS, WIDTH, compare, same_stretch, spans_of, tensors

from gam_scale.kernels import attention, attention_cuda

ROWS = [[1, 20, 16], [37], [30, 1, 6]]
ALIGN = 32


def stretches_of(ends, key_ends):
    at, key_at = ends.tolist(), key_ends.tolist()
    return zip(at, at[1:], key_at, key_at[1:], strict=False)


def weights(q, k):
    """Return weights (H, n, m) and log-sum-exps (H, n); the last query is at the last key."""
    sees = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
    scores = torch.einsum("nhk,mhk->hnm", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~sees, -torch.inf)
    return scores.softmax(-1), scores.logsumexp(-1)


def check(q, k, ends, key_ends, longest, longest_keys):
    assert ends.dtype == key_ends.dtype == torch.int32
    assert ends.is_contiguous() and key_ends.is_contiguous() and ends.shape == key_ends.shape
    assert longest == ends.diff().max() and longest_keys == key_ends.diff().max()
    assert ends[-1] == q.shape[0] and key_ends[-1] == k.shape[0]
    assert ((ends.diff() > 0) | (key_ends.diff() > 0)).all()  # each has queries or keys


def gradients(grad, q, k, v, ends, key_ends):
    of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for a, b, c, d in stretches_of(ends, key_ends):
        p, _ = weights(q[a:b], k[c:d])
        of_v[c:d] = torch.einsum("hnm,nhk->mhk", p, grad[a:b])
        of_p = torch.einsum("nhk,mhk->hnm", grad[a:b], v[c:d])
        of_scores = p * (of_p - (p * of_p).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
        of_q[a:b] = torch.einsum("hnm,mhk->nhk", of_scores, k[c:d])
        of_k[c:d] = torch.einsum("hnm,nhk->mhk", of_scores, q[a:b])
    return of_q, of_k, of_v


def flash_forward(q, k, v, ends, key_ends, longest, longest_keys, dropout, causal, debug):
    check(q, k, ends, key_ends, longest, longest_keys)
    assert causal and not debug and dropout == 0.0
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0])
    for a, b, c, d in stretches_of(ends, key_ends):
        p, lse[:, a:b] = weights(q[a:b], k[c:d])
        out[a:b] = torch.einsum("hnm,mhk->nhk", p, v[c:d])
    return out, lse, torch.zeros(2, dtype=torch.uint64), torch.zeros(()), torch.empty(0)


def flash_backward(
    grad, q, k, v, out, lse, ends, key_ends, longest, longest_keys, dropout, causal, rng, unused
):
    expected = flash_forward(q, k, v, ends, key_ends, longest, longest_keys, dropout, causal, False)
    torch.testing.assert_close((out, lse), expected[:2])
    return gradients(grad, q, k, v, ends, key_ends)


def efficient_forward(
    q, k, v, bias, ends, key_ends, longest, longest_keys, dropout, mask_type, with_lse
):
    out, lse, *_ = flash_forward(
        q[0], k[0], v[0], ends, key_ends, longest, longest_keys, dropout, True, False
    )
    assert bias is None and mask_type == 2 and with_lse
    padded = -(-longest // ALIGN) * ALIGN
    whole = torch.full((len(ends) - 1, q.shape[2], padded), torch.nan)
    whole = whole.to(lse.dtype)
    for i, (a, b, _, _) in enumerate(stretches_of(ends, key_ends)):
        whole[i, :, : b - a] = lse[:, a:b]
    seed = torch.zeros((), dtype=torch.int64)
    return out[None], whole, seed, seed, longest, longest_keys


def efficient_backward(
    grad, q, k, v, bias, out, ends, key_ends, longest, longest_keys, lse, dropout, *rest
):
    _, _, mask_type, bias_requires_grad = rest
    forward = efficient_forward(
        q, k, v, bias, ends, key_ends, longest, longest_keys, dropout, mask_type, True
    )
    assert not bias_requires_grad
    torch.testing.assert_close(out, forward[0])
    torch.testing.assert_close(lse, forward[1].nan_to_num(torch.inf))  # padded as kernels do it
    found = gradients(grad[0], q[0], k[0], v[0], ends, key_ends)
    return *(x[None] for x in found), torch.empty(0)


STAND_INS = SimpleNamespace(
    _flash_attention_forward=flash_forward,
    _flash_attention_backward=flash_backward,
    _efficient_attention_forward=efficient_forward,
    _efficient_attention_backward=efficient_backward,
)


@pytest.mark.parametrize("kernel", ["flash", "efficient"])
@pytest.mark.parametrize("rows", [None, ROWS])
def test_what_kernels_get_and_give(monkeypatch, kernel, rows):
    monkeypatch.setattr(attention_cuda, "aten", STAND_INS)
    monkeypatch.setattr(attention, "_form", lambda *args: kernel)
    inputs, grad = tensors(3, [37, 37])
    spans = spans_of(rows) if rows else None
    found = attention.attend(*inputs, spans, spans)
    compare(inputs, grad, found, same_stretch(rows or [[37]] * 3), 1e-12)


@pytest.mark.parametrize("kernel", ["flash", "efficient"])
def test_keys_of_other_ranks(monkeypatch, kernel):
    """Queries are tokens 10 to 19 of rows of 30, with stretches before and after them."""
    monkeypatch.setattr(attention_cuda, "aten", STAND_INS)
    monkeypatch.setattr(attention, "_form", lambda *args: kernel)
    inputs, grad = tensors(2, [10, 30])
    ends = torch.tensor([0, 0, 5, 10, 10, 20, 20, 20, 20]).int()
    spans = ends, torch.tensor([0, 7, 15, 20, 30, 50, 60, 60, 60]).int()
    found = attention.attend(*inputs, spans, spans)
    compare(inputs, grad, found, same_stretch([[7, 8, 15], [30]])[:, :, 10:20], 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_calls_fit_torchs_signatures(dtype):
    """On the meta device, torch's own kernels only compute shapes."""
    spans = spans_of(ROWS)
    q, k, v, grad = (
        torch.empty(3, 37, HEADS, WIDTH, dtype=dtype, device="meta").transpose(1, 2)
        for _ in range(4)
    )
    s = attention_cuda.Stretches.of(q, k, *(x.to("meta") for x in spans), *spans)
    if dtype == torch.bfloat16:
        found = attention_cuda.flash(q, k, v, s, 0.0, None)
        grads = attention_cuda.flash_backward(grad, q, k, v, *found, s, 0.0)
        expected = attention._empty("flash", q, 0.0)
    else:
        found = attention_cuda.efficient(q, k, v, s, 0.0, None)
        grads = attention_cuda.efficient_backward(grad, q, k, v, *found, s, 0.0, None)
        expected = attention._empty("efficient", q, 0.0)[:2]
    for a, b in zip((*found, *grads), (*expected, q, k, v), strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@pytest.mark.parametrize(
    ("dtype", "width", "capability", "expected"),
    [
        (torch.bfloat16, 64, (9, 0), "flash"),
        (torch.float16, 256, (8, 0), "flash"),
        (torch.bfloat16, 264, (9, 0), "blocks"),
        (torch.bfloat16, 12, (9, 0), "blocks"),
        (torch.float16, 64, (7, 5), "efficient"),
        (torch.float32, 64, (9, 0), "efficient"),
        (torch.float64, 64, (9, 0), "blocks"),
    ],
)
def test_the_kernel_follows_from_the_heads(monkeypatch, dtype, width, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    q = torch.empty(1, 2, 3, width, dtype=dtype)
    assert attention_cuda.kernel_for(q) == expected


@pytest.mark.parametrize("kernel", ["flash", "efficient"])
def test_a_kernels_dropout_comes_from_the_seed(monkeypatch, kernel):
    """The backward pass gets the same seed, and the device's generator keeps its state."""
    generator = torch.Generator().manual_seed(1)
    monkeypatch.setattr(torch.cuda, "default_generators", (generator,))
    q = torch.randn(2, HEADS, 5, WIDTH)
    s = attention_cuda.Stretches.of(q, q, None, None, None, None)
    rng, calls = torch.tensor([9, 9], dtype=torch.uint64), []

    def forward(*args):
        calls.append((args, generator.initial_seed()))
        x = args[0]
        lse = torch.zeros((HEADS, 10) if kernel == "flash" else (2, HEADS, ALIGN))
        return x, lse, rng, None, None, *[None] * (kernel == "efficient")

    def backward(*args):
        calls.append((args, None))
        return *args[1:4], *[None] * (kernel == "efficient")

    names = [f"_{kernel}_attention_{way}" for way in ("forward", "backward")]
    stand_ins = dict(zip(names, (forward, backward), strict=True))
    monkeypatch.setattr(attention_cuda, "aten", SimpleNamespace(**stand_ins))
    before, seed = generator.get_state(), torch.tensor(7)
    found = getattr(attention_cuda, kernel)(q, q, q, s, 0.25, seed)
    assert torch.equal(generator.get_state(), before)
    if kernel == "flash":
        attention_cuda.flash_backward(q, q, q, q, *found, s, 0.25)
    else:
        attention_cuda.efficient_backward(q, q, q, q, *found, s, 0.25, seed)
    (given, at), (given_back, _) = calls
    assert at == 7
    assert 0.25 in [x for x in given if isinstance(x, float)]
    assert 0.25 in [x for x in given_back if isinstance(x, float)]
    if kernel == "flash":
        assert torch.equal(given_back[-2], rng)
    else:
        assert [int(x) for x in given_back[-4:-2]] == [7, 0]
