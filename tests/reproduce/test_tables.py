"""The tables' arithmetic agrees with numpy, and their words fit made-up runs."""

import itertools

import numpy as np
import pytest

from gam_scale.experiment.spread import Spread
from gam_scale.reproduce import words
from gam_scale.reproduce.spread import Results
from gam_scale.reproduce.tables import ablations, details, lead, leads, perplexities, tables

LOSSES = {"paper": 6.0, "scaled": 5.5, "unhandicapped": 5.0}


def row(dataset: str, model: str, setup: str, seed: int, loss: float) -> dict:
    """Return the row of a finished run."""
    return {
        "dataset": dataset,
        "model": model,
        "setup": setup,
        "seed": seed,
        "params": 1000,
        "train_loss": loss + 0.5,
        "val_loss": loss,
        "val_perplexity": float(np.exp(loss)),
        "val_bits_per_byte": loss / 2,
        "tokens_per_s": 100.0,
        "epoch_tokens": 5000,
    }


@pytest.fixture
def rows() -> list[dict]:
    """Three seeds of every cell; GAM is 0.1 nats ahead of the transformer, 0.2 of Mamba."""
    rng = np.random.default_rng(0)
    kinds = [("gam", s) for s in LOSSES] + [("mamba", s) for s in LOSSES]
    kinds += [("transformer", "paper"), ("transformer", "scaled")]
    kinds += [(f"gam-{a}", s) for a in ("global", "sum", "local") for s in ("paper", "scaled")]
    offsets = {"gam": 0.0, "transformer": 0.1, "mamba": 0.2, "gam-global": 0.3}
    found = []
    for (model, setup), seed in itertools.product(kinds, range(3)):
        noise = 0.01 * rng.standard_normal()
        loss = LOSSES[setup] + offsets.get(model, 0.4) + noise
        found.append(row("wikitext2", model, setup, seed, loss))
    return found


def column(found: list[dict], model: str, setup: str, name: str) -> np.ndarray:
    return np.array([r[name] for r in found if (r["model"], r["setup"]) == (model, setup)])


@pytest.mark.parametrize("n", [2, 3, 7])
def test_spread_is_numpys(n) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(5, 2, n), rng.normal(4, 1, n + 1)
    mine, other = Spread.of(a.tolist()), Spread.of(b.tolist())
    assert mine.mean == pytest.approx(a.mean()) and mine.deviation == pytest.approx(a.std(ddof=1))
    difference, error = mine.difference(other)
    assert difference == pytest.approx(a.mean() - b.mean())
    assert error == pytest.approx(np.sqrt(a.var(ddof=1) / n + b.var(ddof=1) / (n + 1)))
    assert mine.over(other) == pytest.approx((a.mean() - b.mean()) / b.mean())


def test_one_seed_has_no_spread() -> None:
    one, two = Spread.of([3.0]), Spread.of([1.0, 2.0])
    assert one.deviation is None and one.text() == "3.0" and one.seeds == 1
    assert two.text("{:.2f}".format) == "1.50 ± 0.71"
    assert one.difference(two) == (1.5, None) and two.difference(one) == (-1.5, None)


def test_table_1_and_its_handicap_columns(rows) -> None:
    table = perplexities(Results(rows), "wikitext2")
    cells = {line[0]: dict(zip(table.header, line, strict=True)) for line in table.rows}
    for model, name, last in (
        ("gam", "GAM", "unhandicapped"),
        ("transformer", "Transformer", "scaled"),
        ("mamba", "Mamba", "unhandicapped"),
    ):
        before = column(rows, model, "paper", "val_perplexity")
        after = column(rows, model, last, "val_perplexity")
        told = cells[name]
        assert told["paper's set-up"] == f"{before.mean():,.1f} ± {before.std(ddof=1):,.1f}"
        assert told["change"] == f"{after.mean() / before.mean() - 1:+.1%}"
    assert cells["GAM"]["published"] == "882.57" and cells["Mamba"]["published"] == "1,017.54"
    assert cells["Transformer"]["no handicap"] == "the same"
    assert "3 seeds" in table.note


