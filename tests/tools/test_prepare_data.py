"""The table of tools/prepare_data.py, and what it says beside it."""

import json
import re

import pytest

ROWS = [{"text": f"row {i} says the same as every other row", "n": i} for i in range(60)]


@pytest.fixture
def corpus(tmp_path):
    odd = [{"n": 60}, {"text": None}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *odd]))
    return path


def test_the_table_says_what_was_asked_and_what_is_held_out(tool, corpus, tmp_path):
    command = ("prepare_data", "--train", corpus, "--workers", 1, "--vocab-size", 290)
    refused = tool(*command, "--out", tmp_path / "set")
    assert refused.status == 2 and "line 61: no column 'text'" in refused.err
    done = tool(*command, "--out", tmp_path / "set", "--skip-bad", "--valid-fraction", 0.1)
    assert done.status == 0, done.err
    assert "1 rows without a text" in done.err and "1 bad rows or files" in done.err
    header, train, valid = done.out.splitlines()[:3]
    assert header.endswith("asked  held out")
    asked, held = re.search(r"([\d.]+)% +([\d.]+)%$", valid).groups()
    assert asked == "10" and float(held) == pytest.approx(10, rel=0.2)
    assert not train.endswith("%")
    differs = f"validation holds {held}% of the text where 10% was asked" in done.out
    assert differs == (held != asked), "no sentence where the shares differ"


def test_nothing_is_said_of_a_share_where_none_was_asked(tool, corpus, tmp_path):
    command = ("prepare_data", "--train", corpus, "--workers", 1, "--vocab-size", 290)
    done = tool(*command, "--skip-bad", "--valid-fraction", 0, "--out", tmp_path / "set")
    assert done.status == 0, done.err
    assert "asked" not in done.out and "valid" not in done.out


def test_options_of_tasks_go_with_submit(tool, corpus, tmp_path):
    command = ("prepare_data", "--train", corpus, "--out", tmp_path / "set")
    refused = tool(*command, "--cpus-per-task", 2)
    assert refused.status == 2 and "--cpus-per-task is of tasks; expected --submit" in refused.err
    pairs = ("--pairs", "--seq-len", 64, "--submit", "--cluster", "local")
    refused = tool(*command, *pairs, "--tokenizer", corpus)
    assert refused.status == 2 and not (tmp_path / "set").exists()


def test_a_template_is_in_the_place_of_a_column(tool, corpus, tmp_path):
    command = ("prepare_data", "--train", corpus, "--out", tmp_path / "set", "--template", "{text}")
    refused = tool(*command, "--text-column", "text")
    assert refused.status == 2 and "--template and --text-column are both given" in refused.err
    assert not (tmp_path / "set").exists()


def test_submit_here_makes_the_plain_set(tool, corpus, tmp_path):
    command = ("prepare_data", "--train", corpus, "--vocab-size", 290, "--skip-bad", "--workers", 1)
    plain = tool(*command, "--out", tmp_path / "plain")
    spread = tool(
        *command, "--out", tmp_path / "spread", "--submit", "--cluster", "local", "--minutes", 9
    )
    assert (plain.status, spread.status) == (0, 0), spread.err
    assert spread.out.replace("spread", "plain") == plain.out
    assert "not used there: --minutes" in spread.err and "not used" not in plain.err
    assert "MB/s a core" in spread.err and "1 bad rows or files" in spread.err
    files = [p.relative_to(tmp_path / "plain") for p in (tmp_path / "plain").rglob("*.*")]
    for name in files:
        assert (tmp_path / "spread" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
