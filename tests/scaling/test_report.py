"""The report holds what it should, and needs nothing but itself."""

import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import warm
from scaling.synthetic import isoflop_runs, runs

from gam_scale.errors import UserError
from gam_scale.report.numbers import hours, large, ranged, scientific
from gam_scale.scaling.supplement import read_supplement

TOOL = Path(__file__).parents[2] / "tools" / "scaling_report.py"
FAST = ("--grid", "2", "--bootstrap", "100", "--test-draws", "20")


def run_tool(*args: object) -> warm.Done:
    return warm.run([TOOL, *args])


def supplement(path: Path) -> list[object]:
    """Write a file of every kind that a report takes beside the runs; return their options."""
    curves = [
        f"{family},{n},{family}-{n},{1000 * step},{9 / step**0.2 - i / 5}"
        for family in ("gam", "a<b>")
        for i, n in enumerate((10_000, 100_000))
        for step in range(1, 40)
    ]
    (path / "curves.csv").write_text("\n".join(["family,params,run,tokens,loss", *curves]))
    rates = ["gam,1e4,2,2e-3,4.5", "gam,1e4,1,1e-3,5", "gam,1e6,1,1e-4,4", "gam,1e6,2,2e-4,4"]
    rates += ["a<b>,1e4,1,1e-3,5", "a<b>,1e4,0.5,5e-4,5.2"]
    (path / "lr.csv").write_text("\n".join(["family,params,lr_multiplier,lr,loss", *rates]))
    bins = [
        {"first": a, "last": b, "loss": {"mean": 5 - a / 99, "low": 4 - a / 99, "high": None}}
        for a, b in ((1, 1), (2, 3), (4, 7), (8, 15), (16, 31))
    ]
    scores = [
        {"task": {"pairs": 8, "seq_len": 128}, "accuracy": {"mean": 0.9, "low": 0.8, "high": 0.95}}
    ]
    measured = {
        "checkpoints": [{"name": "gam-d64", "by_position": {"bins": bins}}],
        "recall": [{"kind": "delta", "scores": scores}],
    }
    (path / "context.json").write_text(json.dumps(measured))
    (path / "sweep.json").write_text('{"widths": [64]}')
    names = {"curves": "curves.csv", "lr": "lr.csv", "evaluation": "context.json"}
    contexts = ["gam,1e4,1e6,256,4.5,4.4", "gam,1e4,1e6,256,4.7,4.6", "gam,1e4,1e6,1024,4.3,"]
    header = "family,params,tokens,seq_len,loss,late_loss"
    (path / "contexts.csv").write_text("\n".join([header, *contexts]))
    names |= {"sweep": "sweep.json", "contexts": "contexts.csv"}
    options = [word for name, file in names.items() for word in (f"--{name}", path / file)]
    return [*options, "--limit", "One text was read."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on two families, one of them with isoFLOP runs."""
    path = tmp_path_factory.mktemp("scaling")
    rows = [
        f"{n},{d},{loss},{name}"
        for points, name in ((runs(), "gam"), (isoflop_runs(), "a<b>"))
        for n, d, loss in zip(points.params, points.tokens, points.loss, strict=True)
    ]
    (path / "runs.csv").write_text("\n".join(["params,tokens,loss,family", *rows]))
    options = [*supplement(path), *FAST, "--targets", "1e9", "7e9", "--at", "2e9,4e10"]
    done = run_tool("--csv", path / "runs.csv", "--out", path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert "family 1 of 2: gam, 30 runs" in done.stderr.splitlines()
    assert "What the runs do not show" in done.stdout
    return path / "out"


def test_fit_json_has_every_figure(folder) -> None:
    found = json.loads((folder / "fit.json").read_text())
    assert found["settings"]["huber_delta"] == 1e-3
    assert found["settings"]["bootstrap"] == 100
    assert found["code_version"] and found["data"].startswith("runs.csv (sha256 ")
    assert list(found["families"]) == ["gam", "a<b>"]
    family = found["families"]["a<b>"]
    for name in ("E", "A", "B", "alpha", "beta"):
        low, high = family["intervals"][name]
        assert low <= family[name] <= high
    assert family["objective"] > 0
    assert family["optimum"]["a"] + family["optimum"]["b"] == pytest.approx(1)
    assert family["held_out"]["error"] < 0.05
    assert len(family["isoflop"]["minima"]) == 5
    assert [e["params"] for e in family["extrapolations"]] == [1e9, 1e9, 7e9, 7e9, 2e9]
    tests = found["comparisons"][0]["tests"]
    assert {t["hypothesis"] for t in tests} == {"one law", "equal exponents"}


def test_the_page_is_self_contained(folder) -> None:
    page = (folder / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "<script" not in page and "@import" not in page and "<b>b" not in page
    assert "a&lt;b&gt;" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page):
        assert "".join(reference) in ids
    assert "#0102" not in page  # every placeholder of a colour was replaced
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(svg.replace("xlink:", ""))
    first = ["Who is best", "least measured loss at e", "<svg", "What the runs show"]
    assert sorted(first, key=page.index) == first, "not first who is best, in words and a picture"
    wanted = ["What the runs show", "What the runs do not show", "The fitted law", "Extrapolation"]
    wanted += ["Cost in GPU-hours", "IsoFLOP minima", "Do the families differ?", "Settings"]
    wanted += ["code version", "prefers-color-scheme: dark", "@media print", "h100", "1B", "7B"]
    assert [text for text in wanted if text not in page] == []


def test_what_else_is_known_is_shown(folder) -> None:
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    wanted = ["Training curves: gam", "Sensitivity to the learning rate", "Loss by position"]
    wanted += ["Loss by the length of texts", "4.600 / 4.500", "1,024 tokens"]
    wanted += ["Associative recall", "8 in 128", "0.900 [0.800, 0.950]", "One text was read."]
    wanted += [
        "gam of 10k parameters: 2 times the learning rate, the last tried, is better by 0.500 nats",
        "gam of 1M parameters: no other learning rate tried is better",
    ]
    for told in (re.sub("</?small>", "", page), text):
        assert [words for words in wanted if words not in told] == []
    assert "a&lt;b&gt; of 10k parameters: no other learning rate tried is better" in page
    assert "&#34;widths&#34;: [" in page and '"widths": [' in text


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--curves", "family,params,run,tokens\n", "line 1 has no column loss"),
        ("--curves", "family,params,run,tokens,loss\ng,1,r,9,x\n", "line 2, column loss is 'x'"),
        (
            "--lr",
            "family,params,lr_multiplier,lr,loss\n,1,1,1,1\n",
            "line 2, column family is empty",
        ),
        ("--contexts", "family,params,tokens\n", "line 1 has no column seq_len"),
        ("--evaluation", '{"loss": 3}', "is not what tools/evaluate.py writes"),
        ("--evaluation", "{", "line 1 is not valid JSON"),
    ],
)
def test_mistakes_in_the_supplement_are_named(tmp_path, option, text, message) -> None:
    (tmp_path / "extra").write_text(text)
    given = {"--curves": "curves", "--lr": "rates", "--evaluation": "evaluations"}
    given["--contexts"] = "contexts"
    alone = option in ("--lr", "--contexts")
    value = tmp_path / "extra" if alone else [tmp_path / "extra"]
    with pytest.raises(UserError, match=re.escape(message)):
        read_supplement(**{given[option]: value})


def test_the_rows_of_several_runs_may_alternate(tmp_path) -> None:
    rows = [f"gam,{n},{n}-run,{step},{9 - step}" for step in (1, 2, 3) for n in (20, 10)]
    (tmp_path / "curves.csv").write_text("\n".join(["family,params,run,tokens,loss", *rows]))
    curves = read_supplement(curves=[tmp_path / "curves.csv"]).curves
    assert [(c.params, list(c.tokens)) for c in curves] == [(20, [1, 2, 3]), (10, [1, 2, 3])]


def test_the_supplement_is_read_as_runs_are(tmp_path) -> None:
    """Spaces, capitals and a byte order mark, as a spreadsheet leaves them."""
    path = tmp_path / "lr.csv"
    path.write_text(
        "\ufeffFamily, params, lr_multiplier, lr, Loss\ngam, 1e4, 2, 2e-3, 4.5\n", "utf-8"
    )
    (rates,) = read_supplement(rates=path).rates
    assert (rates.family, rates.lrs, rates.losses) == ("gam", [2e-3], [4.5])
    with pytest.raises(UserError, match="no such file"):
        read_supplement(curves=[tmp_path / "none.csv"])


def test_markdown_names_figures_that_are_there(folder) -> None:
    text = (folder / "report.md").read_text()
    figures = re.findall(r"\]\(([^)]+)\)", text)
    assert "isoflop-1.png" in figures and "frontier.png" in figures
    for name in figures:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        ElementTree.parse((folder / name).with_suffix(".svg"))
    for table in re.findall(r"(?:^\|.*\n?)+", text, re.M):
        assert len({line.count(" | ") for line in table.splitlines()}) == 1


def test_tables_are_csv(folder) -> None:
    def read(name: str) -> list[dict[str, str]]:
        with open(folder / name, newline="") as file:
            return list(csv.DictReader(file))

    assert len(read("fitted.csv")) == 60
    assert all(abs(float(row["error"])) < 0.05 for row in read("fitted.csv"))
    row = read("extrapolation.csv")[0]
    assert float(row["gpu_hours_h100"]) > 0
    assert float(row["loss_low"]) <= float(row["loss"]) <= float(row["loss_high"])
    assert len(read("frontier.csv")) > 20


def test_one_family_is_at_the_top_of_fit_json(tmp_path) -> None:
    points = runs(sizes=4, budgets=3)
    rows = zip(points.params, points.tokens, points.loss, strict=True)
    further = "params_with_embedding,late_loss"
    cells = [f"{n},{d},{y},{n + 1},{y - 0.00004}" for n, d, y in rows]
    text = "\n".join([f"params,tokens,loss,{further}", *cells])
    (tmp_path / "runs.csv").write_text(text)
    options = ("--huber-delta", "0.01", "--shared-exponent", "--grid", "3", "--bootstrap", "0")
    done = run_tool("--csv", tmp_path / "runs.csv", "--out", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "fit.json").read_text())
    assert found["alpha"] == found["beta"] and found["optimum"]["a"] == 0.5
    assert found["settings"]["huber_delta"] == 0.01 and found["settings"]["shared_exponent"]
    assert found["intervals"]["E"] is None
    assert (tmp_path / "runs.csv").read_text() == text, "the input is not what it was"
    page = (tmp_path / "report.md").read_text()
    assert (
        "Intervals were not asked for" in page and "| params with embedding | late loss |" in page
    )
    assert f"| {points.loss[0] - 0.00004:.3f} | {points.loss[0]:.3f} |" in page
    assert (tmp_path / "fitted.csv").read_text().splitlines()[0].endswith(f",error,{further}")


def test_a_family_without_a_law_is_named_and_the_others_go_on(tmp_path) -> None:
    points = runs(sizes=4, budgets=3)
    columns = (points.params, points.tokens, points.loss)
    rows = [f"{n},{d},{loss},gam" for n, d, loss in zip(*columns, strict=True)]
    # The losses are mirrored, so that larger models are worse, and a term of tokens is added.
    mirrored = 2 * points.loss.max() - points.loss + 20 / points.tokens**0.1 - 4
    columns = (points.params, points.tokens, mirrored)
    rows += [f"{n},{d},{loss},bad" for n, d, loss in zip(*columns, strict=True)]
    (tmp_path / "runs.csv").write_text("\n".join(["params,tokens,loss,family", *rows]))
    done = run_tool("--csv", tmp_path / "runs.csv", "--out", tmp_path / "out", *FAST)
    assert done.returncode == 0, done.stderr
    reason = "bad is measured but has no law here. Family bad: the loss does not fall as "
    assert reason in done.stdout
    found = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert list(found["families"]) == ["gam"] and list(found["left_out"]) == ["bad"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Loss against tokens: bad" in text and "| best | gam | bad |" in text
    assert f"| {mirrored[-1]:.3f} | no law |" in text
    with open(tmp_path / "out" / "fitted.csv", newline="") as file:
        fitted = [row["fitted_loss"] for row in csv.DictReader(file) if row["family"] == "bad"]
    assert fitted == [""] * 12


def test_a_law_of_which_size_is_no_part_is_left_out_with_its_minima(tmp_path) -> None:
    """Past the smallest size, size brings nothing: alpha is near 40, and best budgets overflow."""
    points = runs(sizes=4, budgets=3)
    columns = (points.params, points.tokens, points.loss, points.flops)
    rows = [f"{n},{d},{y},{c},gam" for n, d, y, c in zip(*columns, strict=True)]
    # Each of three budgets of FLOPs has its best size between the others.
    for budget in (1e12, 4e12, 16e12):
        for i, n in enumerate((1e5, 2e5, 4e5, 8e5)):
            d = budget / (6 * n)
            loss = 4 + 200 / d**0.4 + 0.3 * (i == 0)
            rows.append(f"{n},{d},{loss},{budget},cliff")
    (tmp_path / "runs.csv").write_text("\n".join(["params,tokens,loss,flops,family", *rows]))
    done = run_tool("--csv", tmp_path / "runs.csv", "--out", tmp_path / "out", *FAST)
    assert done.returncode == 0, done.stderr
    assert "Family cliff: what size adds ends within the runs (alpha " in done.stdout
    found = json.loads((tmp_path / "out" / "fit.json").read_text())
    minima = found["left_out"]["cliff"]["isoflop"]["minima"]
    assert minima and all(1e5 < at["params"] < 8e5 for at in minima)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Best size for a budget: cliff" in text and "no law" in text


def test_mistakes_are_one_line(tmp_path) -> None:
    (tmp_path / "runs.csv").write_text("params,tokens,loss\n1,2,x\n")
    done = run_tool("--csv", tmp_path / "runs.csv", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*line 2, column loss is 'x'; expected a .*\n", done.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hold-out", "colour=red"), "--hold-out is colour=red; expected a column of the CSV"),
        (("--hold-out", "some"), "--hold-out is some; expected sizes, budgets, none or COLUMN="),
        (("--at", "7e9"), "--at is 7e9; expected N,D or FAMILY:N,D as in 7e9,1.4e11"),
        (("--at", ":7e9,1"), "--at is :7e9,1; expected N,D or FAMILY:N,D"),
        (("--at", "gam:7e9,1.4e11"), "--at has the family gam; expected one of the CSV's: all"),
        (("--min-steps", "9"), "--min-steps needs a column steps, or batch and seq_len"),
        (("--curves", "{}/law.csv"), "--out {0} would replace {0}/law.csv, which the report is "),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(tmp_path, options, message) -> None:
    points = runs(sizes=3, budgets=3)
    rows = zip(points.params, points.tokens, points.loss, strict=True)
    text = "\n".join(["params,tokens,loss", *(f"{n},{d},{y}" for n, d, y in rows)])
    (tmp_path / "runs.csv").write_text(text)
    (tmp_path / "law.csv").write_text("family,params,run,tokens,loss\ngam,1,r,1,1\n")
    given = [word.format(tmp_path) for word in options]
    done = run_tool("--csv", tmp_path / "runs.csv", "--out", tmp_path, *given)
    wanted = f"error: {message.format(tmp_path)}"
    assert done.returncode == 2 and done.stderr.startswith(wanted), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"runs.csv", "law.csv"}


def test_numbers_read_well() -> None:
    assert [large(x) for x in (7e9, 1.234e6, 999_900, 12)] == ["7B", "1.23M", "1M", "12"]
    assert [scientific(x) for x in (3.1e20, 1e15, 9.99e9)] == ["3.1e20", "1e15", "1e10"]
    assert [hours(x) for x in (0.001, 3.21, 12345, 4.2e6)] == [
        "< 0.01",
        "3.2",
        "12,300",
        "4.2 million",
    ]
    assert ranged(0.5, (0.4, 0.6), "{:.1f}".format) == "0.5 [0.4, 0.6]"
    assert ranged(0.5, None, "{:.1f}".format) == "0.5"
