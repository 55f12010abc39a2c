"""Sources: every format and compression, the cuts into documents, and bad input."""

import gzip
import importlib
import json
import os

import pytest

from gam_scale.data.rows import Reading
from gam_scale.data.sources import cut_at_lines, cut_wikitext, parse_source
from gam_scale.errors import UserError

TEXTS = ["first\ntext", "zweiter – Text\r\n", "  third  "]


def write(path, data: bytes):
    """Write ``data``, compressed as the suffix of ``path`` says; return ``path``."""
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


def source(spec, role="train", **options):
    return parse_source(str(spec), role, Reading(**options))


def documents(spec, **options):
    return list(source(spec, **options).documents())


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("suffix", "encode"), [(".jsonl", jsonl), (".parquet", parquet)])
def test_rows(tmp_path, suffix, encode, compression):
    rows = [TEXTS[0], "", None, " \n", *TEXTS[1:]]  # the three empty rows are no documents
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
        ("10%\r20%\n<|end|>\ntwo\rmore\r", ["10%\r20%", "two\rmore"]),
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
    # As on the hub: each line is a row, and blank lines are empty rows.
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
    assert first != source(path, separator="x").describe()
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
        (
            "a.jsonl",
            b'{"text": "x"}\n{"tex',
            "line 2 is not valid JSON.*one object a line, or --skip-bad",
        ),
        ("a.jsonl", b'["text"]\n', "line 1: no column"),
        (
            "a.jsonl",
            b'{"prompt": "a", "completion": "b"}\n',
            "expected --text-column as one of: 'prompt', 'completion', or --pairs, which reads",
        ),
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


ODD_ROWS = [
    b'{"text": "one"}\n',
    b'{"id": 2}\n',  # a row without the column
    b'{"text": null}\n',
    b'{"text": 3}\n',
    b'{"text": "\xff"}\n',
    b"[" * 100_000 + b"\n",
    b'{"text": ' + b"9" * 5000 + b"}\n",
    b'{"tex\n',
    b"null\n",
    b'{"text": "two"}\n',
]


def test_rows_unlike_the_rest_are_named_or_left_out_and_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", b"".join(ODD_ROWS))
    reason = "line 2: no column 'text', which rows before it have.*--skip-bad"
    with pytest.raises(UserError, match=reason):
        documents(path)
    corpus = source(path, skip_bad=True)
    for _ in range(2):  # each pass counts anew
        assert list(corpus.documents()) == ["one", "two"]
        assert (corpus.left_out.nulls, corpus.left_out.bad) == (1, 7)
    nulls, bad = corpus.left_out.notes()
    assert "1 rows without a text (null)" in nulls
    assert "7 bad rows or files were left out; the first:" in bad and "line 2: no column" in bad


@pytest.mark.parametrize("row", [row for row in ODD_ROWS[1:-1] if b"null}" not in row])
def test_each_bad_row_is_one_sentence(tmp_path, row):
    path = write(tmp_path / "a.jsonl", ODD_ROWS[0] + row)
    with pytest.raises(UserError, match="line 2") as error:
        documents(path)
    assert "expected" in str(error.value)


def test_files_that_cannot_be_read_are_left_out_and_counted(tmp_path):
    for name, data in {"a": b"a", "b": b"\xff", "c": b"c"}.items():
        write(tmp_path / f"{name}.txt", data)
    (tmp_path / "d.txt.gz").write_bytes(b"garbage")
    corpus = source(tmp_path, skip_bad=True)
    assert list(corpus.documents()) == ["a", "c"]
    assert corpus.left_out.bad == 2
    lines = write(tmp_path / "e.txt", b"one\n\xff\n---\ntwo\n")
    assert documents(lines, separator="---", skip_bad=True) == ["one", "two"]
    with pytest.raises(UserError, match="line 2 cannot be read as .txt"):
        documents(lines, separator="---")


@pytest.mark.parametrize(("suffix", "encode"), [(".jsonl", jsonl), (".parquet", parquet)])
def test_nested_columns(tmp_path, suffix, encode):
    rows = [{"text": "a", "n": 1}, {"text": None, "n": 2}, None, {"text": "b", "n": 3}]
    path = write(tmp_path / f"a{suffix}", encode(rows, "data"))
    corpus = source(path, text_column="data.text")
    assert list(corpus.documents()) == ["a", "b"]
    assert corpus.left_out.nulls == 2
    with pytest.raises(UserError, match="no column 'text'.*'id', 'data.text', 'data.n'"):
        documents(path)
    path = write(tmp_path / f"b{suffix}", encode(["plain"], "data.text"))
    assert documents(path, text_column="data.text") == ["plain"], "a name with a dot in it"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_a_byte_order_mark_says_the_encoding_and_is_no_text(tmp_path, encoding, compression):
    path = write(tmp_path / f"a.txt{compression}", "Größe – 漢字".encode(encoding))
    assert documents(path) == ["Größe – 漢字"]
    path = write(tmp_path / f"a.jsonl{compression}", jsonl(["x", "y"]).decode().encode(encoding))
    assert documents(path) == ["x", "y"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "UTF8"])
