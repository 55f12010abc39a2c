"""Test training on associative recall, its settings, and the sizes it reports."""

import pytest

from gam_scale.config import ModelConfig
from gam_scale.errors import UserError
from gam_scale.evaluate.recall import recall_config
from gam_scale.evaluate.state_size import StateSize, memory_size, state_size
from gam_scale.model.lm import build_model
from gam_scale.strict import from_dict
from gam_scale.train.recall import train_recall

TINY = ["recall.vocab_size=32", "recall.train=[[8,2]]", "recall.test=[[8,2],[16,2]]"]
TINY += ["recall.test_texts=100", "recall.batch_size=32", "model.d_model=32"]


def train(kind, *overrides):
    return train_recall(kind, *recall_config(kind, "cpu", [*TINY, *overrides]))


def test_attention_learns_and_training_ends_there():
    lines = []
    config = recall_config("attention", "cpu", [*TINY, "recall.steps=30", "recall.lrs=[1e-2]"])
    short = train_recall("attention", *config, log=lines.append)
    assert len(lines) == 1 and lines[0].startswith("attention, lr 0.01: step 30, loss ")
    assert short.steps == 30 and [s.task.seq_len for s in short.scores] == [8, 16]
    enough = ["recall.stop_at=0.01", "recall.check_every=10"]
    assert train("attention", *enough).steps == 10


def test_the_better_learning_rate_is_reported():
    result = train("mamba", "recall.lrs=[1e-9,1e-2]", "recall.steps=60", "recall.stop_at=1.1")
    assert result.lr == 1e-2 and result.curve[-1][1] > 2 * result.scores[0].task.chance


def test_one_seed_is_one_result():
    scores = [train("static", "recall.steps=5").scores for _ in range(2)]
    assert scores[0] == scores[1]


def test_settings_reach_all_kinds_or_one():
    overrides = ["model.memory.n_slots=48", "model.memory.n_heads=2", "recall.steps=7"]
    overrides.append("delta:model.memory.n_heads=4")
    recall, slot = recall_config("slot", "cpu", overrides)
    _, delta = recall_config("delta", "cpu", overrides)
    assert (slot.layers, slot.memory.n_slots, slot.memory.n_heads) == (["slot"], 48, 2)
    assert (delta.layer_kinds()[1], delta.memory.n_heads, recall.steps) == ("delta", 4, 7)
    assert recall_config("static", "cpu")[1].layer_kinds() == ["static"] * 2
    assert recall_config("mamba", "cpu")[1].layer_kinds() == ["mamba"] * 2
    assert recall_config("attention", "zoology")[1].max_seq_len == 1024
    assert recall_config("static", "zoology")[1].vocab_size == 8192


@pytest.mark.parametrize(
    ("kind", "override", "message"),
    [
        ("gru", "recall.steps=1", "--memories names 'gru'; expected some of attention, delta"),
        ("slot", "recall.stpes=1", "recall.stpes is not a setting; did you mean recall.steps"),
        ("slot", "gru:recall.steps=1", "is for 'gru'; expected one of attention"),
        ("slot", "train.lr=1", "expected recall.\\* or model.\\*"),
        ("slot", "recall.train=[[8]]", "list \\[8\\] for recall; they list \\[tokens, pairs\\]"),
        ("slot", "recall.task=sort", "recall.task is 'sort'; expected one of parity, recall, s3"),
        ("slot", "recall.test=[[8,4]]", "recall of 4 pairs in 8 tokens is impossible"),
        ("attention", "model.n_layers=3", "model.n_layers is 3, .* 2 kinds in model.layers"),
        ("delta", "model.memory.n_heads=3", "n_heads is 3, which does not divide model.d_model"),
    ],
)
def test_settings_that_are_none_or_do_not_go_together(kind, override, message):
    with pytest.raises(UserError, match=message):
        recall_config(kind, "cpu", [override])


@pytest.mark.parametrize(
    ("preset", "numbers"), [("cpu", 8_192), ("zoology", 32_768), ("parity", 8_192), ("s3", 8_192)]
)
def test_memories_are_compared_at_the_sizes_that_presets_say(preset, numbers):
    for kind in ("slot", "raven", "delta", "mamba2"):
        assert memory_size(recall_config(kind, preset)[1]) == numbers, kind
    for kind in ("phase", "mamba"):
        assert memory_size(recall_config(kind, preset)[1]) == numbers // 2, kind


def test_state_sizes():
    def size(block):
        return state_size(ModelConfig(block=block, d_model=64, n_layers=3, vocab_size=9))

    assert size("gam") == StateSize(3 * 2 * 64, 0)  # the convolution's last two inputs
    assert size("attention") == StateSize(0, 3 * 2 * 64)  # keys and values
    inner = 3 * 64
    assert size("mamba") == StateSize(3 * (3 * inner + 16 * inner), 0)
    assert size("attention").at(100) == 38_400 and str(size("attention")) == "384 T"


def test_the_state_of_a_window_grows_up_to_it():
    own = {"kind": "attention", "n_heads": 4}
    layers = [own | {"window": w} for w in (9, 0, 4096)] + ["static"]
    values = {"layers": layers, "d_model": 64, "n_layers": 4, "vocab_size": 9}
    size = state_size(from_dict(ModelConfig, values))
    assert size == StateSize(128, 128, ((128, 8), (128, 4095)))
    assert size.at(64) == 128 + 128 * (64 + 8 + 64)
    assert str(size) == "128 + 128 T + 128 min(T, 8) + 128 min(T, 4,095)"


def test_an_attention_cache_holds_what_its_size_says():
    import torch

    config = ModelConfig(block="attention", d_model=64, n_layers=3, vocab_size=9, position="none")
    model = build_model(config, 0).eval()
    with torch.no_grad():
        _, state = model.extend(torch.ones(1, 64, dtype=torch.int64), model.init_state())
    held = sum(b[name].numel() for b in state["blocks"] for name in ("k", "v"))
    assert held == state_size(config).at(64)
