"""Sources of documents: files, Hugging Face datasets, the Python standard library, token files.

A source has ``documents()``, which iterates over the same documents in the same order every time,
and ``describe()``, a JSON-ready account that changes when the documents do (but for a Hugging Face
dataset, which is taken to stay as it is).
"""

import glob
import os
import platform
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from gam_scale.data.conversation import Conversation
from gam_scale.data.documents import Document, files_fingerprint
from gam_scale.data.rows import (
    LeftOut,
    Reading,
    Row,
    file_rows,
    format_of,
    import_for,
    kept,
)
from gam_scale.data.tokens import INDEX, SUFFIXES, TokenReading, TokenSource, is_tokens
from gam_scale.errors import UserError
from gam_scale.files import open_regular
from gam_scale.strict import is_text, read_json, read_record

EXPECTED_FILES = (
    ".txt, .jsonl, .parquet or .arrow files, plain or with .gz or .zst, or tokens in .bin or .npy"
)
SAVED_DATASET, SAVED_SPLITS = "state.json", "dataset_dict.json"  # of Dataset.save_to_disk
HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
WIKITEXT = "wikitext"
# ` = Title = ` opens an article; ` = = Section = = ` does not.
WIKITEXT_TITLE = re.compile(r" = (?!= ).* = \r?\n?")
STDLIB_LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings"
}  # fmt: skip


class Source(Protocol):
    """Documents in a fixed order."""

    def documents(self) -> Iterator[Document]: ...

    def describe(self) -> dict[str, Any]: ...

    @property
    def left_out(self) -> LeftOut:
        """What the latest pass over the documents left out."""

    @property
    def text_bytes(self) -> int | None:
        """About how many bytes of text there are; None if only reading them would tell."""


def parse_source(
    spec: str,
    role: str = "train",
    how: Reading | None = None,
    tokens: TokenReading | None = None,
) -> Source:
    """Return the source that ``spec`` names.

    Args:
        spec: ``python-stdlib``, ``hf:NAME[:CONFIG[:SPLIT]]``, or a file, a folder or a glob.
        role: the split that the source is for, ``train``, ``valid`` or ``test``; a dataset's own
            split for that role (:data:`HUB_SPLITS`) is read if ``spec`` names none.
        how: how rows are read. The separator ``wikitext`` cuts running text into documents by
            :func:`cut_wikitext`, any other by :func:`cut_at_lines`.
        tokens: how files of token ids are read.

    Raises:
        UserError: no file matches, a file's kind is unknown, or the name is not UTF-8.
    """
    how = how or Reading()
    if not is_text(spec):
        raise UserError(f"--{role} {spec} has bytes that are not UTF-8; expected a name in UTF-8")
    if spec == "python-stdlib":
        return StdlibSource()
    if spec.startswith("hf:"):
        parts = spec.split(":")[1:]
        if not parts[0] or len(parts) > 3:
            raise UserError(f"{spec!r} is not a dataset; expected hf:NAME[:CONFIG[:SPLIT]]")
        name, config, split = (*parts, "", "")[:3]
        return HubSource(name, config or None, split or HUB_SPLITS[role], how)
    if paths := _find_tokens(spec):
        return TokenSource(spec, paths, tokens or TokenReading())
    return FileSource(spec, _find_files(spec, role), how)


@dataclass(frozen=True)
class FileSource:
    """Local files, read in the order of ``files``."""

    spec: str
    files: tuple[Path, ...]
    how: Reading = Reading()
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    def documents(self) -> Iterator[str | Conversation]:
        self.left_out.clear()
        for path in self.files:
            rows = kept(file_rows(path, self.how), self.how.skip_bad, self.left_out)
            try:
                yield from _documents(rows, self.how.separator)
            except UserError as error:
                if not self.how.skip_bad:
                    raise
                self.left_out.add(error)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "files",
            "spec": self.spec,
            **self.how.describe(),
            **files_fingerprint(self.files),
        }

    @property
    def text_bytes(self) -> int | None:
        if not self.how.pairs and all(path.suffix in (".txt", ".jsonl") for path in self.files):
            return sum(path.stat().st_size for path in self.files)
        return None


