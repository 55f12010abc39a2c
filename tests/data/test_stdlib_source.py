"""The standard library's own source, a corpus that every machine has."""

import pytest

from gam_scale.data import sources
from gam_scale.data.sources import StdlibSource, parse_source
from gam_scale.errors import UserError


def test_stdlib():
    corpus = StdlibSource()
    files = corpus.files()
    names = {path.name for path in files}
    assert {"argparse.py", "dataclasses.py"} <= names
    assert files == corpus.files()
    left_out = sources.STDLIB_LEFT_OUT
    root = sources.sysconfig.get_path("stdlib")
    assert not [path for path in files if left_out & set(path.relative_to(root).parts)]
    first = next(corpus.documents())
    assert first == files[0].read_text(encoding="utf-8")
    assert corpus.text_bytes > 5_000_000


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
    assert list(parse_source("python-stdlib").documents()) == ["b = 1\n", "d"]