def test_encodings(tmp_path, encoding):
    path = write(tmp_path / "a.txt", "Größe\r\n".encode(encoding))
    assert documents(path, encoding=encoding) == ["Größe\r\n"]
    assert "encoding" in source(path, encoding=encoding).describe()
    assert "encoding" not in source(path).describe(), "older sets would no longer be the same"


@pytest.mark.parametrize("encoding", ["klingon", "rot13", "a\0b"])
def test_unknown_encodings_are_refused(encoding):
    with pytest.raises(UserError, match="--encoding .*is unknown"):
        Reading(encoding=encoding)


def test_what_is_not_read_in_a_folder_is_said(tmp_path, capsys):
    for name in ("a.txt", "b.md", "c.md", "below/d.pdf", "LICENSE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, b"text")
    os.mkfifo(tmp_path / "pipe.txt")
    assert documents(tmp_path) == ["text"]
    said = capsys.readouterr().err
    assert "5 files are not read (2 .md" in said and "1 .pdf" in said and "1 .txt" in said
    assert ".txt, .jsonl, .parquet or .arrow files" in said


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.parquet"])
def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is a named pipe; expected a file"):
        documents(tmp_path / name)


def test_what_save_to_disk_wrote(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {"text": [f"text {i}" for i in range(5)], "data": [{"text": f"{i}"} for i in range(5)]}
    whole = datasets.Dataset.from_dict(rows)
    whole.save_to_disk(tmp_path / "one", num_shards=2)
    assert documents(tmp_path / "one") == rows["text"]
    assert documents(tmp_path / "one", text_column="data.text") == list("01234")
    assert documents(next((tmp_path / "one").glob("*.arrow"))) == rows["text"][:3]
    splits = datasets.DatasetDict(train=whole, validation=whole.select(range(3, 4)))
    splits.save_to_disk(tmp_path / "dict")
    assert documents(tmp_path / "dict") == rows["text"]
    assert documents(tmp_path / "dict", role="valid") == ["text 3"]
    with pytest.raises(UserError, match="no split 'test'; expected the folder of .*validation"):
        documents(tmp_path / "dict", role="test")
    (tmp_path / "one" / "state.json").write_text("[]")
    with pytest.raises(UserError, match=r"state\.json: names no data files"):
        documents(tmp_path / "one")


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


def test_names_that_are_not_utf8(tmp_path):
    """A glob may find such a file, but no source may have such a name: the manifest stores it."""
    (tmp_path / "a\udcff.txt").write_bytes(b"text")
    source = parse_source(str(tmp_path / "*.txt"))
    assert list(source.documents()) == ["text"]
    json.dumps(source.describe()).encode()
    with pytest.raises(UserError, match="has bytes that are not UTF-8"):
        parse_source(str(tmp_path / "a\udcff.txt"))


@pytest.mark.parametrize(("suffix", "compression"), [(".jsonl", ""), (".parquet", ".gz")])
def test_a_template_makes_one_text_of_several_columns(tmp_path, suffix, compression):
    rows = [{"title": "One", "data": {"text": "first"}, "n": 3}]
    rows += [{"title": None, "data": {"text": "second"}, "n": 4}]
    rows += [{"title": "Three", "data": {"text": "third\n"}, "n": 5}]
    if suffix == ".jsonl":
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        pyarrow = pytest.importorskip("pyarrow")
        sink = pyarrow.BufferOutputStream()
        table = pyarrow.Table.from_pylist(rows)
        importlib.import_module("pyarrow.parquet").write_table(table, sink)
        content = sink.getvalue().to_pybytes()
    path = write(tmp_path / f"a{suffix}{compression}", content)
    template = r"# {title} {{{n}}}\n\n{data.text}"
    assert documents(path, template=template) == [
        "# One {3}\n\nfirst",
        "# Three {5}\n\nthird\n",
    ]
    assert source(path, template=template).describe()["template"] == template
    with pytest.raises(UserError, match="no column 'name'; expected --template .*title"):
        documents(path, template="{name} {title}")
    with pytest.raises(UserError, match=r"column 'data' holds dict; expected text \(--template"):
        documents(path, template="{title} {data}")
    with pytest.raises(UserError, match="has a brace without its other one"):
        documents(path, template="{title} {data.text")
    with pytest.raises(UserError, match="has no column; expected names of columns"):
        documents(path, template="text {{}}")
