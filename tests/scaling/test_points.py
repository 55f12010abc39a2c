"""Runs that cannot be fitted are refused with a reason, and errors name row and column."""

from pathlib import Path

import numpy as np
import pytest
from scaling.synthetic import runs

from gam_scale.errors import UserError
from gam_scale.scaling.points import check, from_arrays
from gam_scale.scaling.runs_csv import read_csv

PAIRS = [(n, d) for n in (1, 2, 4) for d in (1, 2, 4)]
ROWS = [f"{n}e6,{d}e7,{4 - n / 100 - d / 100}" for n, d in PAIRS]


def write(folder: Path, *rows: str, header: str = "params,tokens,loss") -> Path:
    path = folder / "runs.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_columns_are_read_by_name(tmp_path) -> None:
    rows = [f"gam,{row},7,{i}e14,note" for i, row in enumerate(ROWS, 1)]
    header = "Family, params,tokens,loss,seed,flops,remark"
    points = read_csv(write(tmp_path, *rows, header=header))
    assert points.families == ["gam"]
    assert points.params[0] == 1e6 and points.flops[1] == 2e14
    assert points.counted
    plain = read_csv(write(tmp_path, *ROWS))
    assert plain.flops[0] == 6 * 1e6 * 1e7
    assert plain.flops_per_pair == pytest.approx(6)
    assert len(set(plain.run.tolist())) == 9


def test_rows_of_a_run_belong_together(tmp_path) -> None:
    rows = [f"{row},{i // 3}" for i, row in enumerate([*ROWS, "8e6,1e7,3", "8e6,2e7,2.9"])]
    points = read_csv(write(tmp_path, *rows, header="params,tokens,loss,run"))
    assert points.run.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("1e6,5e7,oops", "line 11, column loss is 'oops'; expected a number above 0"),
        ("1e6,,3.0", "line 11, column tokens is empty"),
        ("1e6,5e7", "line 11, column loss is empty"),
        ("1e6,5e7,nan", "line 11, column loss is nan; expected a finite number"),
        ("1e6,inf,3.0", "line 11, column tokens is inf"),
        ("-1e6,5e7,3.0", "line 11, column params is -1e[+]06"),
        ("1e6,0,3.0", "line 11, column tokens is 0"),
        ("1e6,1e7,3.0", "line 11 has the params, tokens of line 2; expected one row each"),
    ],
)
def test_errors_name_row_and_column(tmp_path, bad, message) -> None:
    with pytest.raises(UserError, match=message):
        read_csv(write(tmp_path, *ROWS, bad))


def test_repeated_sizes_need_a_seed(tmp_path) -> None:
    rows = [f"{row},{seed}" for row in ROWS for seed in (1, 2)]
    assert len(read_csv(write(tmp_path, *rows, header="params,tokens,loss,seed"))) == 18
    with pytest.raises(UserError, match="column seed"):
        read_csv(write(tmp_path, *ROWS, ROWS[0]))


