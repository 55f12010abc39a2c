"""Test the whole model: sizes, receptive field, positions, generation state, FLOPs."""

from dataclasses import replace

import pytest
import torch
from layouts import plain
from torch.utils.flop_counter import FlopCounterMode

from gam_scale.config import AttentionConfig, GAMConfig, MambaConfig, ModelConfig
from gam_scale.model.layout import Layout
from gam_scale.model.lm import LanguageModel, build_model

BLOCKS = ["gam", "attention", "mamba"]


def small(block: str, **changes) -> ModelConfig:
    values = {"d_model": 16, "n_layers": 2, "vocab_size": 23, "max_seq_len": 12, "dropout": 0.0}
    return ModelConfig(
        block=block,
        gam=GAMConfig(n_slots=7),
        attention=AttentionConfig(n_heads=2),
        mamba=MambaConfig(d_state=4, d_conv=3, expand=2),
        **(values | changes),
    )


def random_tokens(*shape: int, vocab: int = 23) -> torch.Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("block", "stack", "count"),
    [
        ("gam", "residual", 22_599_680),  # the paper's figure, exactly
        ("attention", "residual", 24_166_400),  # published as 24.2M
        ("mamba", "paper", 20_504_576),  # published as 20.5M
        ("mamba", "residual", 20_504_576 + 6 * 2 * 512),  # a LayerNorm more per block
    ],
)
def test_parameters_at_the_papers_size(block, stack, count):
    config = ModelConfig(block=block, vocab_size=10_000, mamba=MambaConfig(stack=stack))
    with torch.device("meta"):
        assert LanguageModel(config).n_parameters() == count


def test_the_papers_receptive_field_is_13_tokens():
    """n_layers (k - 1) + 1, since the static memory maps each token alone (docs/limits.md)."""
    model = build_model(small("gam", n_layers=6, max_seq_len=40), seed=0).double()
    x = torch.randn(1, 40, 16, dtype=torch.float64, requires_grad=True)
    y = x
    for layer in model.blocks:
        y = layer(y, plain(y))
    y[0, -1].sum().backward()
    assert int((x.grad[0].abs().sum(-1) > 0).sum()) == 13


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("position", ["learned", "none"])
def test_extend_gives_the_logits_of_forward(block, position):
    softcap = 0.05 if position == "none" else 0.0  # logits are at most 0.2
    config = small(block, position=position, logit_softcap=softcap)
    model = build_model(config, seed=1).double().eval()
    tokens = random_tokens(3, 12)
    full = model(tokens)
    state, start = model.init_state(3), 0
    for length in (5, 1, 1, 5):
        logits, state = model.extend(tokens[:, start : start + length], state)
        start += length
        torch.testing.assert_close(logits, full[:, start - 1], rtol=1e-9, atol=1e-9)
    if softcap:
        model.config.logit_softcap = 0.0
        torch.testing.assert_close(full, softcap * torch.tanh(model(tokens) / softcap))


@pytest.mark.parametrize("block", BLOCKS)
def test_loss_of_packed_documents_is_the_loss_of_each_alone(block):
    model = build_model(small(block), seed=2).double().eval()
    tokens, targets = random_tokens(1, 12), random_tokens(1, 12).roll(3)
    positions = torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3, 4, 5, 6, 0]])
    together = model(tokens, targets, Layout.of(positions))
    cuts = [0, 3, 4, 11, 12]
    alone = sum(
        model(tokens[:, a:b], targets[:, a:b]) for a, b in zip(cuts, cuts[1:], strict=False)
    )
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=0)


@pytest.mark.parametrize("block", ["gam", "mamba"])
def test_recurrent_stacks_generate_past_their_positions(block):
    model = build_model(small(block), seed=0).eval()
    assert model.context_limit is None
    logits, state = model.extend(random_tokens(1, 30), model.init_state())
    assert torch.isfinite(logits).all() and state["seen"] == 30
    assert build_model(small("attention"), seed=0).context_limit == 12


@pytest.mark.parametrize("block", BLOCKS)
def test_flops_are_what_torch_counts(block):
    """Our count is torch's count of matrix products plus what torch does not see."""
    config = small(block, d_model=32, vocab_size=50)
    model = build_model(config, seed=0)
    tokens = random_tokens(2, 12, vocab=50)
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    counted = counter.get_total_flops() / tokens.numel()
    ours = model.flops_per_token(12)
    # What torch leaves out: attention's own kernel, with (T + 1) / 2 keys per token on average;
    # convolutions; the scan, 7 per channel and state and 3 per channel.
    uncounted = {
        "gam": 2 * (2 * 3 * 32),
        "attention": 2 * (2 * 2 * 32 * 6.5),
        "mamba": 2 * (7 * 64 * 4 + 3 * 64 + 2 * 3 * 64),
    }
    assert ours - uncounted[block] == pytest.approx(counted, rel=1e-9)


@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_attention_goes_on_under_autocast(n_kv_heads):
    """The cache begins empty in the stream's dtype; autocast gives keys and values in another."""
    attention = AttentionConfig(n_heads=2, n_kv_heads=n_kv_heads)
    model = build_model(replace(small("attention"), attention=attention), seed=0).eval()
    tokens = random_tokens(3, 9)
    state, start = model.init_state(3), 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        full = model(tokens)
        for length in (4, 1, 4):
            logits, state = model.extend(tokens[:, start : start + length], state)
            start += length
            # Other products of the same bf16 operands: some of their 8 bits may differ.
            torch.testing.assert_close(logits, full[:, start - 1], rtol=0.02, atol=0.02)
