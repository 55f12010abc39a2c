"""JSON from anybody: its values are taken exactly, or refused in one sentence."""

import json
import os
from dataclasses import dataclass, field
from typing import Any

import pytest

from gam_scale.errors import UserError, one_line
from gam_scale.files import append_regular, read_regular, write_bytes
from gam_scale.strict import apply_overrides, parse_json, read_json, read_record, shown


@dataclass
class Inner:
    name: str
    size: int = 1


@dataclass
class Record:
    count: int
    share: float | None = None
    parts: list[Inner] = field(default_factory=list)
    sums: dict[str, int] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    pair: tuple[str, float] = ("", 0.0)
    extra: dict[str, Any] = field(default_factory=dict)


def refusal(action, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    said = str(caught.value)
    assert len(said.splitlines()) == 1 and len(said) < 400, said
    said.encode()
    return said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,\n "a": 2}', 'the key "a" stands twice'),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 4301, "thousands of digits"),
        ('"\\ud800"', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("{,}", "line 1 is not valid JSON"),
        ("", "line 1 is not valid JSON"),
    ],
)
def test_json_that_no_reader_should_take(text, said, tmp_path):
    assert said in refusal(parse_json, text, "here")
    (tmp_path / "x.json").write_text(text)
    message = refusal(read_json, tmp_path / "x.json")
    assert said in message and message.startswith(str(tmp_path / "x.json"))
    if "not valid" not in said:  # an override that is not JSON is a bare word
        assert said in refusal(apply_overrides, {}, [f"a={text}"])


def test_a_pair_of_surrogates_is_a_character():
    assert parse_json('"\\ud83d\\ude00"', "here") == "\U0001f600"


def test_files_that_are_not_ordinary_are_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is a named pipe; expected a file" in refusal(read_regular, tmp_path / "pipe")
    assert "is a folder; expected a file" in refusal(read_regular, tmp_path)
    assert "is a device; expected a file" in refusal(read_regular, "/dev/zero")
    assert "is a device; expected a file" in refusal(append_regular, "/dev/null")
    assert "cannot be written" in refusal(append_regular, tmp_path / "pipe")
    assert "no such file" in refusal(read_regular, tmp_path / "none")
    assert "cannot be read: Not a directory" in refusal(read_regular, "/dev/null/x")
    assert "mem cannot be read: Input/output error" in refusal(read_regular, "/proc/self/mem")
    assert "is not a file name" in refusal(read_regular, "a\0b")
    for path in (tmp_path, tmp_path / "pipe", "/dev/null"):  # no file replaces them
        assert "expected a file" in refusal(write_bytes, path, b"x")
    (tmp_path / "long").write_bytes(b"x" * 11)
    assert "more than 10 bytes" in refusal(read_regular, tmp_path / "long", 10)
    assert read_regular(tmp_path / "long", 11) == b"x" * 11


def test_a_record_is_read_back_as_it_is(tmp_path):
    data = {
        "count": 3,
        "share": None,
        "parts": [{"name": "a", "size": 2}, {"name": "b"}],
        "sums": {"x": 1},
        "shape": [2, 3],
        "pair": ["p", 1],
        "extra": {"any": [1, {"thing": None}]},
    }
    (tmp_path / "r.json").write_text(json.dumps(data))
    record = read_record(Record, tmp_path / "r.json")
    parts = [Inner("a", 2), Inner("b")]
    expected = Record(3, None, parts, {"x": 1}, (2, 3), ("p", 1.0), data["extra"])
    assert record == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "count is missing; expected a whole number"),
        ([], "is []; expected an object"),
        (None, "is null; expected an object"),
        ({"count": 1, "more": 2}, "more is not a setting"),
        ({"count": "1"}, 'count is "1"; expected a whole number'),
        ({"count": 2**63}, "expected a whole number below 2**63"),
        ({"count": 1e30}, "expected a whole number below 2**63"),
        ({"count": 1, "share": "x"}, 'share is "x"; expected a number'),
        ({"count": 1, "share": 10**400}, "share is 1000"),
        ({"count": 1, "parts": [{"size": 1}]}, "parts[0].name is missing; expected a string"),
        ({"count": 1, "parts": {}}, "parts is {}; expected a list"),
        ({"count": 1, "sums": {"x": 0.5}}, "sums.x is 0.5; expected a whole number"),
        ({"count": 1, "shape": [1, "2"]}, 'shape[1] is "2"; expected a whole number'),
        ({"count": 1, "pair": ["a"]}, 'pair is ["a"]; expected a list'),
        ({"count": 1, "parts": [{"name": "a\0"}]}, "expected text without NUL"),
    ],
)
def test_a_record_with_anything_else_is_refused_with_its_file(tmp_path, data, said):
    (tmp_path / "r.json").write_text(json.dumps(data))
    message = refusal(read_record, Record, tmp_path / "r.json")
    assert message.startswith(str(tmp_path / "r.json")) and said in message


def test_a_value_printed_back_is_one_short_line():
    assert shown("x" * 10_000) == '"' + "x" * 56 + "..."
    assert shown({"a": [1, None]}) == '{"a": [1, null]}'
    assert one_line("a\nb\x1b[31m\ud800") == "a\\nb\\x1b[31m\\ud800"
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a list"