def test_details_give_losses_and_the_time_of_an_epoch(rows) -> None:
    table = details(Results(rows), "wikitext2")
    first = dict(zip(table.header, table.rows[0], strict=True))
    assert first["model and set-up"] == "GAM, paper's set-up" and first["s / epoch"] == "50 ± 0"
    loss = column(rows, "gam", "paper", "train_loss")
    assert first["training"] == f"{loss.mean():.3f} ± {loss.std(ddof=1):.3f}"
    assert len(table.rows) == 8 and all(line[-1] == "3" for line in table.rows)


def test_leads_compare_like_with_like(rows) -> None:
    results = Results(rows)
    gam = column(rows, "gam", "unhandicapped", "val_loss")
    theirs = column(rows, "transformer", "scaled", "val_loss")
    error = np.sqrt(gam.var(ddof=1) / 3 + theirs.var(ddof=1) / 3)
    assert lead(results, "wikitext2", "transformer", "unhandicapped") == pytest.approx(
        (gam.mean() - theirs.mean(), error)
    )
    (transformer, mamba) = leads(results).rows
    assert transformer[1] == "-0.040" and mamba[1] == "-0.142"  # 6.7828 minus 6.8233, 6.9251
    assert transformer[-1] == f"{gam.mean() - theirs.mean():+.3f} ± {error:.3f}"
    assert lead(results, "tinystories", "mamba", "paper") is None


def test_ablations_stand_beside_the_full_model(rows) -> None:
    table = ablations(Results(rows))
    full = column(rows, "gam", "scaled", "val_perplexity").mean()
    summed = column(rows, "gam-sum", "scaled", "val_perplexity").mean()
    line = next(line for line in table.rows if line[0] == "GAM sum fusion")
    assert line[-1] == f"{summed / full - 1:+.1%}"
    assert line[4:6] == ["942.59", "+4.6%"] and line[1:3] == ["sum", "both"]


def test_unfinished_cells_are_empty_and_said(rows) -> None:
    some = [r for r in rows if r["model"] == "gam" and r["setup"] != "scaled"][:4]  # 3 and 1 seeds
    results = Results(some)
    assert [line[0] for line in perplexities(results, "wikitext2").rows] == ["GAM"]
    assert leads(results).rows == []
    said = " ".join(words.does_not_show(results, 0.125, ["The machine was busy."]))
    assert "Cells have 1 to 3 seeds" in said and said.endswith("The machine was busy.")
    assert tables(Results([]), []) == []


def test_a_difference_within_the_spread_is_no_lead() -> None:
    def results(gap: float) -> Results:
        wide = [(m, s, 6.0 + gap * (m == "transformer") + 0.1 * s) for m in MODELS for s in (0, 1)]
        return Results([row("wikitext2", m, "paper", s, loss) for m, s, loss in wide])

    MODELS = ("gam", "transformer")
    near, far = (" ".join(words.shows(results(gap), [])) for gap in (0.05, 1.0))
    assert "within the spread of seeds in the paper's set-up" in near
    assert "here GAM is ahead in the paper's set-up" in far


def test_a_run_that_diverged_is_on_the_page_without_a_figure(rows) -> None:
    null = {"val_loss": None, "val_perplexity": None, "val_bits_per_byte": None}
    bare = ("mamba", "paper")
    found = [r | null if (r["model"], r["setup"]) == bare else r for r in rows]
    results = Results(found)
    table = perplexities(results, "wikitext2")
    mamba = dict(zip(table.header, table.rows[2], strict=True))
    assert mamba["paper's set-up"] == "diverged" and mamba["change"] == ""
    assert lead(results, "wikitext2", "mamba", "paper") is None
    assert leads(results).rows[1][2] == ""
    assert any("Mamba from diverged to" in sentence for sentence in words.shows(results, []))
    assert all(table.rows for table in tables(results, []))