def test_headers_and_files(tmp_path) -> None:
    with pytest.raises(UserError, match="no column params .is param meant"):
        read_csv(write(tmp_path, *ROWS, header="param,tokens,loss"))
    with pytest.raises(UserError, match="column loss twice"):
        read_csv(write(tmp_path, *ROWS, header="params,tokens,loss,loss"))
    with pytest.raises(UserError, match="no rows"):
        read_csv(write(tmp_path))
    with pytest.raises(UserError, match="no such file"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00params")
    with pytest.raises(UserError, match="cannot be read"):
        read_csv(tmp_path / "binary.csv")


def test_files_are_read_as_one(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, two = write(tmp_path / "a", *ROWS[:5]), write(tmp_path / "b", *ROWS[5:])
    whole, parts = read_csv(write(tmp_path, *ROWS)), read_csv(one, two)
    assert parts.loss.tolist() == whole.loss.tolist() and parts.run.tolist() == whole.run.tolist()
    with pytest.raises(
        UserError,
        match="b.runs.csv: line 2 has the params, tokens of .*a.runs.csv, line 2; expected",
    ):
        read_csv(one, write(tmp_path / "b", *ROWS))
    other = write(
        tmp_path / "b", *(f"{row},gam" for row in ROWS[5:]), header="params,tokens,loss,family"
    )
    with pytest.raises(UserError, match="only one of .* has a column family; expected both"):
        read_csv(one, other)


def test_a_thin_family_ends_nothing_and_thin_families_alone_are_named(tmp_path) -> None:
    thin = "1e6,1e7,3.0,mamba"
    header = "params,tokens,loss,family"
    points = read_csv(write(tmp_path, *(f"{row},gam" for row in ROWS), thin, header=header))
    assert points.families == ["gam", "mamba"] and len(points.of("mamba")) == 1
    with pytest.raises(UserError, match="runs.csv, family gam, has 1 rows; expected at least 8"):
        read_csv(write(tmp_path, "1e6,1e7,3.0,gam", thin, header=header))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    few = write(tmp_path / "a", ROWS[0]), write(tmp_path / "b", ROWS[1])
    with pytest.raises(UserError, match="a.runs.csv and .*b.runs.csv has 2 rows"):
        read_csv(*few)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_semicolons_and_tabs_part_cells(tmp_path, delimiter) -> None:
    rows = [row.replace(",", delimiter) for row in ROWS]
    header = delimiter.join(("params", "tokens", "loss"))
    points = read_csv(write(tmp_path, *rows, header=header))
    assert points.loss.tolist() == read_csv(write(tmp_path, *ROWS)).loss.tolist()
    decimal = delimiter.join(("1e6", "5e7", "4,635"))
    with pytest.raises(UserError, match="'4,635'; expected a number above 0, with a decimal point"):
        read_csv(write(tmp_path, *rows, decimal, header=header))


def test_a_row_longer_than_the_header_is_refused(tmp_path) -> None:
    """With a decimal comma, a loss of 4.635 would be read as 4."""
    with pytest.raises(UserError, match="line 11 has 4 cells and the header 3; .*with a point"):
        read_csv(write(tmp_path, *ROWS, "1e6,5e7,4,635"))


@pytest.mark.parametrize("other", ["gam", "GAM  ", "Gam"])
def test_names_that_differ_by_case_are_one_family_or_none(tmp_path, other) -> None:
    rows = [f"{row},GAM" for row in ROWS] + [f"1e6,5e7,3,{other}"]
    path = write(tmp_path, *rows, header="params,tokens,loss,family")
    if other.strip() == "GAM":
        assert read_csv(path).families == ["GAM"]
        return
    with pytest.raises(UserError, match=f"line 11, column family is '{other}', and 'GAM' before"):
        read_csv(path)


@pytest.mark.parametrize("flops", ["4e13", "6e15", "300"])
def test_flops_that_the_run_cannot_have_spent_are_refused(tmp_path, flops) -> None:
    rows = [f"{row},{6 * 1e12 * n * 10 * d}" for row, (n, d) in zip(ROWS, PAIRS, strict=True)]
    header = "params,tokens,loss,flops"
    assert read_csv(write(tmp_path, *rows, header=header)).flops_per_pair == pytest.approx(6)
    with pytest.raises(
        UserError, match="line 11, flops / .params tokens. is .*; expected 1 to 100"
    ):
        read_csv(write(tmp_path, *rows, f"1e6,5e7,3,{flops}", header=header))


def test_planned_budgets_are_read_where_there_are_any(tmp_path) -> None:
    header = "params,tokens,loss,flops_budget"
    budget = ["6e13", "", "1e14"] * 3
    points = read_csv(
        write(tmp_path, *(f"{r},{b}" for r, b in zip(ROWS, budget, strict=True)), header=header)
    )
    assert np.array_equal(points.budget, np.tile([6e13, np.nan, 1e14], 3), equal_nan=True)
    assert read_csv(write(tmp_path, *(f"{r}," for r in ROWS), header=header)).budget is None


def test_planned_budgets_are_near_what_was_spent(tmp_path) -> None:
    """A budget in another unit, or from another column, would give the minima of other budgets."""
    header = "params,tokens,loss,flops,flops_budget"
    spent = [6 * 1e12 * n * 10 * d for n, d in PAIRS]
    rows = [f"{row},{c},{1.9 * c}" for row, c in zip(ROWS, spent, strict=True)]
    points = read_csv(write(tmp_path, *rows, header=header))
    assert points.budget == pytest.approx(1.9 * points.flops)
    rows[3] = f"{ROWS[3]},{spent[3]},0.06"
    with pytest.raises(UserError, match=r"line 5, column flops_budget is 0\.06 where flops is"):
        read_csv(write(tmp_path, *rows, header=header))


@pytest.mark.parametrize(
    ("columns", "cells", "message"),
    [
        ("steps", "", "line 11, column steps is empty"),
        ("params_other", "x", "line 11, column params_other is 'x'"),
        ("late_loss", "n/a", "line 11, column late_loss is 'n/a'"),
        ("batch,seq_len", "8,0", "line 11, column seq_len is 0"),
    ],
)
def test_text_in_columns_that_are_counted_with_has_its_line(
    tmp_path, columns, cells, message
) -> None:
    """The error names its line while the file is read, and does not come after minutes of fits."""
    header, good = f"params,tokens,loss,{columns}", "5,5" if "," in columns else "5"
    rows = [f"{row},{good}" for row in ROWS]
    with pytest.raises(UserError, match=message):
        read_csv(write(tmp_path, *rows, f"1e6,5e7,3.0,{cells}", header=header))
    nothing = header.replace("steps", "lr").replace("params_other", "width")
    if nothing != header:  # nothing is computed from these
        assert len(read_csv(write(tmp_path, *(f"{r},{cells}" for r in ROWS), header=nothing))) == 9


def test_units_of_the_loss_are_asked_for_and_converted(tmp_path) -> None:
    nats = [4 - n / 100 - d / 100 for n, d in PAIRS]
    pairs = [row.rsplit(",", 1)[0] for row in ROWS]
    for unit, values in (
        ("bits", [y / np.log(2) for y in nats]),
        ("perplexity", np.exp(nats).tolist()),
    ):
        path = write(tmp_path, *(f"{p},{y}" for p, y in zip(pairs, values, strict=True)))
        assert read_csv(path, unit=unit).loss == pytest.approx(nats)
        if unit == "perplexity":
            with pytest.raises(UserError, match="line 2, column loss is .*--loss-unit bits"):
                read_csv(path)
    with pytest.raises(UserError, match="expected a perplexity, which is above 1"):
        read_csv(write(tmp_path, *ROWS, "1e6,5e7,0.9"), unit="perplexity")
    with pytest.raises(UserError, match="is ppl meant. Name it loss and say --loss-unit perplex"):
        read_csv(write(tmp_path, *ROWS, header="params,tokens,ppl"))
    with pytest.raises(UserError, match="--loss-unit is nuts; expected one of nats"):
        read_csv(write(tmp_path, *ROWS), unit="nuts")


def test_degenerate_data_is_refused() -> None:
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e6, 1e8, 3), np.geomspace(1e7, 1e9, 3)))
    loss = 2 + n**-0.3 + d**-0.3
    check(from_arrays(n, d, loss))
    cases = {
        "1 distinct value of params": (np.full(9, 1e6), d, loss),
        "2 distinct values of tokens": (n, np.where(d > 1e8, 1e9, 1e8), loss),
        "tokens follows from params": (
            np.geomspace(1e6, 1e8, 9),
            20 * np.geomspace(1e6, 1e8, 9),
            loss,
        ),
        "loss is the same": (n, d, np.full(9, 3.0)),
        "loss of row 3 is nan": (n, d, np.where(np.arange(9) == 2, np.nan, loss)),
        "params of row 1 is -1": (np.where(np.arange(9) == 0, -1, n), d, loss),
        "has 7 rows": (n[:7], d[:7], loss[:7]),
    }
    for message, columns in cases.items():
        with pytest.raises(UserError, match=message):
            check(from_arrays(*columns))
    with pytest.raises(UserError, match="rows of 3 runs"):
        check(from_arrays(n, d, loss, run=np.arange(9) // 3))


def test_families_are_taken_apart() -> None:
    points = runs(sizes=3, budgets=3)
    both = from_arrays(points.params, points.tokens, points.loss, family=["a", "b", "b"] * 3)
    assert both.families == ["a", "b"]
    assert len(both.of("b")) == 6
    assert both.of("a").run.tolist() == [0, 3, 6]
