"""Test the sizes of memories, by which comparisons make models equal."""

import pytest

from gam_scale.config import ModelConfig
from gam_scale.evaluate.recall import PRESETS, recall_config
from gam_scale.evaluate.state_size import memory_size, state_size
from gam_scale.strict import from_dict


def sizes(*layers):
    """Return how many numbers the memories hold, and how many all states together."""
    settings = {"layers": list(layers), "n_layers": len(layers), "d_model": 16, "vocab_size": 9}
    config = from_dict(ModelConfig, settings)
    return memory_size(config), state_size(config).constant


def test_convolutions_inside_a_memory_are_none():
    """Their last inputs belong to the state, but not to the memory."""
    heads = {"n_heads": 2, "head_dim": 8, "expand_v": 1}
    beside, inside = 2 * 16, 3 * 48  # 3 taps on d; 4 on queries, keys and values
    for kind in ("gdn", "kda", "gdn2"):
        assert sizes({"kind": kind} | heads) == (128, 128 + inside), kind
    assert sizes({"kind": "gam_delta", "conv_size": 0} | heads) == (128, 128 + beside)
    assert sizes({"kind": "gam_delta"} | heads) == (128, 128 + beside + inside)
    assert sizes({"kind": "scan", "conv_size": 4}) == (16, 16 + 2 * 16 + 3 * 16)


def test_memories_of_all_layers_count():
    layers = [
        {"kind": "delta", "n_heads": 2},
        {"kind": "attention", "n_heads": 2},
        "mamba",
        "static",
    ]
    assert sizes(*layers)[0] == 128 + 3 * 16 * 16  # mamba: 3 * 16 channels of 16 states each


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_of_delta_holds_what_delta_does_in_a_synthetic_task(preset):
    expected = memory_size(recall_config("delta", preset)[1])
    for kind in ("gdn", "kda", "gdn2", "gam_delta"):
        assert memory_size(recall_config(kind, preset)[1]) == expected, kind
