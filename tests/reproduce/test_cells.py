"""The paper's runs: as configs/paper and the published sizes at scale 1, below it by a rule."""

from pathlib import Path

import pytest
from closeness import rises

from gam_scale.config import RunConfig, load_config
from gam_scale.errors import UserError
from gam_scale.files import write_json
from gam_scale.model.lm import outline
from gam_scale.reproduce.cells import BLOCKS, DataSet, PaperCell, paper_grid
from gam_scale.reproduce.published import TABLE_1, TABLE_3
from gam_scale.strict import to_dict

CONFIGS = Path(__file__).parents[2] / "configs" / "paper"
VOCABULARY = "model.vocab_size=10000"


@pytest.fixture
def made(prepared_set, tmp_path):
    """Return a function (table, scale) -> cells by name; one generated set has both sets' names."""

    def make(table: int, scale: float, seeds=(0,), overrides=(VOCABULARY,)) -> dict[str, PaperCell]:
        sets = [DataSet.read(name, str(prepared_set)) for name in ("wikitext2", "tinystories")]
        grid = paper_grid([table], sets, seeds, scale, CONFIGS, tmp_path, overrides)
        return {cell.name: cell for (cell,) in grid.jobs}

    return make


def differences(config: RunConfig, other: RunConfig) -> set[str]:
    """Return the keys of model, data and train in which two configs differ."""
    one, two = to_dict(config), to_dict(other)
    return {
        f"{section}.{key}"
        for section in ("model", "data", "train")
        for key in one[section]
        if one[section][key] != two[section][key]
    }


def test_at_scale_1_the_published_set_up_is_the_papers_file(made) -> None:
    published = [cell for cell in made(1, 1.0).values() if cell.setup == "paper"]
    assert len(published) == 6
    for cell in published:
        theirs = load_config(CONFIGS / f"{cell.dataset}_{BLOCKS[cell.model_name]}.json")
        assert differences(cell.config, theirs) == {"data.sets", "model.vocab_size"}


def test_parameters_are_the_published_ones(made) -> None:
    told = {model: row.params for (_, model), row in TABLE_1.items()}
    told |= {model: row.params for model, row in TABLE_3.items()}
    ours = [cell for table in (1, 3) for cell in made(table, 1.0).values() if cell.setup == "paper"]
    assert {cell.model_name for cell in ours} == set(told)
    for cell in ours:
        count = outline(cell.config.model).n_parameters()
        assert round(count / 1e6, 1) == told[cell.model_name], cell.name


def test_set_ups_differ_by_what_they_say(made) -> None:
    found = made(1, 1.0)

    def change(model: str, setup: str) -> set[str]:
        paper = found[f"wikitext2-{model}-paper-s0"].config
        return differences(found[f"wikitext2-{model}-{setup}-s0"].config, paper)

    for model in ("gam", "transformer", "mamba"):
        assert change(model, "scaled") == {"model.init"}
    assert change("gam", "unhandicapped") == {"model.init", "model.memory"}
    assert change("mamba", "unhandicapped") == {"model.init", "model.mamba"}
    assert "wikitext2-transformer-unhandicapped-s0" not in found


def test_the_rule_that_shrinks(made) -> None:
    for scale, width, heads, batch in ((0.125, 64, 1, 4), (0.25, 128, 2, 8), (0.5, 256, 4, 16)):
        for cell in made(1, scale).values():
            model, train = cell.config.model, cell.config.train
            assert (model.d_model, model.gam.n_slots, train.global_batch_size) == (
                width,
                width,
                batch,
            )
            assert model.attention.n_heads == heads and model.n_layers == 6
            # Steps are epochs * sequences / batch: ``scale`` times those of 5 epochs at batch 32.
            assert train.epochs / batch == pytest.approx(scale * 5 / 32)
            assert train.warmup_steps == round(100 * scale)
            bare = cell.model_name == "mamba" and cell.setup != "unhandicapped"
            assert train.lr == pytest.approx(3e-4 if bare else 3e-4 / scale)


def test_table_3_shares_the_full_model_with_table_1(made) -> None:
    first, third = made(1, 0.125), made(3, 0.125)
    shared = first.keys() & third.keys()
    assert shared == {"wikitext2-gam-paper-s0", "wikitext2-gam-scaled-s0"}
    assert all(to_dict(first[name].config) == to_dict(third[name].config) for name in shared)
    assert {cell.dataset for cell in third.values()} == {"wikitext2"} and len(third) == 8


def test_every_seed_once_before_any_twice_and_cheap_runs_first(made) -> None:
    found = list(made(1, 0.125, seeds=(7, 3)).values())
    assert [cell.seed for cell in found] == [7] * 16 + [3] * 16
    assert rises(cell.flops for cell in found[:16])
    assert {cell.config.train.seed for cell in found} == {7, 3}


def test_settings_override_the_rule(made) -> None:
    overrides = (VOCABULARY, "train.steps=3", "train.epochs=0", "train.warmup_steps=1")
    cell = made(1, 0.125, overrides=overrides)["tinystories-gam-paper-s0"]
    assert (cell.config.train.steps, cell.tokens) == (3, 3 * 4 * 256)


def test_mistakes_are_named(made, tmp_path) -> None:
    with pytest.raises(UserError, match="--seeds is"):
        made(1, 0.125, seeds=(0, 0))
    with pytest.raises(UserError, match="--seeds is"):
        made(1, 0.125, seeds=())
    with pytest.raises(UserError, match="did you mean model.dropout"):
        made(1, 0.125, overrides=("model.dropuot=0",))
    with pytest.raises(UserError, match="prepare_data"):
        DataSet.read("wikitext2", str(tmp_path))


def test_a_folder_holds_one_set_up(made, tmp_path) -> None:
    name = "wikitext2-gam-paper-s0"
    cell = made(1, 0.125)[name]
    cell.write_config()
    assert cell.row() is None and cell.state() == "absent"
    made(1, 0.125, overrides=(VOCABULARY, "train.compile=off"))[name].write_config()
    older = to_dict(cell.config)
    del older["data"]["shuffle_tokens"]  # as in a file older than that setting
    write_json(tmp_path / "configs" / f"{name}.json", older)
    assert cell.write_config() == tmp_path / "configs" / f"{name}.json"
    with pytest.raises(UserError, match=r"another model\.d_model .* another --out"):
        made(1, 0.25)[name].write_config()
