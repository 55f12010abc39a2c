"""Test the attention block against torch's own; documents, generation with a cache, FLOPs."""

import pytest
import torch
from closeness import off
from layouts import plain
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gam_scale.config import AttentionConfig, ModelConfig
from gam_scale.model.init import initialise
from gam_scale.model.layout import Layout
from gam_scale.model.mixers.attention import AttentionBlock
from gam_scale.strict import from_dict


def make_block(dropout: float = 0.0, **changes) -> AttentionBlock:
    values = {"block": "attention", "d_model": 12, "n_layers": 2, "dropout": dropout}
    model = ModelConfig(**(values | changes), attention=AttentionConfig(n_heads=3))
    block = model.stack()[0].build(model.shape)
    initialise(block, model, seed=0)
    for bias in (block.qkv.bias, block.out.bias):
        nn.init.normal_(bias, generator=torch.Generator().manual_seed(2))  # they start at zero
    return block.double().eval()


def make_input(length: int = 13) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, length, 12, generator=generator, dtype=torch.float64)


def torchs_own(block: AttentionBlock) -> nn.TransformerEncoderLayer:
    """Return torch's pre-norm layer, the paper's baseline, with the same weights."""
    layer = nn.TransformerEncoderLayer(
        12, 3, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    pairs = {
        layer.self_attn.in_proj_weight: block.qkv.weight,
        layer.self_attn.in_proj_bias: block.qkv.bias,
        layer.self_attn.out_proj.weight: block.out.weight,
        layer.self_attn.out_proj.bias: block.out.bias,
        layer.linear1.weight: block.ffn.up.weight,
        layer.linear1.bias: block.ffn.up.bias,
        layer.linear2.weight: block.ffn.down.weight,
        layer.linear2.bias: block.ffn.down.bias,
    }
    for own, ours in pairs.items():
        own.data.copy_(ours.data)
    return layer


@pytest.mark.parametrize("length", [1, 2, 13])
def test_block_is_torchs_encoder_layer_with_a_causal_mask(length):
    block, x = make_block(), make_input(length).requires_grad_()
    mask = torch.ones(length, length, dtype=torch.bool).triu(1)  # in torch's masks True hides
    expected = torchs_own(block)(x, src_mask=mask)
    y = block(x, plain(x))
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-9)


def test_parameters_at_the_papers_size():
    with torch.device("meta"):
        model = ModelConfig(block="attention")  # d_model 512
        block = model.stack()[0].build(model.shape)
    assert sum(p.numel() for p in block.parameters()) == 3_152_384


def test_a_row_that_goes_on_begins_with_a_document_of_its_own():
    block, x = make_block(), make_input(5)
    y = block(x, Layout.of(torch.tensor([[0, 1, 0, 1, 2], [3, 4, 5, 0, 0]])))
    for row, lengths in enumerate([(2, 3), (3, 1, 1)]):
        parts = x[row : row + 1].split(lengths, dim=1)
        alone = torch.cat([block(part, plain(part)) for part in parts], dim=1)
        torch.testing.assert_close(y[row : row + 1], alone, rtol=1e-10, atol=1e-10)