@dataclass(frozen=True)
class HubSource:
    """A Hugging Face dataset, streamed; nothing but its small metadata is kept on disk.

    ``piece`` (n, i) limits it to run i, counted from 0, of its files cut into n runs of similar
    length; None is all files.
    """

    name: str
    config: str | None
    split: str
    how: Reading = Reading()
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)
    piece: tuple[int, int] | None = None

    def documents(self) -> Iterator[str | Conversation]:
        self.left_out.clear()
        rows = kept(self._rows(), self.how.skip_bad, self.left_out)
        return _documents(rows, self.how.separator)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "hub",
            "name": self.name,
            "config": self.config,
            "split": self.split,
            **self.how.describe(),
        }

    text_bytes = None

    def pieces(self) -> "list[HubSource]":
        """Return a source for each file, or one for all if documents may reach across files."""
        with self._loaded() as rows:
            count = 1 if self.how.separator else rows.num_shards
        return [replace(self, piece=(count, i), left_out=LeftOut()) for i in range(count)]

    def _rows(self) -> Iterator[Row]:
        where = self._where
        with self._loaded() as rows:
            if self.piece is not None and self.piece[0] > 1:
                rows = rows.shard(*self.piece)
                where = f"{where}: file {self.piece[1] + 1} of {self.piece[0]}"
            is_first = True
            for number, row in enumerate(rows, 1):
                text = self.how.text_of(row, f"{where}: row {number}", is_first=is_first)
                is_first = is_first and isinstance(text, UserError)
                yield text

    @property
    def _where(self) -> str:
        return ":".join(filter(None, ["hf", self.name, self.config, self.split]))

    @contextmanager
    def _loaded(self) -> Iterator[Any]:
        """Open the dataset to be read inside; turn whatever its client raises into a UserError."""
        datasets = import_for(self._where, "datasets")
        try:
            yield datasets.load_dataset(self.name, self.config, split=self.split, streaming=True)
        except Exception as error:  # the hub's client raises what its many transports raise
            reason = next(iter(str(error).splitlines()), "")
            raise UserError(
                f"{self._where}: cannot be loaded ({type(error).__name__}: {reason}); expected a "
                "dataset that datasets.load_dataset finds, and a network or a local copy"
            ) from None


@dataclass(frozen=True)
class StdlibSource:
    """The Python standard library's own source, code and docstrings: text every machine has.

    Every ``.py`` below ``sysconfig.get_path("stdlib")``, one document each, by relative path,
    without tests, installed packages and ``encodings`` (generated character tables); files that are
    not UTF-8 are skipped. CPython 3.11: 609 documents, 10.7 MB. It differs a little between Python
    versions: a corpus to try things on, not one to compare results by.
    """

    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

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
        scripts = []
        for folder, below, names in os.walk(root):
            below[:] = [name for name in below if name not in STDLIB_LEFT_OUT]
            scripts += [os.path.join(folder, name) for name in names if name.endswith(".py")]
        if not scripts:
            raise UserError(f"python-stdlib: no .py file below {root}; expected Python's sources")
        return [Path(path) for path in sorted(scripts, key=lambda path: path.split(os.sep))]


def cut_at_lines(lines: Iterable[str], separator: str) -> Iterator[str]:
    """Cut running text into documents at each line that is ``separator``, and drop these lines.

    Line breaks around a separator are dropped too; a line given without its line break gets one.
    """
    document: list[str] = []
    for line in chain(lines, [separator]):
        if line.rstrip("\r\n") == separator:
            yield "".join(document).strip("\r\n")
            document = []
        else:
            document.append(_ended(line))


def cut_wikitext(lines: Iterable[str]) -> Iterator[str]:
    """Cut WikiText into articles, each from its `` = Title = `` line on; drop no character.

    A title must have a blank line before and after it; without that test, a list item of WikiText-2
    would count as a title. A line given without its line break (a hub dataset's row) gets one.
    """
    document: list[str] = []
    for line in lines:
        document.append(_ended(line))
        before, title, after = document[-3:] if len(document) > 3 else ("x", "x", "x")
        if WIKITEXT_TITLE.fullmatch(title) and before.isspace() and after.isspace():
            yield "".join(document[:-2])
            document = [title, after]
    yield "".join(document)


