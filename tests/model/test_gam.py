"""Test the GAM block and its parts: ablations, documents, generation, causality."""

import pytest
import torch
import torch.nn.functional as F
from layouts import plain

from gam_scale.config import GAMConfig, ModelConfig
from gam_scale.model.conv import CausalConv
from gam_scale.model.gam import GAMBlock
from gam_scale.model.layout import Layout
from gam_scale.model.lm import build_model
from gam_scale.model.policy import Draw, policy_of

ABLATIONS = [(f, p) for f in ("gate", "sum") for p in ("both", "local", "global")]
ABLATIONS += [("local", "both")]


def block(fusion="gate", paths="both", kernel_size=3, seed=0) -> GAMBlock:
    config = ModelConfig(
        d_model=8,
        n_layers=1,
        vocab_size=5,
        dropout=0.0,
        gam=GAMConfig(n_slots=6, kernel_size=kernel_size, fusion=fusion, paths=paths),
    )
    return build_model(config, seed).double().blocks[0]


def inputs(b=2, t=11, d=8, seed=1):
    return torch.randn(b, t, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 11])
def test_convolution_is_torchs_depthwise_convolution(kernel_size, length):
    conv = CausalConv(8, kernel_size)
    generator = torch.Generator().manual_seed(0)
    for name, value in conv.named_parameters():
        policy_of(conv, name).init(conv, value.data, Draw(generator, "scaled", 1))
    x = inputs(t=length).float()
    padded = F.pad(x.transpose(1, 2), (kernel_size - 1, 0))
    expected = F.conv1d(padded, conv.weight, conv.bias, groups=8).transpose(1, 2)
    torch.testing.assert_close(conv(x, plain(x)), expected, rtol=1e-5, atol=1e-6)  # fp32 rounding


def test_ablations_compute_what_their_names_say():
    x = inputs()
    full = block()
    h = full.norm1(x)
    local, read = full.conv(h, plain(h)), full.memory(h, plain(h))
    gate = torch.sigmoid(full.gate(h))
    mixed = {
        ("gate", "both"): gate[..., :8] * local + gate[..., 8:] * read,
        ("local", "both"): gate[..., :8] * local + read,
        ("sum", "both"): local + read,
        ("sum", "local"): local,
        ("sum", "global"): read,
    }
    for (fusion, paths), mix in mixed.items():
        other = block(fusion, paths)
        own = other.state_dict()  # it lacks what the ablation drops
        other.load_state_dict({name: full.state_dict()[name][: len(own[name])] for name in own})
        expected = x + mix
        expected = expected + full.ffn(full.norm2(expected))
        torch.testing.assert_close(other(x, plain(x)), expected)


def test_an_ablated_block_has_no_dead_parameters():
    for fusion, paths in ABLATIONS:
        module = block(fusion, paths)
        x = inputs()
        module(x, plain(x)).sum().backward()
        for name, p in module.named_parameters():
            assert p.grad is not None, f"{fusion}/{paths}: {name} gets no gradient"


@pytest.mark.parametrize(("fusion", "paths"), ABLATIONS)
def test_extend_equals_forward_in_any_chunks(fusion, paths):
    module, x = block(fusion, paths), inputs(t=11)
    state = module.init_state(2, x.device, x.dtype)
    outputs, start = [], 0
    for length in (4, 1, 1, 5):
        part = x[:, start : start + length]
        y, state = module.extend(part, state, plain(part, start))
        outputs.append(y)
        start += length
    torch.testing.assert_close(torch.cat(outputs, 1), module(x, plain(x)), rtol=1e-12, atol=1e-12)


def test_extend_with_chunks_shorter_than_the_kernel():
    module, x = block(kernel_size=5), inputs(t=7)
    state = module.init_state(2, x.device, x.dtype)
    outputs = []
    for t in range(7):
        y, state = module.extend(x[:, t : t + 1], state, Layout.stream(2, 1, t))
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), module(x, plain(x)), rtol=1e-12, atol=1e-12)


# Besides the first token, documents start at the last one, at every one, at the third, nowhere.
POSITIONS = torch.tensor(
    [[0, 1, 2, 3, 4, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
)


def test_documents_in_a_row_equal_documents_alone():
    module, x = block(), inputs(b=4, t=6)
    packed = module(x, Layout.of(POSITIONS))
    for row, positions in enumerate(POSITIONS):
        starts = [*(positions == 0).nonzero().flatten().tolist(), 6]
        for a, b in zip(starts, starts[1:], strict=False):
            part = x[row : row + 1, a:b]
            alone = module(part, plain(part))
            torch.testing.assert_close(packed[row : row + 1, a:b], alone, rtol=1e-12, atol=1e-12)


def test_no_gradient_crosses_a_document_start_or_the_future():
    module = block()
    x = inputs(b=4, t=6).requires_grad_()
    for t in range(6):
        (grad,) = torch.autograd.grad(module(x, Layout.of(POSITIONS))[:, t].sum(), x)
        reached = grad.abs().sum(-1) > 0  # (4, 6)
        for row in range(4):
            start = t - POSITIONS[row, t].item()
            for s in range(6):
                assert reached[row, s] == (max(start, t - 2) <= s <= t), (row, t, s)
