"""Test how models get one size: parameters within 1%, memories exactly, or an error."""

from pathlib import Path

import pytest

from gam_scale.compare.comparison import _shared
from gam_scale.compare.solve import parameters_of, settings_over, sized
from gam_scale.compare.spec import ModelEntry, SizeSpec, TaskSpec, TextSpec, read_spec
from gam_scale.errors import UserError
from gam_scale.evaluate.state_size import memory_size
from gam_scale.model.lm import outline

ROOT = Path(__file__).resolve().parents[2]
SHARED = {"vocab_size": 99, "d_model": 64, "n_layers": 2, "position": "none", "ffn": "swiglu"}
SIZE = SizeSpec(parameters=120_000, state=2 * 64 * 16)
MODELS = {
    "delta": ModelEntry({"layers": [{"kind": "delta"}]}, fit={"delta.n_heads": [1, 2, 4, 8]}),
    "gdn": ModelEntry(
        {"layers": [{"kind": "gdn", "expand_v": 2}]},
        fit={"gdn.n_heads": [2, 4], "gdn.head_dim": [16]},
    ),
    "attention": ModelEntry({"layers": ["attention"], "position": "rotary"}, state="own"),
    "static": ModelEntry({"layers": ["static"], "gam": {"n_slots": 9}}, state="own"),
    "mixed": ModelEntry({"layers": [{"kind": "delta", "n_heads": 2}, "attention"]}, state="own"),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_memories_are_equal(name):
    found = sized(name, MODELS[name], SHARED, SIZE)
    model = outline(found.config)
    assert found.parameters == parameters_of(model)
    assert found.parameters == sum(
        p.numel() for n, p in model.named_parameters() if not n.startswith("embedding")
    )
    assert abs(found.parameters / SIZE.parameters - 1) <= 0.01
    assert {layer.ffn.width for layer in found.config.stack()} == {found.width}
    if MODELS[name].state == "equal":
        assert found.memory == memory_size(found.config) == SIZE.state
        assert found.state.at(100) > found.memory  # the state includes convolutions


def test_learned_positions_and_a_head_of_its_own_do_not_count():
    settings = SHARED | {"position": "learned", "tied_head": False, "layers": ["static"]}
    plain = sized("a", ModelEntry(state="own"), SHARED | {"layers": ["static"]}, SizeSpec())
    more = sized("b", ModelEntry(state="own"), settings, SizeSpec())
    assert more.parameters == plain.parameters and more.width == plain.width == 0


@pytest.mark.parametrize(
    ("entry", "size", "message"),
    [
        (ModelEntry({"layers": ["scan"]}), SIZE, "a holds 128 numbers at best and size.state is"),
        (MODELS["delta"], SizeSpec(parameters=10_000), "has .* parameters with feed-forward"),
        (
            ModelEntry({"layers": ["delta"]}, fit={"delta.n_heads": [2]}),
            SIZE,
            "fit has delta.n_heads, but model.layers has no object of the kind delta",
        ),
        (
            ModelEntry({"layers": [{"kind": "delta"}]}, fit={"delta.n_heads": [5, 7]}),
            SIZE,
            "models.a: .*n_heads is 7, which does not divide",
        ),
        (
            ModelEntry({"layers": [{"kind": "static", "ffn": "none"}]}, state="own"),
            SIZE,
            "no layer whose feed-forward network is model.ffn",
        ),
    ],
)
def test_what_cannot_be_made_equal(entry, size, message):
    with pytest.raises(UserError, match=message):
        sized("a", entry, SHARED, size)


def test_a_models_own_settings_are_merged_at_every_depth():
    shared = {
        "d_model": 64,
        "gam": {"n_slots": 9, "fusion": "sum"},
        "ffn": {"kind": "mlp", "mult": 2},
    }
    own = {"gam": {"n_slots": 3}, "layers": ["static"]}
    assert settings_over(shared, own) == shared | own | {"gam": {"n_slots": 3, "fusion": "sum"}}
    other = settings_over(shared, {"ffn": {"kind": "swiglu"}})
    assert other["ffn"] == {"kind": "swiglu"}, "it has settings of another kind"
    assert settings_over(shared, {"ffn": {"mult": 3}})["ffn"] == {"kind": "mlp", "mult": 3}
    assert shared["gam"] == {"n_slots": 9, "fusion": "sum"}
    found = sized("a", ModelEntry(own | {"n_layers": 1}, state="own"), SHARED | shared, SizeSpec())
    assert (found.config.gam.n_slots, found.config.gam.fusion) == (3, "sum")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "compare").glob("*.json")), ids=lambda path: path.name
)
def test_the_settings_of_shipped_files_are_what_they_were_merged_at_the_top(path):
    spec = read_spec(path)
    shared = spec.model if isinstance(spec, TaskSpec) else spec.set.get("model", {})
    for entry in spec.models.values():
        own = entry if isinstance(spec, TaskSpec) else entry.model
        assert settings_over(shared, own) == shared | own


def test_every_section_of_a_comparison_is_merged_at_every_depth():
    tasks = {"one": {"kind": "needle"}}
    given = {"eval": {"tasks": tasks}, "log": {"every_steps": 3}, "train": {"grad_clip": 2.0}}
    config = _shared(TextSpec(data="books", set=given), {"optimizer": "muon"})
    assert (config.eval.every_steps, config.eval.tasks) == (0, tasks)
    assert (config.log.wandb, config.log.every_steps) == ("off", 3)
    assert (config.train.optimizer, config.train.grad_clip) == ("muon", 2.0)
    assert [each.path for each in config.data.sets] == ["books"]
