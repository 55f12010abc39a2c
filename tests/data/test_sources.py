"""Sources: every format and compression, the cuts into documents, and bad input."""

import gzip
import importlib
import json
import sys
import types

import pytest

from gam_scale.data import sources
from gam_scale.data.sources import StdlibSource, cut_at_lines, cut_wikitext, parse_source
from gam_scale.errors import UserError

TEXTS = ["first\ntext", "zweiter – Text\r\n", "  third  "]


def write(path, data: bytes):
    """Write ``data``, compressed as the name says."""
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        pyarrow = pytest.importorskip("pyarrow")
        data = pyarrow.compress(data, "zstd", asbytes=True)
    path.write_bytes(data)
    return path


def jsonl(texts, column="text") -> bytes:
    return "".join(json.dumps({"id": 1, column: text}) + "\n" for text in texts).encode()


def parquet(texts, column="text") -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"id": [1] * len(texts), column: texts}), sink)
    return sink.getvalue().to_pybytes()


def documents(spec, **options):
    return list(parse_source(str(spec), **options).documents())


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("suffix", "encode"), [(".jsonl", jsonl), (".parquet", parquet)])
def test_rows(tmp_path, suffix, encode, compression):
    rows = [TEXTS[0], "", None, " \n", *TEXTS[1:]]  # nothing in the middle is a document
    path = write(tmp_path / f"a{suffix}{compression}", encode(rows, "body"))
    assert documents(path, text_column="body") == TEXTS


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_a_text_file_is_a_document(tmp_path, compression):
    for i, text in enumerate(TEXTS):
        write(tmp_path / f"{i}.txt{compression}", text.encode())
    write(tmp_path / f"3.txt{compression}", b"\n \n")
    assert documents(tmp_path / f"*.txt{compression}") == TEXTS
    assert documents(tmp_path) == TEXTS


def test_order_is_by_name_over_folders(tmp_path):
    for name in ("b/1.txt", "a/2.txt", "a/10.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, name.encode())
    write(tmp_path / "readme.md", b"not a text of the corpus")
    assert documents(tmp_path) == ["a/10.txt", "a/2.txt", "b/1.txt"]
    assert documents(tmp_path / "**" / "*.txt") == ["a/10.txt", "a/2.txt", "b/1.txt"]


def test_names_with_brackets_are_no_glob(tmp_path):
    path = write(tmp_path / "part [1].txt", b"text")
    assert documents(path) == ["text"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\nmore\n<|end|>\ntwo\n<|end|>\n", ["one\nmore", "two"]),
        ("one\r\n<|end|>\r\ntwo", ["one", "two"]),
        ("<|end|>\n\n\n<|end|>\n", []),
        ("a <|end|> inside a line\n", ["a <|end|> inside a line"]),
        ("", []),
    ],
)
def test_separator_lines(tmp_path, text, expected):
    path = write(tmp_path / "a.txt", text.encode())
    assert documents(path, separator="<|end|>") == expected


ARTICLES = [
    " \n = One = \n \n text \n = = Section = = \n \n text = \n \n",
    " = Two = \n \n an item \n = not a title = \n text \n \n = neither = \n text \n \n",
    " = Three = \n \n",
]


def test_wikitext_articles(tmp_path):
    path = write(tmp_path / "a.txt", "".join(ARTICLES).encode())
    assert documents(path, separator="wikitext") == ARTICLES
    # As the hub has it: a line a row, blank ones empty.
    rows = [line.rstrip("\n") for line in "".join(ARTICLES).splitlines()]
    path = write(tmp_path / "a.jsonl", jsonl("" if row == " " else row for row in rows))
    found = documents(path, separator="wikitext")
    assert [len(text.splitlines()) for text in found] == [8, 9, 2]


@pytest.mark.parametrize("lines", [[], ["\n"], [" = A = \n"], [" \n", " = A = \n", " \n"]])
def test_wikitext_drops_nothing(lines):
    assert "".join(cut_wikitext(lines)) == "".join(lines)


def test_separator_may_be_missing():
    assert list(cut_at_lines(["a\n", "b"], "---")) == ["a\nb"]


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a \\ud83e\\uddd0 b \\ud83e c"}\n')
    assert documents(path) == ["a 🧐 b \ufffd c"]


def test_description_changes_with_the_files(tmp_path):
    path = write(tmp_path / "a.txt", b"text")
    first = parse_source(str(path)).describe()
    assert first == parse_source(str(path)).describe()
    assert json.loads(json.dumps(first)) == first
    assert first != parse_source(str(path), separator="x").describe()
    write(path, b"longer text")
    assert first != parse_source(str(path)).describe()


