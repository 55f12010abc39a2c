"""A sweep's file becomes a grid of cells, and warnings say what the sweep cannot show."""

import json
import math
from dataclasses import replace

import pytest
from closeness import rises
from scaling.sweeps import write

from gam_scale.data.manifest import read_manifest
from gam_scale.errors import UserError
from gam_scale.model.lm import outline
from gam_scale.scaling.sweep import sweep_grid
from gam_scale.scaling.sweep_advice import _of_sizes, repeated, suspicions, warnings
from gam_scale.scaling.sweep_cell import SweepCell
from gam_scale.scaling.sweep_spec import read_sweep
from gam_scale.schedule import stable_steps


def test_the_dial_sets_every_size(tmp_path) -> None:
    found = sweep_grid(read_sweep(write(tmp_path)), tmp_path).cells
    assert len(found) == len({cell.name for cell in found}) == 8
    assert rises(cell.flops for cell in found)
    by_name = {(c.family, c.width, round(c.tokens, -6)): c for c in found}
    small, large = by_name["gam", 64, 1_000_000], by_name["gam", 128, 4_000_000]
    assert (small.config.model.n_layers, large.config.model.n_layers) == (2, 4)
    assert small.config.train.lr == pytest.approx(2 * large.config.train.lr)
    assert large.config.train.global_batch_size == small.config.train.global_batch_size == 8
    assert large.config.train.warmup_steps == small.config.train.warmup_steps == 260
    assert large.config.model.memory.n_heads == large.config.model.attention.n_heads == 4
    assert large.config.train.schedule == "wsd"


def test_flops_and_parameters_are_the_models(tmp_path) -> None:
    with_head = sweep_grid(read_sweep(write(tmp_path)), tmp_path).cells[0]
    blocks = sweep_grid(read_sweep(write(tmp_path, count="blocks")), tmp_path).cells[0]
    model = outline(with_head.config.model)
    assert with_head.flops == 3 * model.flops_per_token(48) * with_head.tokens
    assert with_head.params == model.n_parameters() - 48 * with_head.width
    assert with_head.params - blocks.params == 320 * with_head.width


