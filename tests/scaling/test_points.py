"""Runs that cannot be fitted are refused with a reason, and errors name row and column."""

from pathlib import Path

import numpy as np
import pytest
from scaling.synthetic import runs

from gam_scale.errors import UserError
from gam_scale.scaling.points import check, from_arrays, read_csv

ROWS = [f"{n}e6,{d}e7,{4 - n / 100 - d / 100}" for n in (1, 2, 4) for d in (1, 2, 4)]


def write(folder: Path, *rows: str, header: str = "params,tokens,loss") -> Path:
    path = folder / "runs.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_columns_are_read_by_name(tmp_path) -> None:
    rows = [f"gam,{row},7,{i}e15,note" for i, row in enumerate(ROWS, 1)]
    header = "Family, params,tokens,loss,seed,flops,remark"
    points = read_csv(write(tmp_path, *rows, header=header))
    assert points.families == ["gam"]
    assert points.params[0] == 1e6 and points.flops[1] == 2e15
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
        read_csv(write(tmp_path, *rows))


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
    with pytest.raises(UserError, match="b.runs.csv: line 2 has the params, tokens of line 2; exp"):
        read_csv(one, write(tmp_path / "b", *ROWS))
    other = write(
        tmp_path / "b", *(f"{row},gam" for row in ROWS[5:]), header="params,tokens,loss,family"
    )
    with pytest.raises(UserError, match="only one of .* has a column family; expected both"):
        read_csv(one, other)


def test_families_are_checked_by_name(tmp_path) -> None:
    rows = [f"{row},gam" for row in ROWS] + ["1e6,1e7,3.0,mamba"]
    with pytest.raises(UserError, match="family mamba, has 1 rows; expected at least 8"):
        read_csv(write(tmp_path, *rows, header="params,tokens,loss,family"))


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
