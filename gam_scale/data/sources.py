"""Where text comes from: files, Hugging Face datasets, the Python standard library.

A source is something with ``documents()``, an iterator of the same texts in the same order every
time, and ``describe()``, a JSON-ready account of it that changes when its texts do.
"""

import glob
import gzip
import hashlib
import importlib
import io
import json
import os
import platform
import re
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Protocol

from gam_scale.errors import UserError

FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".zst")
EXPECTED_FILES = ".txt, .jsonl or .parquet files, plain or with .gz or .zst"
HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
WIKITEXT = "wikitext"
# ` = Title = ` opens an article; ` = = Section = = ` does not.
WIKITEXT_TITLE = re.compile(r" = (?!= ).* = \r?\n?")
STDLIB_LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings"
}  # fmt: skip


class Source(Protocol):
    """Documents in a fixed order."""

    def documents(self) -> Iterator[str]: ...

    def describe(self) -> dict[str, Any]: ...

    @property
    def text_bytes(self) -> int | None:
        """About how much text there is, where that is known without reading it."""


def parse_source(
    spec: str, role: str = "train", text_column: str = "text", separator: str | None = None
) -> Source:
    """The source that ``spec`` names.

    Args:
        spec: ``python-stdlib``, ``hf:NAME[:CONFIG[:SPLIT]]``, or a file, a folder or a glob.
        role: the split it is for, ``train``, ``valid`` or ``test``; a hub dataset's split of that
            name is read where ``spec`` names none.
        text_column: which column of .jsonl, .parquet and hub datasets holds the text.
        separator: None: a .txt file, or a row, is one document. Otherwise their lines are running
            text: ``wikitext`` cuts it by :func:`cut_wikitext`, any other by :func:`cut_at_lines`.

    Raises:
        UserError: no file matches, or a file's kind is unknown.
    """
    if spec == "python-stdlib":
        return StdlibSource()
    if spec.startswith("hf:"):
        parts = spec.split(":")[1:]
        if not parts[0] or len(parts) > 3:
            raise UserError(f"{spec!r} is not a dataset; expected hf:NAME[:CONFIG[:SPLIT]]")
        name, config, split = (*parts, "", "")[:3]
        return HubSource(name, config or None, split or HUB_SPLITS[role], text_column, separator)
    return FileSource(spec, _find_files(spec), text_column, separator)


@dataclass(frozen=True)
class FileSource:
    """Local files, in the order of their names."""

    spec: str
    files: tuple[Path, ...]
    text_column: str = "text"
    separator: str | None = None

    def documents(self) -> Iterator[str]:
        for path in self.files:
            with _blamed_on(path):
                yield from _documents(self._records(path), self.separator)

    def describe(self) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        for path in self.files:
            stat = path.stat()
            digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
            size += stat.st_size
        return {
            "kind": "files",
            "spec": self.spec,
            "text_column": self.text_column,
            "separator": self.separator,
            "files": len(self.files),
            "bytes": size,
            "sha256_of_names_sizes_times": digest.hexdigest(),
        }

    @property
    def text_bytes(self) -> int | None:
        if all(path.suffix in (".txt", ".jsonl") for path in self.files):
            return sum(path.stat().st_size for path in self.files)
        return None

    def _records(self, path: Path) -> Iterator[str]:
        """A file's rows; those of a .txt are its lines where they are to be cut, else it is one."""
        kind = _format(path)
        if kind == ".parquet":
            yield from _parquet_rows(path, self.text_column)
        elif kind == ".jsonl":
            with _open(path) as file:
                yield from _json_rows(path, file, self.text_column)
        else:
            # newline="" keeps "\r\n": what is tokenised is what the file holds.
            with _open(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
                yield from text if self.separator else (text.read(),)


@dataclass(frozen=True)
class HubSource:
    """A Hugging Face dataset, streamed; nothing but its small metadata is kept on disk."""

    name: str
    config: str | None
    split: str
    text_column: str = "text"
    separator: str | None = None

    def documents(self) -> Iterator[str]:
        return _documents(self._rows(), self.separator)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "hub",
            "name": self.name,
            "config": self.config,
            "split": self.split,
            "text_column": self.text_column,
            "separator": self.separator,
        }

    text_bytes = None

    def _rows(self) -> Iterator[str]:
        where = ":".join(filter(None, ["hf", self.name, self.config, self.split]))
        datasets = _import_for(where, "datasets")
        try:
            rows = datasets.load_dataset(self.name, self.config, split=self.split, streaming=True)
            for row in rows:
                yield from _text_of(row, self.text_column, where)
        except UserError:
            raise
        except Exception as error:  # the hub's client raises what its many transports raise
            reason = next(iter(str(error).splitlines()), "")
            raise UserError(
                f"{where}: cannot be loaded ({type(error).__name__}: {reason}); expected a dataset "
                "that datasets.load_dataset finds, and a network or a local copy"
            ) from None


@dataclass(frozen=True)
class StdlibSource:
    """The Python standard library's own source, code and docstrings: text every machine has.

    Every ``.py`` below ``sysconfig.get_path("stdlib")``, one document each, by relative path,
    without tests, installed packages and ``encodings`` (generated character tables); files that are
    not UTF-8 are skipped. CPython 3.11: 609 documents, 10.7 MB. It differs a little between Python
    versions: a corpus to try things on, not one to compare results by.
    """

    def documents(self) -> Iterator[str]:
        for path in self.files():
            try:
                text = path.read_bytes().decode()
            except (OSError, UnicodeDecodeError):
                continue
            if text.strip():
                yield text

    def describe(self) -> dict[str, Any]:
        return {"kind": "python-stdlib", "python": platform.python_version()}

    @property
    def text_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files())

    @staticmethod
    def files() -> list[Path]:
        root = sysconfig.get_path("stdlib")
        found = []
        for folder, below, names in os.walk(root):
            below[:] = [name for name in below if name not in STDLIB_LEFT_OUT]
            found += [os.path.join(folder, name) for name in names if name.endswith(".py")]
        if not found:
            raise UserError(f"python-stdlib: no .py file below {root}; expected Python's sources")
        return [Path(path) for path in sorted(found, key=lambda path: path.split(os.sep))]


