"""A report replaces its own files, and no others."""

import errno
import json
import os
from pathlib import Path

import pytest

from gam_scale.errors import UserError
from gam_scale.scaling.report_folder import ReportFolder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_earlier_reports_files_go_and_others_stay(tmp_path) -> None:
    out = tmp_path / "deep" / "out"
    first = {"report.html": b"1", "curves-0.png": b"2", "curves-1.png": b"3", "law.csv": b"4"}
    written = ReportFolder(out).replace(first, {"E": 1})
    assert [path.name for path in written] == ["fit.json", *first]
    (out / "notes.txt").write_text("mine")
    (out / "curves-1.png").write_text("also mine now")
    ReportFolder(out).replace({"report.html": b"5"}, {"E": 2})
    assert names(out) == {"fit.json", "report.html", "notes.txt", "curves-1.png"}
    assert (out / "report.html").read_bytes() == b"5"
    assert list(json.loads((out / "fit.json").read_text())["files"]) == ["report.html"]


@pytest.mark.parametrize("name", ["law.csv", "curves-1.png", "fit.json"])
def test_no_input_is_replaced_or_removed(tmp_path, name) -> None:
    """An input may be a file that the report would write or wrote earlier, or a link to one."""
    files = {"law.csv": b"1"}
    ReportFolder(tmp_path).replace({**files, "curves-1.png": b"2"}, {})
    link = tmp_path.with_suffix(".link")
    link.symlink_to(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    for given in (tmp_path / name, link):
        folder = ReportFolder(tmp_path, [given, tmp_path / "gone"])
        if name == "curves-1.png":
            folder.replace(files, {})
        else:
            with pytest.raises(UserError, match="would replace .*, which the report is made of"):
                folder.replace(files, {})
        assert (tmp_path / name).read_bytes() == before


def test_nothing_is_replaced_where_something_cannot_be(tmp_path, monkeypatch) -> None:
    """A folder stands in the place of the last file, the disk is full, or --out is below a file."""
    write = Path.write_bytes

    def fail(path: Path, data: bytes) -> int:
        if data == b"large":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", fail)
    ReportFolder(tmp_path).replace({"a": b"old", "b": b"old"}, {})
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="c is not a file"):
        ReportFolder(tmp_path).replace({"a": b"new", "c": b"new"}, {})
    (tmp_path / "c").rmdir()
    with pytest.raises(UserError, match="cannot be written: No space left"):
        ReportFolder(tmp_path).replace({"a": b"new", "c": b"large"}, {})
    assert names(tmp_path) == {"fit.json", "a", "b"}
    assert (tmp_path / "a").read_bytes() == b"old"
    with pytest.raises(UserError, match="is not a folder"):
        ReportFolder(tmp_path / "a" / "out").check(["b"])


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": {"../kept": "0"}}'])
def test_a_strange_fit_json_names_nothing_to_remove(tmp_path, text) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "kept").write_text("mine")
    (out / "fit.json").write_text(text)
    ReportFolder(out).replace({"a": b"1"}, {})
    assert (tmp_path / "kept").exists() and names(out) == {"fit.json", "a"}
