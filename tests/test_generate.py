"""Sampling, streaming text, and the state that makes generation cheap."""

from pathlib import Path

import pytest
import torch

from gam_scale.config import AttentionConfig, GAMConfig, ModelConfig
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.data.tokenizer_file import load_tokenizer
from gam_scale.errors import UserError
from gam_scale.generate import Sampling, generate, sample
from gam_scale.model.lm import build_model

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def tokenizer(prepared_set: Path) -> Tokenizer:
    return load_tokenizer(prepared_set / "tokenizer.model")


def model(tokenizer: Tokenizer, block: str = "gam"):
    config = ModelConfig(
        block=block,
        d_model=16,
        n_layers=2,
        vocab_size=tokenizer.vocab_size,
        max_seq_len=32,
        gam=GAMConfig(n_slots=8),
        attention=AttentionConfig(n_heads=2),
    )
    return build_model(config, seed=3).eval()


@pytest.mark.parametrize("block", ["gam", "mamba", "attention"])
def test_greedy_is_what_running_the_whole_prefix_gives(tokenizer, block):
    m = model(tokenizer, block)
    prompt = "the cat "
    text = "".join(generate(m, tokenizer, prompt, 12, GREEDY))
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    new = []
    for _ in range(12):
        token = int(m(torch.tensor([ids + new]))[0, -1].argmax())
        if token == tokenizer.bos_id:
            break
        new.append(token)
    expected = b"".join(tokenizer.id_to_bytes(i) for i in new).decode("utf-8", "replace")
    assert text == expected


def test_the_state_does_not_grow_with_the_text(tokenizer):
    m = model(tokenizer)
    state = m.init_state()

    def size(value):
        if torch.is_tensor(value):
            return value.numel()
        values = value.values() if isinstance(value, dict) else value
        return sum(map(size, values)) if not isinstance(value, int) else 0

    with torch.no_grad():
        sizes = []
        for _ in range(3):
            _, state = m.extend(torch.ones(1, 50, dtype=torch.int64), state)
            sizes.append(size(state))
    assert sizes[0] == sizes[1] == sizes[2] == 2 * 2 * 16  # layers x (k - 1) x d_model


def test_the_same_seed_gives_the_same_text(tokenizer):
    m = model(tokenizer)
    one, two, other = (
        "".join(generate(m, tokenizer, "", 40, Sampling(1.0), seed=s)) for s in (1, 1, 2)
    )
    assert one == two != other


def test_attention_refuses_to_leave_its_positions(tokenizer):
    m = model(tokenizer, "attention")
    with pytest.raises(UserError, match="exceeds the model's context of 32; expected at most 31"):
        list(generate(m, tokenizer, "", 32, GREEDY))


def test_by_default_as_much_is_generated_as_the_context_holds(tokenizer):
    m = model(tokenizer, "attention")
    read, extend = [], m.extend
    m.extend = lambda ids, state: read.append(ids.shape[1]) or extend(ids, state)
    list(generate(m, tokenizer, "a" * 20, None, GREEDY))
    assert 21 < sum(read) <= 32, f"generation stops elsewhere than at its context's end: {read}"
    with pytest.raises(UserError, match="the prompt has 61 tokens and the model's context 32"):
        list(generate(m, tokenizer, "a" * 60, None, GREEDY))


def draws(sampling: Sampling, count: int = 2000) -> torch.Tensor:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    generator = torch.Generator().manual_seed(0)
    ids = [int(sample(logits, sampling, generator)) for _ in range(count)]
    return torch.bincount(torch.tensor(ids), minlength=4) / count


def test_sampling_follows_the_distribution():
    # Four standard errors of a proportion over 2000 draws: 4 sqrt(0.25 / 2000) = 0.045.
    assert draws(Sampling(1.0)).tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.045)
    cold = draws(Sampling(0.5)).tolist()  # squares the odds
    assert cold == pytest.approx([0.6849, 0.2466, 0.0616, 0.0068], abs=0.045)


def test_top_k_and_top_p_cut_the_tail():
    assert draws(Sampling(1.0, top_k=2))[2:].sum() == 0
    assert draws(Sampling(1.0, top_k=1))[0] == 1
    assert draws(Sampling(1.0, top_p=0.6))[2:].sum() == 0  # 0.5 + 0.3 reaches it
    assert draws(Sampling(1.0, top_p=0.01))[0] == 1
    assert (draws(Sampling(1.0, top_p=1.0)) > 0).all()
    # Of the two that top_k leaves, the first has 0.5 / 0.8 of the probability.
    assert draws(Sampling(1.0, top_k=2, top_p=0.6))[0] == 1


@pytest.mark.parametrize("temperature", [1e-12, 1e-40, 5e-324])
def test_next_to_no_temperature_takes_the_likeliest(temperature):
    assert draws(Sampling(temperature))[0] == 1