def test_isoflop_budgets_are_flops(tmp_path) -> None:
    spec = read_sweep(write(tmp_path, kind="isoflop", budgets=[1e13, 1e14]))
    for cell in sweep_grid(spec, tmp_path).cells:
        nearest = min((1e13, 1e14), key=lambda budget: abs(budget - cell.flops))
        assert cell.flops == pytest.approx(nearest, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": [65]}, "widths has 65; expected multiples"),
        ({"widths": [64, 64]}, "widths has a value twice"),
        ({"families": []}, "families is empty"),
        ({"families": [{"name": "a/b"}]}, "the name 'a/b'"),
        ({"budgets": [1e3]}, "expected at least 10"),
        ({"budget": [1e3]}, "did you mean budgets"),
        ({"set": {"train": {"lr": "auto"}}}, "set has train.lr, .* expected families.lr"),
        (
            {"families": [{"name": "a", "set": {"train": {"warmup_steps": 9}}}]},
            "families.a.set has train.warmup_steps, .* expected dial.warmup_ratio",
        ),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"families": [{"name": "a", "lr": 1, "lrs": {"64": 1, "128": 1}}]}, "a has lr and lrs"),
        ({"families": [{"name": "a", "lrs": {"64": 0.1}}]}, "expected two widths"),
        ({"families": [{"name": "a", "lrs": {"64": 0.1, "x": 1}}]}, "expected two widths"),
        ({"ratios": [3, 1]}, "ratios is .3.0, 1.0.; expected two"),
        ({"repeat": {"width": 96, "seeds": [1]}}, "with the width 96; expected values and one of"),
        ({"repeat": {"width": 64}}, "repeat.seeds is"),
        ({"repeat": {"width": 64, "seeds": [0]}}, "which is one of seeds"),
        ({"context": {"width": 64, "seq_lens": [100]}}, "context.seq_lens has 100"),
        ({"repeat": {"width": 64, "seeds": [1], "up_to": 3}}, "repeat.up_to is 3; expected one of"),
        ({"dial": {"warmup_steps": 2500}}, "2500 of which warm up"),
        ({"beyond": [{"families": ["gam"], "width": 96}]}, "beyond has a run without families"),
        ({"beyond": [{"families": ["a"], "width": 96, "budget": 9e6}]}, "family 'a'; expected one"),
        ({"beyond": [{"families": ["gam"], "width": 65, "budget": 9e6}]}, "beyond.width has 65"),
        (
            {"beyond": [{"families": ["gam"], "width": 96, "budget": 4e6}]},
            "expected more than 4e.06, the largest of budgets",
        ),
        (
            {"beyond": [{"families": ["gam"] * 2, "width": 96, "budget": 9e6}]},
            "beyond has a run twice",
        ),
        ({"beyond": [{"width": 96, "size": 1}]}, "size is not a setting"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        sweep_grid(read_sweep(write(tmp_path, **changes)), tmp_path)


def test_the_vocabulary_has_no_default(tmp_path) -> None:
    values = json.loads(write(tmp_path).read_text())
    del values["vocab_size"]
    (tmp_path / "none.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="vocab_size is missing; expected at least the tokenizer's"):
        read_sweep(tmp_path / "none.json")


def test_smaller_budgets_branch_off_the_largest(tmp_path) -> None:
    spec = read_sweep(write(tmp_path, budgets=[1e6, 2e6, 4e6], seeds=[0, 1]))
    grid = sweep_grid(spec, tmp_path)
    assert len({cell.name for cell in grid.cells}) == len(grid) == 2 * 2 * 3 * 2
    for trunk, *branches in grid.jobs:
        assert not trunk.branches and trunk.own_flops == trunk.flops
        tokens = [c.tokens for c in (trunk, *branches)]
        assert tokens == sorted(tokens, reverse=True)
        kept = trunk.config.checkpoint.keep_steps
        last = stable_steps(trunk.config.train, trunk.config.train.steps)
        assert kept == sorted([*(c.shared_steps for c in branches), last])
        for cell in branches:
            assert cell.config.checkpoint.branch_of == trunk.config.log.run_dir
            assert cell.shared_steps == stable_steps(cell.config.train, cell.config.train.steps)
            assert cell.own_flops == pytest.approx(0.2 * cell.flops, rel=0.01)
            same = replace(cell.config.train, steps=trunk.config.train.steps)
            assert same == trunk.config.train and cell.config.model == trunk.config.model


def test_learning_rates_vary_at_both_ends(tmp_path) -> None:
    families = [{"name": "gam", "lr": 1e-3}, {"name": "transformer", "block": "attention"}]
    changes = {"families": families, "lr_multipliers": [0.5, 2], "dial": {"lr": 2e-3}}
    found = sweep_grid(read_sweep(write(tmp_path, **changes)), tmp_path).cells
    varied = [cell for cell in found if cell.lr_multiplier != 1]
    ends = {(cell.width, round(cell.tokens, -6)) for cell in varied}
    assert len(varied) == 8 and ends == {(64, 1_000_000), (128, 4_000_000)}
    assert not any(cell.branches or cell.of_the_grid for cell in varied)
    assert all(cell.run_dir.name == cell.name for cell in found)
    rates = {(c.family, c.width, c.lr_multiplier): c.config.train.lr for c in found}
    assert rates["gam", 64, 0.5] == pytest.approx(1e-3)
    assert rates["gam", 64, 1] == pytest.approx(2e-3)
    assert rates["transformer", 64, 2] == pytest.approx(8e-3)
    assert rates["transformer", 128, 2] == pytest.approx(4e-3)
    flat = read_sweep(write(tmp_path, **changes | {"dial": {"lr": 2e-3, "lr_power": 0.5}}))
    (cell,) = sweep_grid(flat, tmp_path).jobs[0]
    assert cell.config.train.lr == pytest.approx(0.5 * 1e-3 * 2**0.5)


def test_rates_tuned_at_two_widths_set_all(tmp_path) -> None:
    family = {"name": "gam", "lrs": {"64": 0.016, "256": 0.004}}
    spec = read_sweep(write(tmp_path, families=[family], widths=[32, 64, 128, 512]))
    cells = sweep_grid(spec, tmp_path).cells
    rates = {cell.width: cell.config.train.lr for cell in cells}
    assert rates == pytest.approx({32: 0.032, 64: 0.016, 128: 0.008, 512: 0.002})


def test_a_family_has_settings_of_its_own(tmp_path) -> None:
    rotary = {"attention": {"qk_norm": True}, "ffn": "swiglu"}
    families = [
        {"name": "hybrid", "set": {"model": {"layers": ["gam_delta", "attention"]}}},
        {"name": "transformer", "block": "attention", "set": {"model": rotary}},
    ]
    settings = {"set": {"model": {"norm": "rmsnorm", "ffn": "mlp"}, "train": {"precision": "bf16"}}}
    spec = read_sweep(write(tmp_path, families=families, widths=[128], budgets=[1e6], **settings))
    hybrid, transformer = (cell.config for cell in sweep_grid(spec, tmp_path).cells)
    if hybrid.model.ffn == "swiglu":
        hybrid, transformer = transformer, hybrid
    assert list(hybrid.model.layer_kinds()) == ["gam_delta", "attention"] * 2
    attention = transformer.model.attention
    assert (attention.n_heads, attention.qk_norm, transformer.model.ffn) == (4, True, "swiglu")
    assert {x.model.norm for x in (hybrid, transformer)} == {"rmsnorm"}
    assert {x.train.precision for x in (hybrid, transformer)} == {"bf16"}


def test_seeds_and_contexts_of_one_width(tmp_path) -> None:
    more = {"repeat": {"width": 64, "seeds": [1, 2]}, "context": {"width": 128, "seq_lens": [192]}}
    cells = sweep_grid(read_sweep(write(tmp_path, **more)), tmp_path).cells
    assert len({cell.name for cell in cells}) == len(cells) == 2 * (2 * 2 + 2 * 2 + 1)
    again = [cell for cell in cells if cell.seed]
    assert {(c.width, c.seed, c.of_the_grid) for c in again} == {(64, 1, True), (64, 2, True)}
    for cell in (cell for cell in cells if cell.other_context):
        same = next(
            c
            for c in cells
            if (c.family, c.width, c.tokens, c.seed) == (cell.family, 128, cell.tokens, 0)
            and c.of_the_grid
        )
        train, other = same.config.train, cell.config.train
        assert cell.name == f"{same.name}-c192" and not cell.of_the_grid
        assert (other.global_batch_size, cell.config.data.seq_len) == (2, 192)
        assert (other.steps, other.warmup_steps, other.lr) == (
            train.steps,
            train.warmup_steps,
            train.lr,
        )
        assert (same.config.eval.late_from, cell.config.eval.late_from) == (36, 144)


def test_further_runs_may_have_a_smaller_budget_than_the_grid(tmp_path) -> None:
    budgets = [2e6, 5e6, 1e7]
    more = {
        "repeat": {"width": 64, "seeds": [1], "up_to": 5e6},
        "context": {"width": 64, "seq_lens": [192], "up_to": 2e6},
    }
    cells = sweep_grid(read_sweep(write(tmp_path, budgets=budgets, **more)), tmp_path).cells
    whole = sweep_grid(read_sweep(write(tmp_path, budgets=budgets)), tmp_path).cells
    tokens = sorted({cell.tokens for cell in whole})
    assert {cell.tokens for cell in cells if cell.seed} == set(tokens[:2])
    assert {cell.tokens for cell in cells if cell.other_context} == set(tokens[:1])
    trunks = {cell.name for cell in cells if cell.seed and not cell.config.checkpoint.branch_of}
    assert len(trunks) == 2, "one for each family, of the largest budget that is repeated"


def test_a_run_beyond_the_grid_has_its_rules_and_changes_no_other(tmp_path) -> None:
    lrs = {"name": "gam", "lrs": {"64": 0.016, "128": 0.004}}
    changes = {"families": [lrs, {"name": "b", "block": "attention"}], "dial": {"warmup_steps": 9}}
    beyond = [{"families": ["gam"], "width": 192, "budget": 4e7}]
    before = sweep_grid(read_sweep(write(tmp_path, **changes)), tmp_path)
    after = sweep_grid(read_sweep(write(tmp_path, **changes, beyond=beyond)), tmp_path)
    assert [cell.config for cell in before.cells] == [
        cell.config for cell in after.cells if not cell.beyond
    ]
    (far,) = (cell for cell in after.cells if cell.beyond)
    assert not far.of_the_grid and not far.branches and far.family == "gam" and far.seed == 0
    assert far.tokens == pytest.approx(4e7, rel=1e-4)
    train, near = far.config.train, before.cells[0].config.train
    assert train.lr == pytest.approx(0.004 * (0.004 / 0.016) ** (math.log2(192 / 128)))
    assert (train.warmup_steps, train.global_batch_size) == (near.warmup_steps, 8)
    assert far.config.model.n_layers == 6 and far.config.model.memory.n_heads == 6


def test_sizes_are_trained_on_budgets_that_suit_them(tmp_path) -> None:
    grid = {"kind": "isoflop", "widths": [32, 64, 96, 128], "budgets": [1e11, 1e12, 1e13]}
    limits = {"ratios": [1, 100], "min_steps": 200, "lr_multipliers": [2]}
    cells = sweep_grid(read_sweep(write(tmp_path, **grid, **limits)), tmp_path).cells
    whole = sweep_grid(read_sweep(write(tmp_path, **grid)), tmp_path).cells

    def suits(cell: SweepCell) -> bool:
        return cell.config.train.steps >= 200 and 1 <= cell.tokens / cell.params <= 100

    expected = {cell.name for cell in whole if suits(cell)}
    assert {cell.name for cell in cells if cell.of_the_grid} == expected
    assert 0 < len(expected) < len(whole)
    varied = [cell for cell in cells if not cell.of_the_grid]
    assert {cell.width for cell in varied} == {32, 128} and all(map(suits, varied))
    with pytest.raises(UserError, match="has no budget of min_steps 9999"):
        sweep_grid(read_sweep(write(tmp_path, **grid, min_steps=9999)), tmp_path)


def test_a_plan_is_told_what_it_cannot_show(tmp_path) -> None:
    spec = read_sweep(write(tmp_path))
    said = "\n".join(warnings(sweep_grid(spec, tmp_path).cells))
    assert "gam has 2 sizes; expected 4 or more" in said
    assert _of_sizes("gam", [9])[0].startswith("gam has 1 size; expected 4 or more")
    assert "fewer than 500 steps" not in said and "one token a parameter" not in said
    few = {"budgets": [1e4, 1e5], "widths": [64, 128, 192, 256], "dial": {"batch_size": 1}}
    said = "\n".join(warnings(sweep_grid(read_sweep(write(tmp_path, **few)), tmp_path).cells))
    assert "8 of 16 runs, such as gam-d64-t9984-s0, have fewer than 500 steps" in said
    assert "have less than one token a parameter" in said and "sizes" not in said
    flops = {"kind": "isoflop", "budgets": [1e15], "widths": [32, 64, 96, 128]}
    head = {"count": "blocks", "vocab_size": 50_257}
    said = "\n".join(warnings(sweep_grid(read_sweep(write(tmp_path, **head)), tmp_path).cells))
    assert "spend more than 100 FLOPs for each parameter and token" in said
    said = warnings(sweep_grid(read_sweep(write(tmp_path, **flops)), tmp_path).cells)
    assert len(said) == 2 and "more than 20 tokens a parameter" in said[0]
    assert "expected larger widths" in said[0]


def test_text_that_is_seen_again_is_told(tmp_path, prepared_set) -> None:
    there = read_manifest(prepared_set).splits["train"].tokens
    for budgets, runs in (([there // 4, there // 2], 0), ([there // 2, 3 * there], 4)):
        values = {"data": str(prepared_set), "budgets": budgets, "dial": {"batch_size": 1}}
        cells = sweep_grid(read_sweep(write(tmp_path, **values)), tmp_path).cells
        said = repeated(cells)
        assert bool(said) == bool(runs) and (said in warnings(cells)) == bool(runs)
        assert not runs or said.startswith(f"{runs} of 8 runs see the ")
        assert not runs or " 3 times, and a law takes every token to be new" in said
    assert repeated(sweep_grid(read_sweep(write(tmp_path)), tmp_path).cells) == ""


def test_layers_that_end_within_their_pattern_are_told(tmp_path) -> None:
    pattern = {"model": {"layers": ["gam_delta", "attention"]}}
    families = [{"name": "hybrid", "set": pattern}, {"name": "gam"}]
    spec = read_sweep(write(tmp_path, families=families, widths=[64, 96, 128]))
    told = [s for s in warnings(sweep_grid(spec, tmp_path).cells) if "pattern" in s]
    assert len(told) == 1 and told[0].startswith(
        "hybrid of width 96 has 3 layers of a pattern of 2"
    )


def test_seeds_are_not_sizes(tmp_path) -> None:
    """Three sizes with two further seeds are five runs on a budget, from which no minimum shows."""
    wide = {"kind": "isoflop", "budgets": [1e14], "widths": [64, 128, 256]}
    seeds = {"repeat": {"width": 64, "seeds": [1, 2]}}
    said = "\n".join(
        warnings(sweep_grid(read_sweep(write(tmp_path, **wide, **seeds)), tmp_path).cells)
    )
    assert "gam has 3 sizes on 1e14 FLOPs; expected 4 or more" in said


def test_a_larger_model_that_is_worse_is_suspected(tmp_path) -> None:
    cells = sweep_grid(read_sweep(write(tmp_path)), tmp_path).cells
    falling = [(cell, {"loss": 9 - cell.flops / 1e15}) for cell in cells]
    assert suspicions(falling) == []
    worse = [
        (c, r | {"loss": r["loss"] + (c.family == "gam" and c.width == 128)}) for c, r in falling
    ]
    (sentence,) = suspicions(worse)
    assert sentence.startswith("gam: gam-d128-t") and "suspect the learning rate" in sentence
