"""Test the page that compares models: whole, escaped, and only of what was measured."""

import re
from types import SimpleNamespace

import pytest
from markupsafe import escape

from gam_scale.config import ModelConfig
from gam_scale.errors import UserError
from gam_scale.evaluate.interval import Interval
from gam_scale.evaluate.needle import NeedleCell, NeedleResult
from gam_scale.evaluate.recall import RecallResult, RecallScore
from gam_scale.evaluate.report import write_comparison
from gam_scale.evaluate.state_size import StateSize
from gam_scale.evaluate.subject import Subject, to_json
from gam_scale.evaluate.tables import equality, sizes, tables
from gam_scale.evaluate.tasks.recall import Recall
from gam_scale.evaluate.text import Read, TextSource, read_of
from gam_scale.report.lines import Series, heat_map, line_figure

SURE = Interval(0.5, 0.25, 0.75)


def subject(name: str) -> Subject:
    right = [True, True, False, False]
    cells = [NeedleCell(n, d, SURE, 2.0, SURE, right) for n in (64, 128) for d in (0.0, 1.0)]
    found = Subject(name, "runs/x", 7, ["slot"] * 2, 1234, StateSize(100, 0), 128)
    found.needle = NeedleResult(cells, 4, 0.25)
    return found


def recall(kind: str) -> RecallResult:
    scores = [RecallScore(Recall(n, 32, 2), SURE, 9) for n in (8, 16)]
    state, curve = StateSize(8, 2), [(10, 0.1), (20, 0.5)]
    return RecallResult(kind, ModelConfig(), 1000, state, scores, 1e-3, 20, 3.0, curve)


def test_the_page_holds_everything_once(tmp_path):
    subjects, recalls = [subject("a<b"), subject("c")], [recall("slot"), recall("delta")]
    page = write_comparison(tmp_path / "page.html", subjects, recalls).read_text()
    assert re.findall(r'<svg class="([^"]*)"', page) == ["needle0", "needle1", "recall", "learning"]
    ids = re.findall(r' id="([^"]*)"', page)
    assert ids and len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(|href=")#([^)"]*)', page))
    assert used <= set(ids)
    assert "a&lt;b" in page and "a<b" not in page
    assert "://" not in page and "<script" not in page and "#0102" not in page
    for table in tables(subjects, recalls):
        for row in table.rows:
            assert f"<th scope=row>{escape(row[0])}</th>" in page
    assert "Loss by position" not in page and "Effective context" not in page


def test_a_page_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="--report .* cannot be written"):
        write_comparison(tmp_path / "none" / "page.html", [subject("a")], [])


def test_sizes_that_differ_are_said_to():
    assert equality([100, 103], [64, 64]) == "Parameters within 3.0% of each other; equal states."
    assert "state from 64 to 128 numbers" in equality([100, 100], [64, 128])
    assert equality([100], [64]) == ""


@pytest.mark.parametrize(
    ("text_hash", "tokenizer", "said"),
    [
        ("1", "320 ids, aa", []),
        ("2", "320 ids, aa", ["text"]),
        ("1", "512 ids, bb", ["tokenizer"]),
        ("2", "512 ids, bb", ["text", "tokenizer"]),
    ],
)
def test_rows_that_do_not_compare_are_said_to(text_hash, tokenizer, said):
    one, other = subject("a"), subject("b")
    one.read = Read("data/x/valid", "1", "320 ids, aa")
    other.read = Read("data/y/valid", text_hash, tokenizer)
    table = sizes([one, other])
    told = [name for name in ("text", "tokenizer") if name in table.header]
    assert told == said, f"rows of different texts or tokenizers stand unmarked: {table}"
    assert ("different texts" in table.note) == ("text" in said)
    assert ("bits per byte" in table.note) == ("tokenizer" in said)
    assert [row[-1] for row in table.rows][-1:] == [other.read.tokenizer] or not said[1:]


def test_rows_of_different_lengths_are_said_not_to_compare():
    one, other = subject("a"), subject("b")
    assert "tokens of context" not in sizes([one, other]).header
    other.seq_len = 4096
    table = sizes([one, other])
    assert [row[table.header.index("tokens of context")] for row in table.rows] == ["128", "4,096"]
    assert "sequences of different lengths" in table.note and "--seq-len" in table.note


def test_a_text_that_is_cut_by_tokens_is_another_with_another_tokenizer(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdefgh" * 4)

    def read(width: int, most: int) -> Read:
        tokenizer = SimpleNamespace(
            vocab_size=9, sha256=f"{width}" * 8, bos_id=1, encode=lambda text: [2] * (32 // width)
        )
        return read_of(SimpleNamespace(tokenizer=tokenizer), TextSource(text=path, max_tokens=most))

    for most, alike in ((0, True), (999, True), (10, False)):
        one, other = read(1, most), read(2, most)
        assert (one.text_hash == other.text_hash) == alike, most
        assert one.text_hash == read(1, most).text_hash
        assert one.text == (str(path) if alike else f"{path}, 10 tokens")


def test_json_has_properties_and_no_infinities():
    found = to_json(recall("slot"))
    assert found["scores"][0]["task"]["chance"] == 1 / 16
    assert to_json(Interval(1.0, float("-inf"), float("inf"))) == {
        "mean": 1.0,
        "low": None,
        "high": None,
    }


def test_figures_leave_out_what_is_not_finite():
    nan = float("nan")
    line = Series("a", [1, 2, 4, 8], [1.0, nan, 3.0, 4.0], [0.5, nan, nan, 3.0], [2, nan, nan, 5])
    svg = line_figure("n", "What is drawn", "in words", [line], (300, 200), log_x=True).svg()
    assert 'aria-label="What is drawn"' in svg and "var(--line0)" in svg and "nan" not in svg
    shares = heat_map("m", "Shares", "of 1", [[0.0, 1.0]], ["row"], ["a", "b"]).svg()
    assert all(f">{text}<" in shares for text in ("row", "a", "b", "0.00", "1.00"))