def test_size_is_known_for_plain_text(tmp_path):
    write(tmp_path / "a.txt", b"text")
    assert parse_source(str(tmp_path)).text_bytes == 4
    write(tmp_path / "b.txt.gz", b"text")
    assert parse_source(str(tmp_path)).text_bytes is None


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jsonl", jsonl(["x"], "body"), "line 1: no column 'text'.*'id', 'body'"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: column 'text' holds int"),
        ("a.jsonl", b'{"text": "x"}\n{"tex', "line 2 is not JSON"),
        ("a.jsonl", b'["text"]\n', "line 1: no column"),
        ("a.jsonl", b'{"text": "\xff"}\n', "cannot be read as .jsonl"),
        ("a.txt", b"abc\xff", "cannot be read as .txt"),
    ],
)
def test_bad_content_is_named(tmp_path, name, data, reason):
    path = write(tmp_path / name, data)
    with pytest.raises(UserError, match=reason) as error:
        documents(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.parquet", "a.parquet.gz"])
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_damaged_files_are_named(tmp_path, name, damage):
    pytest.importorskip("pyarrow")
    texts = [f"line {i} {i * i}" for i in range(1000)]
    path = write(tmp_path / name, parquet(texts) if "parquet" in name else jsonl(texts))
    path.write_bytes(path.read_bytes()[:-100] if damage == "cut" else b"garbage\n" * 100)
    with pytest.raises(UserError, match="cannot be read") as error:
        documents(path)
    assert str(path) in str(error.value)


def test_missing_parquet_column(tmp_path):
    path = write(tmp_path / "a.parquet", parquet(["x"], "body"))
    with pytest.raises(UserError, match="no column 'text'.*'id', 'body'"):
        documents(path)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("{}/nothing.txt", "no file matches"),
        ("{}/*.txt", "no file matches"),
        ("{}", "no file matches"),
        ("{}/a.docx", "unknown kind of file"),
        ("hf:", "expected hf:NAME"),
        ("hf:a:b:c:d", "expected hf:NAME"),
    ],
)
def test_bad_specs(tmp_path, spec, reason):
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(UserError, match=reason):
        parse_source(spec.format(tmp_path))


class Hub:
    """Stands for the package ``datasets``."""

    def __init__(self, rows):
        self.rows, self.calls = rows, []

    def load_dataset(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        if isinstance(self.rows, Exception):
            raise self.rows
        return iter(self.rows)


def use_hub(monkeypatch, rows):
    hub = Hub(rows)
    module = types.SimpleNamespace(load_dataset=hub.load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return hub


def test_hub(monkeypatch):
    hub = use_hub(monkeypatch, [{"text": "a"}, {"text": ""}, {"text": "b"}])
    assert documents("hf:own/er") == ["a", "b"]
    assert documents("hf:own/er:config", role="valid") == ["a", "b"]
    assert documents("hf:own/er::dev", role="valid") == ["a", "b"]
    assert [(args, kwargs["split"]) for args, kwargs in hub.calls] == [
        (("own/er", None), "train"),
        (("own/er", "config"), "validation"),
        (("own/er", None), "dev"),
    ]
    assert all(kwargs["streaming"] for _, kwargs in hub.calls)


def test_hub_failures(monkeypatch):
    use_hub(monkeypatch, ConnectionError("no route to the hub\nand much more"))
    with pytest.raises(UserError, match="hf:x:train: cannot be loaded .*no route to the hub"):
        documents("hf:x")
    use_hub(monkeypatch, [{"body": "a"}])
    with pytest.raises(UserError, match="no column 'text'.*'body'"):
        documents("hf:x")
    monkeypatch.setitem(sys.modules, "datasets", None)  # how Python marks what is not there
    with pytest.raises(UserError, match=r"needs the package datasets; pip install 'gam-scale\[hub"):
        documents("hf:x")


def test_stdlib():
    source = StdlibSource()
    files = source.files()
    names = {path.name for path in files}
    assert {"argparse.py", "dataclasses.py"} <= names
    assert files == source.files()
    left_out = sources.STDLIB_LEFT_OUT
    root = sources.sysconfig.get_path("stdlib")
    assert not [path for path in files if left_out & set(path.relative_to(root).parts)]
    first = next(source.documents())
    assert first == files[0].read_text(encoding="utf-8")
    assert source.text_bytes > 5_000_000


def test_stdlib_skips_what_is_not_utf8(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(UserError, match="no .py file below"):
        list(StdlibSource().documents())
    for name, data in {
        "b.py": b"b = 1\n",
        "a.py": b"\xff",
        "c/d.py": b"d",
        "test/e.py": b"e",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert documents("python-stdlib") == ["b = 1\n", "d"]
