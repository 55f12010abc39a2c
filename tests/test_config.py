"""The config: defaults, overrides, and one clear sentence for whatever cannot work."""

import json
from pathlib import Path
from typing import get_type_hints

import pytest

from gam_scale.config import ModelConfig, RunConfig, load_config
from gam_scale.config.rules import check
from gam_scale.errors import UserError
from gam_scale.model.parts import MIXERS
from gam_scale.strict import describe, from_dict, to_dict

GOOD = {"data": {"sets": [{"path": "data/x"}]}, "train": {"steps": 200}}


def write(tmp_path, data) -> str:
    path = tmp_path / "config.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


def test_defaults_are_the_papers_model(tmp_path):
    config = load_config(write(tmp_path, GOOD))
    assert (config.model.block, config.model.d_model, config.model.n_layers) == ("gam", 512, 6)
    assert config.model.gam.n_slots == 512
    assert from_dict(RunConfig, to_dict(config)) == config


def test_overrides_are_json_or_words(tmp_path):
    overrides = [
        "train.lr=1e-3",
        "model.block=mamba",
        'data.sets=[{"path": "y"}]',
        "train.steps=1e3",
    ]
    config = load_config(write(tmp_path, GOOD), overrides)
    assert config.train.lr == 1e-3 and config.train.steps == 1000
    assert config.model.block == "mamba" and config.data.sets[0].path == "y"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=-1", "train.lr is -1.0; expected more than 0"),
        ("train.lr=true", "train.lr is true; expected a number"),
        ("train.steps=1.5", "train.steps is 1.5; expected a whole number"),
        ('train.lr="fast"', 'train.lr is "fast"; expected a number'),
        ("train.lr=NaN", "train.lr is nan; expected a finite number"),
        ("model.dropout=1", "expected at least 0 and less than 1"),
        ("model.blok=gam", "model.blok is not a setting; did you mean model.block?"),
        ("trian.lr=1", "trian is not a setting; did you mean train?"),
        ("model.block=rnn", 'model.block is "rnn"; expected one of "gam", "attention", "mamba"'),
        ("model=3", "model is 3; expected an object"),
        ("data.sets=data/x", r'a list of objects, such as \[{"path": "data/x"}\]'),
        ('log.wandb_tags=["a", ""]', r"log.wandb_tags\[1\] has 0 characters; wandb takes 1 to 64"),
        ("data.sets=3", r'such as \[{"path": "..."}\]'),
        ("data.seq_len=2", "data.seq_len is 2 and model.gam.kernel_size 3; expected at least that"),
        ("data.sets=x", 'data.sets is "x"; expected a list'),
        (
            'data.sets=[{"path": "a", "wieght": 2}]',
            r"data.sets\[0\].wieght .* did you mean data.sets\[0\].weight",
        ),
        ('data.sets=[{"path": "a", "weight": 0}]', r"data.sets\[0\].weight is 0.0; expected more"),
        ("data.sets=[]", "data.sets is empty"),
        ("data.seq_len=512", "data.seq_len is 512 but model.max_seq_len gives 256"),
        ("train.epochs=1", "expected exactly one of them above 0"),
        ("train.steps=0", "expected exactly one of them above 0"),
        ("train.warmup_steps=300", "train.warmup_steps is 300; expected at most train.steps 200"),
        ("train.lr", "'train.lr' is not an assignment; expected section.key=value"),
        ("train.lr.x=1", "train.lr.x is not a setting|expected a number"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(tmp_path, override, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(write(tmp_path, GOOD), [override])
    assert "\n" not in str(caught.value)


def test_heads_must_divide_the_width(tmp_path):
    overrides = ["model.block=attention", "model.attention.n_heads=7"]
    with pytest.raises(UserError, match="n_heads is 7, which does not divide model.d_model 512"):
        load_config(write(tmp_path, GOOD), overrides)


def test_files_that_are_not_a_config(tmp_path):
    with pytest.raises(UserError, match="nowhere.json: no such file"):
        load_config(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="line 2 is not valid JSON"):
        load_config(write(tmp_path, '{"model":\n {,}}'))
    with pytest.raises(UserError, match="the config is .*; expected an object"):
        load_config(write(tmp_path, "[1]"))


def test_every_setting_is_documented():
    rows = describe(RunConfig)
    assert len(rows) > 40
    assert all(doc for _, _, _, doc in rows)


def test_the_short_form_has_the_types_of_the_layers_own_settings():
    model = get_type_hints(ModelConfig)
    for kind in MIXERS:
        its = get_type_hints(MIXERS[kind])
        for section in MIXERS[kind].sections:
            shared = get_type_hints(model[section])
            assert all(shared[name] == its[name] for name in (shared.keys() & its) - {"kind"})


CONFIGS = Path(__file__).parent.parent / "configs"
SHIPPED = [
    p
    for p in sorted(CONFIGS.rglob("*.json"))
    if p.parent.name not in ("sweeps", "compare", "tasks")
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_configs_that_ship_are_valid(path):
    load_config(path)


@pytest.mark.parametrize(("n_layers", "kinds"), [(2, 4), (6, 4), (1, 2)])
def test_a_pattern_that_would_be_cut_is_refused(tmp_path, n_layers, kinds):
    """It would have trained without the kinds that were cut off."""
    layers = ["delta"] * (kinds - 1) + ["attention"]
    overrides = [f"model.n_layers={n_layers}", f"model.layers={json.dumps(layers)}"]
    said = f"n_layers is {n_layers}, which is no multiple of the {kinds} kinds in model.layers"
    with pytest.raises(UserError, match=said):
        load_config(write(tmp_path, GOOD), overrides)
    overrides[0] = f"model.n_layers={2 * kinds}"
    found = load_config(write(tmp_path, GOOD), overrides).model.layer_kinds()
    assert found == 2 * layers


def test_a_horizon_is_a_number_of_tokens_or_the_contexts(tmp_path):
    config = load_config(write(tmp_path, GOOD))
    assert config.model.memory.max_horizon == 0
    with pytest.raises(UserError, match="min_horizon is 16, above max_horizon 4; expected at most"):
        load_config(write(tmp_path, GOOD), ["model.memory.max_horizon=4"])


@pytest.mark.parametrize(
    ("parallel", "said"),
    [
        (
            {"engine": "fsdp", "zero_stage": 2},
            "parallel.zero_stage is 2 but parallel.engine is fsdp",
        ),
        ({"engine": "torch", "deepspeed": {"a": 1}}, "parallel.deepspeed has options but"),
        ({"shard_ranks": 4}, "parallel.shard_ranks is 4 but parallel.engine is deepspeed"),
        ({"offload": "optimizer"}, "parallel.offload is optimizer .*zero_stage 0; expected"),
        ({"offload": "optimizer", "engine": "fsdp"}, "parallel.offload is optimizer with engine f"),
        ({"offload": "parameters", "zero_stage": 2}, "parallel.offload is parameters with"),
        ({"offload_dir": "/nvme", "zero_stage": 3}, "parallel.offload_dir is /nvme with .*none;"),
        (
            {"offload_dir": "/nvme", "zero_stage": 2, "offload": "optimizer"},
            "parallel.offload_dir is /nvme with engine deepspeed, zero_stage 2",
        ),
    ],
)
def test_what_an_engine_cannot_do_is_refused(parallel, said):
    data = {"data": {"sets": [{"path": "x"}]}, "train": {"steps": 200}, "parallel": parallel}
    with pytest.raises(UserError, match=said):
        check(from_dict(RunConfig, data))