def cut_at_lines(lines: Iterable[str], separator: str) -> Iterator[str]:
    """Cut running text at each line that is ``separator``, which is in no document.

    Line breaks around a separator go with it; a line given without its line break gets one.
    """
    document: list[str] = []
    for line in chain(lines, [separator]):
        if line.rstrip("\r\n") == separator:
            yield "".join(document).strip("\r\n")
            document = []
        else:
            document.append(line if line.endswith("\n") else line + "\n")


def cut_wikitext(lines: Iterable[str]) -> Iterator[str]:
    """Cut WikiText into its articles, each from its `` = Title = `` line; no character is dropped.

    The title has a blank line before and after it: without that test a list item of WikiText-2 is
    taken for one. A line given without its line break (a hub dataset's row) gets one.
    """
    document: list[str] = []
    for line in lines:
        document.append(line if line.endswith("\n") else line + "\n")
        before, title, after = document[-3:] if len(document) > 3 else ("x", "x", "x")
        if WIKITEXT_TITLE.fullmatch(title) and before.isspace() and after.isspace():
            yield "".join(document[:-2])
            document = [title, after]
    yield "".join(document)


def _documents(records: Iterable[str], separator: str | None) -> Iterator[str]:
    if separator == WIKITEXT:
        texts = cut_wikitext(records)
    else:
        texts = cut_at_lines(records, separator) if separator else records
    return (text for text in texts if text and not text.isspace())


def _find_files(spec: str) -> tuple[Path, ...]:
    if os.path.isdir(spec):
        found = [path for path in Path(spec).rglob("*") if path.is_file() and _format(path)]
    elif os.path.exists(spec):  # before glob, for names with brackets in them
        found = [Path(spec)]
    else:
        found = [Path(path) for path in glob.glob(spec, recursive=True) if os.path.isfile(path)]
    if not found:
        raise UserError(
            f"{spec}: no file matches; expected {EXPECTED_FILES}, a folder of them, a glob, "
            "hf:NAME or python-stdlib"
        )
    for path in found:
        if _format(path) is None:
            raise UserError(f"{path}: unknown kind of file; expected {EXPECTED_FILES}")
    return tuple(sorted(found))


def _format(path: Path) -> str | None:
    """``.txt``, ``.jsonl`` or ``.parquet``, whatever the file is compressed with."""
    suffixes = path.suffixes[-2:] if path.suffix in COMPRESSIONS else path.suffixes[-1:]
    return suffixes[0] if suffixes and suffixes[0] in FORMATS else None


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zst":
        pyarrow = _import_for(path, "pyarrow")
        return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
    return open(path, "rb")


def _json_rows(path: Path, file: IO[bytes], column: str) -> Iterator[str]:
    for number, line in enumerate(io.TextIOWrapper(file, "utf-8"), 1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}: line {number} is not JSON ({error.msg}); expected one object a line"
            ) from None
        for text in _text_of(row, column, f"{path}: line {number}"):
            # JSON can spell half a surrogate pair, which no encoding of text can hold.
            halves = "\\u" in line
            yield _mend_surrogates(text) if halves else text


def _mend_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _parquet_rows(path: Path, column: str) -> Iterator[str]:
    parquet = _import_for(path, "pyarrow.parquet")
    with _open(path) as file:
        seekable = io.BytesIO(file.read()) if path.suffix in COMPRESSIONS else file
        table = parquet.ParquetFile(seekable)
        names = table.schema_arrow.names
        if column not in names:
            raise _no_column(path, column, names)
        for batch in table.iter_batches(batch_size=1024, columns=[column]):
            for text in batch.column(0).to_pylist():
                yield from _text_of({column: text}, column, path)


def _text_of(row: Any, column: str, where: str | Path) -> Iterator[str]:
    """The row's text; nothing where it is null."""
    if not isinstance(row, dict) or column not in row:
        raise _no_column(where, column, row if isinstance(row, dict) else [])
    text = row[column]
    if text is None:
        return
    if not isinstance(text, str):
        raise UserError(
            f"{where}: column {column!r} holds {type(text).__name__}; expected text "
            "(--text-column names the column)"
        )
    yield text


def _no_column(where: str | Path, column: str, names: Iterable[str]) -> UserError:
    found = ", ".join(map(repr, names)) or "none"
    return UserError(f"{where}: no column {column!r}; expected --text-column as one of: {found}")


def _import_for(where: str | Path, module: str) -> ModuleType:
    """Import what only some sources need and a plain installation lacks."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{where}: needs the package {module.partition('.')[0]}; "
            "pip install 'gam-scale[hub]' brings it"
        ) from None


@contextmanager
def _blamed_on(path: Path) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into a UserError that names it."""
    try:
        yield
    except (EOFError, OSError, ValueError, zlib.error) as error:  # Arrow's and UTF-8's included
        raise UserError(
            f"{path}: cannot be read as {_format(path)} ({error}); expected an undamaged file in "
            "UTF-8"
        ) from None