def _ended(line: str) -> str:
    """Return the line with the line break that it has, or else with a new one."""
    return line if line.endswith(("\n", "\r")) else line + "\n"


def _documents(
    records: Iterable[str | Conversation], separator: str | None
) -> Iterator[str | Conversation]:
    texts = records
    if separator:
        lines = (record for record in records if isinstance(record, str))
        texts = cut_wikitext(lines) if separator == WIKITEXT else cut_at_lines(lines, separator)
    return (text for text in texts if not isinstance(text, str) or (text and not text.isspace()))


def _find_tokens(spec: str) -> tuple[Path, ...]:
    """Return the token files, or folder of MDS shards, that ``spec`` means; none if it is text."""
    if os.path.exists(spec):
        return (Path(spec),) if is_tokens(Path(spec)) else ()
    paths = [Path(path) for path in glob.glob(spec, recursive=True)]
    return tuple(sorted(paths)) if paths and all(map(is_tokens, paths)) else ()


def _find_files(spec: str, role: str) -> tuple[Path, ...]:
    if os.path.isdir(spec):
        return _files_of_folder(Path(spec), role)
    if os.path.exists(spec):  # before glob, for names with brackets in them
        paths = [Path(spec)]
    else:
        paths = [Path(path) for path in glob.glob(spec, recursive=True) if os.path.isfile(path)]
    if not paths:
        raise _no_file(spec)
    for path in paths:
        if format_of(path) is None:
            raise UserError(f"{path}: unknown kind of file; expected {EXPECTED_FILES}")
        open_regular(path).close()  # raises now what the first pass would raise
    return tuple(sorted(paths))


def _files_of_folder(folder: Path, role: str) -> tuple[Path, ...]:
    if (folder / SAVED_SPLITS).exists():
        return _files_of_folder(_saved_split(folder, HUB_SPLITS[role]), role)
    if (folder / SAVED_DATASET).exists():
        return _saved_files(folder)
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    readable = sorted(path for path in files if path.is_file() and format_of(path))
    if not readable:
        raise _no_text(folder, files)
    if ignored := Counter(path.suffix or "no suffix" for path in set(files) - set(readable)):
        kinds = ", ".join(f"{number} {kind}" for kind, number in ignored.most_common(5))
        print(
            f"{folder}: {ignored.total():,} files are not read ({kinds}); {EXPECTED_FILES} are",
            file=sys.stderr,
        )
    return tuple(readable)


def _no_text(folder: Path, files: list[Path]) -> UserError:
    """Return the error for a folder without text; if it has tokens, say how to name those."""
    if found := next((p for p in sorted(files) if p.suffix in SUFFIXES), None):
        return UserError(
            f"{folder}: has no text, but tokens; expected a glob of their files, as "
            f"'{found.parent}/*{found.suffix}'"
        )
    inner = sorted({path.parent for path in files if path.name == INDEX})
    if found := next(filter(is_tokens, inner), None):
        return UserError(
            f"{folder}: has no text, but MDS shards of tokens below it; expected their own folder, "
            f"as {found}"
        )
    return _no_file(str(folder))


def _no_file(spec: str) -> UserError:
    return UserError(
        f"{spec}: no file matches; expected {EXPECTED_FILES}, a folder of them, a glob, hf:NAME or "
        "python-stdlib"
    )


def _saved_split(folder: Path, split: str) -> Path:
    """Return the folder of a split inside a folder that ``DatasetDict.save_to_disk`` wrote."""
    names = read_record(_SavedSplits, folder / SAVED_SPLITS).splits
    if split not in names:
        raise UserError(
            f"{folder}: has no split {split!r}; expected the folder of one of its splits: "
            f"{', '.join(names)}"
        )
    return folder / split


@dataclass(frozen=True)
class _SavedSplits:
    splits: list[str]


def _saved_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder that ``Dataset.save_to_disk`` wrote, in the order of rows."""
    path = folder / SAVED_DATASET
    state = read_json(path)
    try:
        return tuple(folder / Path(entry["filename"]).name for entry in state["_data_files"])
    except (KeyError, TypeError):
        raise UserError(
            f"{path}: names no data files; expected a folder that datasets' save_to_disk wrote"
        ) from None