def test_packed_documents_are_as_if_alone():
    block, lengths = make_block(), (1, 5, 2, 5)
    x = make_input().requires_grad_()
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1)
    y = block(x, Layout.of(positions))
    alone = torch.cat([block(part, plain(part)) for part in x.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(y, alone, rtol=1e-10, atol=1e-10)
    (grad,) = torch.autograd.grad(y[:, 6:8].square().sum(), x)  # the third document's outputs
    assert grad[:, 6:8].abs().sum() > 0
    assert grad[:, :6].abs().sum() == grad[:, 8:].abs().sum() == 0
    changed = x.detach().clone()
    changed[:, 6:8] += 1.0
    difference = (block(changed, Layout.of(positions)) - y).abs().sum(-1)
    assert difference[:, 6:8].min() > 0
    assert difference[:, :6].sum() == difference[:, 8:].sum() == 0


def test_one_document_equals_a_plain_stream():
    block, x = make_block(), make_input()
    positions = torch.arange(13).expand(2, -1)
    torch.testing.assert_close(
        block(x, Layout.of(positions)), block(x, plain(x)), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("chunks", [(150,), (1,) * 150, (5, 1, 1, 60, 3, 80), (63, 1, 1, 85)])
def test_extend_equals_forward_in_any_chunks(chunks):
    """The cache grows from 64 to 128 tokens and again, inside chunks and at their edges."""
    block, x = make_block(), make_input(150)
    state, outputs = block.init_state(2, x.device, x.dtype), []
    with torch.no_grad():
        for part in x.split(chunks, 1):
            y, state = block.extend(part, state, plain(part))
            outputs.append(y)
        torch.testing.assert_close(
            torch.cat(outputs, 1), block(x, plain(x)), rtol=1e-10, atol=1e-10
        )


def test_a_step_copies_the_cache_only_when_it_is_full():
    block, x = make_block(), make_input(300)
    state, moved = block.init_state(2, x.device, x.dtype), []
    with torch.no_grad():
        for i, token in enumerate(x.split(1, dim=1)):
            before = state["k"].data_ptr()
            _, state = block.extend(token, state, plain(token, i))
            if state["k"].data_ptr() != before:
                moved.append(i)
    assert moved == [0, 64, 128, 256]


def test_dropout_in_training_covers_attention_weights(monkeypatch):
    """The first token sees itself alone, so dropout makes its one weight 0 or 1 / (1 - p) = 2."""
    block, x = make_block(dropout=0.5), make_input(64)
    assert torch.equal(block(x, plain(x)), make_block()(x, plain(x)))  # no dropout in eval mode
    monkeypatch.setattr(block, "_out", lambda y: y.detach())  # (B, heads, T, d / heads)
    first = lambda: block.mix(block.norm1(x), plain(x), None)[0][:, :, 0]  # noqa: E731
    whole = first()
    block.train()
    torch.manual_seed(0)
    scales = [first() / whole for _ in range(8)]  # 48 coins
    assert set(torch.stack(scales).flatten().round(decimals=9).tolist()) == {0.0, 2.0}


def test_dropout_in_training_covers_the_attention_branch():
    block, x = make_block(dropout=0.5), make_input(64)
    nn.init.zeros_(block.ffn.down.weight)
    nn.init.zeros_(block.ffn.down.bias)
    torch.manual_seed(0)
    dropped = block.train()(x, plain(x)) == x  # only the attention branch writes: half is dropped
    assert 0.4 < dropped.double().mean() < 0.6  # 1536 coins: 8 standard deviations


def test_flops_are_those_that_run():
    """The math backend multiplies all T x T pairs; we count the (T + 1) / 2 seen on average."""
    block, x = make_block(), make_input()
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
    ):
        block(x, plain(x))
    per_token, d, length = counter.get_total_flops() / (2 * 13), 12, 13
    assert per_token - 4 * d * length == block.flops_per_token(length) - 2 * d * (length + 1)


def plain_attention(block: AttentionBlock, h: Tensor) -> Tensor:
    """Compute attention head by head: grouped heads, norms, rotary positions and windows."""
    layer, size = block.layer, block.width
    groups, length = layer.n_kv_heads or layer.n_heads, h.shape[1]
    heads = (h @ block.qkv.weight.T + block.qkv.bias).split(size, -1)
    q, k, v = (
        heads[: layer.n_heads],
        heads[layer.n_heads : layer.n_heads + groups],
        heads[-groups:],
    )
    if layer.qk_norm:
        q, k = ([unit(x) * m.weight for x in y] for y, m in ((q, block.q_norm), (k, block.k_norm)))
    if layer.positions == "rotary":
        q, k = ([turned(x) for x in y] for y in (q, k))
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    if layer.window:
        seen = seen.triu(1 - layer.window)
    outputs = []
    for i, query in enumerate(q):
        served = i // (layer.n_heads // groups)
        scores = (query @ k[served].mT / size**0.5).masked_fill(~seen, -torch.inf)
        outputs.append(scores.softmax(-1) @ v[served])
    return torch.cat(outputs, -1) @ block.out.weight.T + block.out.bias


def unit(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    speed = 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    turn = torch.exp(1j * torch.arange(x.shape[1])[:, None] * speed)
    y = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([y.real, y.imag], -1)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_kv_heads": 3},
        {"n_kv_heads": 1, "window": 4},
        {"window": 2},
        {"window": 99, "qk_norm": True},
        {"n_kv_heads": 2, "qk_norm": True, "positions": "rotary", "window": 9},
    ],
    ids=str,
)
def test_grouped_heads_windows_norms_and_positions(settings):
    own = {"kind": "attention", "n_heads": 6, **settings}
    model = from_dict(ModelConfig, {"layers": [own], "d_model": 24, "dropout": 0.0})
    block = model.stack()[0].build(model.shape)
    initialise(block, model, seed=0)
    block = block.double().eval()
    for i, p in enumerate(block.parameters()):  # biases and norms' weights must matter
        p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    h = torch.randn(2, 17, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    layout = plain(h).turned(model.rotation(torch.float64))
    (found,), expected = block.mix(h, layout, None), plain_attention(block, h)
    leaves = [p for name, p in block.named_parameters() if name.split(".")[0] in MIXERS_OWN]
    assert off(found, expected) < 1e-12
    grads = (torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected))
    for a, b in zip(*grads, strict=True):
        assert off(a, b) < 1e-11


MIXERS_OWN = ("qkv", "q_norm", "k_norm", "out")


@pytest.mark.parametrize("window", [2, 9, 17, 40])
def test_flops_of_a_window_are_those_of_pairs_that_are_seen(window):
    own = {"kind": "attention", "n_heads": 2, "window": window, "ffn": "none"}
    model = from_dict(ModelConfig, {"layers": [own], "d_model": 16, "dropout": 0.0})
    block, x = model.stack()[0].build(model.shape), torch.randn(2, 17, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(x, plain(x))
    assert block.flops_per_token(17) == pytest.approx(counter.get_total_flops() / 34, rel=1e-12)


@pytest.mark.parametrize("window", [2, 50, 90, 16_384])
def test_the_cache_of_a_window_makes_room(window):
    """Decode far past full buffers, which have room for at most twice the tokens in sight."""
    own = {"kind": "attention", "n_heads": 2, "n_kv_heads": 1, "window": window, "ffn": "none"}
    model = from_dict(ModelConfig, {"layers": [own], "d_model": 8, "dropout": 0.0})
    block = model.stack()[0].build(model.shape)
    initialise(block, model, seed=0)
    block, length = block.double().eval(), 400
    x = torch.randn(2, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected, seen = block(x, plain(x)), 0
        state = block.init_state(2, x.device, x.dtype)
        assert state["k"].numel() == 0
        for text in x.split([3, *[1] * 150, 40, *[1] * 100, 100, *[1] * 7], 1):
            found, state = block.extend(text, state, plain(text))
            seen += text.shape[1]
            assert off(found, expected[:, seen - text.shape[1] : seen]) < 1e-12
            assert state["k"].shape[2] <= max(64, 2 * min(seen, window) + text.shape[1])
