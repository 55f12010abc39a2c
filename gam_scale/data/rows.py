"""Read the rows of files and data sets, of which some may be empty, damaged or unlike the rest."""

import codecs
import gzip
import importlib
import io
import itertools
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from gam_scale.data.conversation import (
    COLUMNS,
    COMPLETION,
    EXPECTED,
    MESSAGES,
    PROMPT,
    Conversation,
    conversation_of,
)
from gam_scale.errors import UserError
from gam_scale.files import open_regular
from gam_scale.strict import parse_json

FORMATS = (".txt", ".jsonl", ".parquet", ".arrow")
COMPRESSIONS = (".gz", ".zst")
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, with which it starts
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
BATCH_ROWS = 1024

_FIELDS = re.compile(r"\{\{|\}\}|\\n|\\t|\{([^{}]+)\}")
_SIGNS = {"{{": "{", "}}": "}", "\\n": "\n", "\\t": "\t"}
_UNDECODED = re.compile("[\udc80-\udcff]")  # how "surrogateescape" keeps a byte

Row = str | Conversation | None | UserError
"""A row's text or conversation, None if it is null, or the error that says what is wrong."""


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Dots in ``text_column`` lead into nested objects. With ``separator``, the rows (the lines of a
    text file) are running text, to be cut into documents. ``encoding`` None is UTF-8, or what a
    byte order mark says. ``skip_bad`` leaves out bad rows and files instead of raising an error.
    ``template`` replaces ``text_column`` and makes one text of several columns, as in
    ``{title}\\n\\n{data.text}``; ``\\n`` and ``\\t`` in it are a line end and a tab, ``{{`` and
    ``}}`` are braces. With ``pairs``, a row is a conversation instead, see
    :func:`~gam_scale.data.conversation.conversation_of`.
    """

    text_column: str = "text"
    separator: str | None = None
    encoding: str | None = None
    skip_bad: bool = False
    template: str | None = None
    pairs: bool = False

    def __post_init__(self) -> None:
        try:
            io.TextIOWrapper(io.BytesIO(), self.encoding or "utf-8")
        except (LookupError, ValueError):
            raise UserError(
                f"--encoding {self.encoding} is unknown; expected one of Python's, such as utf-8, "
                "latin-1, utf-16 or gb18030"
            ) from None
        if self.template is None:
            return
        if re.search("[{}]", _FIELDS.sub("", self.template)):
            raise UserError(
                f"--template {self.template} has a brace without its other one; expected "
                "'{column}', or '{{' and '}}' for braces"
            )
        if not self.columns:
            raise UserError(
                f"--template {self.template} has no column; expected names of columns in it, as in "
                "'{title}\\n\\n{text}'"
            )

    @property
    def flag(self) -> str:
        """The option that names :attr:`columns`."""
        return "--text-column" if self.template is None else "--template"

    @property
    def columns(self) -> list[str]:
        """The columns that a row's text is made of."""
        if self.template is None:
            return [self.text_column]
        names = (field[1] for field in _FIELDS.finditer(self.template))
        return list(dict.fromkeys(name for name in names if name))

    def text_of(self, row: Any, where: str | Path, *, is_first: bool) -> Row:
        """Return a row's text or conversation, None if one of its columns is null, or an error."""
        if self.pairs:
            return conversation_of(row, str(where))
        if self.template is None:
            return text_of(row, self.text_column, where, self.flag, is_first=is_first)
        values: dict[str | None, str] = {}
        for name in self.columns:
            value = text_of(row, name, where, self.flag, is_first=is_first, numbers=True)
            if not isinstance(value, str):
                return value
            values[name] = value
        return _FIELDS.sub(lambda m: values[m[1]] if m[1] else _SIGNS[m[0]], self.template)

    def describe(self) -> dict[str, Any]:
        """Return a JSON-ready account of the settings.

        It names the last four fields only where they are set, so that it stays equal to the account
        of sets that were made before there were such fields.
        """
        account: dict[str, Any] = {"text_column": self.text_column, "separator": self.separator}
        if self.encoding:
            account["encoding"] = self.encoding
        if self.skip_bad:
            account["skip_bad"] = True
        if self.template is not None:
            account["template"] = self.template
        if self.pairs:
            account["pairs"] = True
        return account


@dataclass
class LeftOut:
    """What a pass over a source left out."""

    nulls: int = 0
    bad: int = 0
    first: str = ""  # what was wrong with the first bad row or file

    def clear(self) -> None:
        self.nulls, self.bad, self.first = 0, 0, ""

    def add(self, error: UserError) -> None:
        self.bad += 1
        self.first = self.first or str(error)

    def notes(self) -> list[str]:
        """Return sentences for the user; none if nothing was left out."""
        notes = [f"{self.nulls:,} rows without a text (null) were left out"] if self.nulls else []
        if self.bad:
            notes.append(f"{self.bad:,} bad rows or files were left out; the first: {self.first}")
        return notes


def kept(rows: Iterable[Row], skip_bad: bool, left_out: LeftOut) -> Iterator[str | Conversation]:
    """Yield texts and conversations; count nulls; count bad rows, or raise without ``skip_bad``."""
    for row in rows:
        if isinstance(row, str | Conversation):
            yield row
        elif row is None:
            left_out.nulls += 1
        elif skip_bad:
            left_out.add(row)
        else:
            raise row


def format_of(path: Path) -> str | None:
    """Return which of :data:`FORMATS` a file has, compressed or not; None if it has another."""
    suffixes = path.suffixes[-2:] if path.suffix in COMPRESSIONS else path.suffixes[-1:]
    return suffixes[0] if suffixes and suffixes[0] in FORMATS else None


def file_rows(path: Path, how: Reading) -> Iterator[Row]:
    """Yield a file's rows; a .txt is one row, or with ``how.separator`` one row for each line.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    if how.pairs and format_of(path) == ".txt":
        raise UserError(f"{path}: is running text; expected {EXPECTED} in .jsonl or .parquet")
    with _blamed_on(path), _open(path) as file:
        kind = format_of(path)
        if kind == ".parquet":
            yield from _parquet_rows(path, file, how)
        elif kind == ".arrow":
            yield from _arrow_rows(path, file, how)
        elif kind == ".jsonl":
            yield from _json_rows(path, _decoded(file, how, None), how)
        else:
            # newline="" keeps "\r\n": what is tokenised is what the file holds.
            text = _decoded(file, how, "")
            records = enumerate(text, 1) if how.separator else [(0, text.read())]
            for number, record in records:
                where = f"{path}: line {number}" if number else str(path)
                yield _undecoded(where, path) if _is_undecoded(record) else record


def text_of(
    row: Any,
    column: str,
    where: str | Path,
    flag: str,
    *,
    is_first: bool,
    numbers: bool = False,
) -> Row:
    """Return the text in a column of a row, None if it is null, or the error that the row has.

    A missing column is blamed on its name if the row ``is_first``, else on the row, since earlier
    rows have the column. ``flag`` is the option that names the column. With ``numbers``, a number
    is turned into text.
    """
    node = row
    for key in [column] if isinstance(row, dict) and column in row else column.split("."):
        if not isinstance(node, dict) or key not in node:
            return no_column(where, column, flag, _leaves(row) if is_first else None)
        node = node[key]
        if node is None:
            break  # the text, or an object around it, is null
    if node is None or isinstance(node, str):
        return node
    if numbers and isinstance(node, int | float):
        return str(node)
    return UserError(
        f"{where}: column {column!r} holds {type(node).__name__}; expected text "
        f"({flag} names the column, --skip-bad leaves such rows out)"
    )


def no_column(where: str | Path, column: str, flag: str, names: Iterable[str] | None) -> UserError:
    """Return the error for a missing column.

    ``names`` are the columns that exist, or None if earlier rows have the column.
    """
    if names is None:
        return UserError(
            f"{where}: no column {column!r}, which rows before it have; expected it in every row, "
            "or --skip-bad, which leaves such rows out and counts them"
        )
    there = list(names)
    columns = ", ".join(map(repr, there)) or "none"
    wanted = f"{flag} as one of:" if flag == "--text-column" else f"{flag} with names among:"
    pairs = MESSAGES in there or {PROMPT, COMPLETION} <= set(there)
    hint = ", or --pairs, which reads conversations" if pairs else ""
    return UserError(f"{where}: no column {column!r}; expected {wanted} {columns}{hint}")


def import_for(where: str | Path, module: str) -> ModuleType:
    """Import a module that only some sources need and that a plain installation lacks."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{where}: needs the package {module.partition('.')[0]}; "
            "pip install 'gam-scale[hub]' brings it"
        ) from None


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading its decompressed content; the result has ``peek``."""
    with ExitStack() as stack:
        file: Any = stack.enter_context(open_regular(path))
        if path.suffix == ".gz":
            file = stack.enter_context(gzip.open(file))
        elif path.suffix == ".zst":
            pyarrow = import_for(path, "pyarrow")
            raw = stack.enter_context(pyarrow.CompressedInputStream(file, "zstd"))
            file = stack.enter_context(io.BufferedReader(raw))
        yield file


def _decoded(file: Any, how: Reading, newline: str | None) -> io.TextIOWrapper:
    encoding = how.encoding or "utf-8"
    if codecs.lookup(encoding).name == "utf-8":
        start = file.peek(4)[:4]
        encoding = next(
            (name for mark, name in BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8"
        )
    # Undecodable bytes are kept here and looked for in each row, so that the error names the row.
    return io.TextIOWrapper(file, encoding, "surrogateescape", newline=newline)


def _is_undecoded(text: str) -> bool:
    return not text.isascii() and _UNDECODED.search(text) is not None


def _undecoded(where: str, path: Path) -> UserError:
    return UserError(
        f"{where} cannot be read as {format_of(path)}: it has bytes that are no text; expected "
        "UTF-8, another --encoding, or --skip-bad, which leaves it out"
    )


def _json_rows(path: Path, lines: Iterable[str], how: Reading) -> Iterator[Row]:
    is_first = True
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        where = f"{path}: line {number}"
        if _is_undecoded(line):
            yield _undecoded(where, path)
            continue
        try:
            row = parse_json(line, str(path), number)
        except UserError as error:
            yield UserError(f"{error}, or --skip-bad, which leaves others out")
            continue
        text = how.text_of(row, where, is_first=is_first)
        is_first = is_first and isinstance(text, UserError)
        # JSON can spell half a surrogate pair, which no encoding of text can hold.
        yield _mend_surrogates(text) if isinstance(text, str) and "\\u" in line else text


def _mend_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _parquet_rows(path: Path, file: IO[bytes], how: Reading) -> Iterator[Row]:
    parquet = import_for(path, "pyarrow.parquet")
    seekable = io.BytesIO(file.read()) if path.suffix in COMPRESSIONS else file
    table = parquet.ParquetFile(seekable)
    columns = _columns(path, table.schema_arrow, how)
    batches = table.iter_batches(batch_size=BATCH_ROWS, columns=columns)
    yield from _batch_rows(path, batches, columns, how)


def _arrow_rows(path: Path, file: Any, how: Reading) -> Iterator[Row]:
    ipc = import_for(path, "pyarrow.ipc")
    if file.peek(6)[:6] == b"ARROW1":
        reader = ipc.open_file(io.BytesIO(file.read()) if path.suffix in COMPRESSIONS else file)
        batches = map(reader.get_batch, range(reader.num_record_batches))
    else:
        batches = reader = ipc.open_stream(file)
    yield from _batch_rows(path, batches, _columns(path, reader.schema, how), how)


def _columns(path: Path, schema: Any, how: Reading) -> list[str]:
    """Return the columns of a table that are read."""
    if how.pairs:
        return [name for name in COLUMNS if name in schema.names]
    names = [name for field in schema for name in _field_names(field)]
    for column in how.columns:
        if column not in schema.names and column not in names:
            raise no_column(path, column, how.flag, names)
    return how.columns


def _batch_rows(
    path: Path, batches: Iterable[Any], columns: list[str], how: Reading
) -> Iterator[Row]:
    numbers = itertools.count(1)
    for batch in batches:
        there = batch.schema.names
        tops = dict.fromkeys(c if c in there else c.partition(".")[0] for c in columns)
        for row in batch.select(list(tops)).to_pylist():
            yield how.text_of(row, f"{path}: row {next(numbers)}", is_first=False)


def _field_names(field: Any) -> list[str]:
    """Return the dotted names of the values in an Arrow field."""
    inner = [field.type.field(i) for i in range(field.type.num_fields)]
    if not inner or str(field.type).startswith(("list", "large_list", "map", "fixed_size_list")):
        return [field.name]
    return [f"{field.name}.{name}" for each in inner for name in _field_names(each)]


def _leaves(row: Any) -> list[str]:
    """Return the dotted names of the values in a row."""
    if not isinstance(row, dict):
        return []
    below = {key: _leaves(value) for key, value in row.items()}
    return [n for k, names in below.items() for n in ([f"{k}.{x}" for x in names] or [str(k)])]


@contextmanager
def _blamed_on(path: Path) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into a UserError that names it."""
    try:
        yield
    except (EOFError, OSError, ValueError, zlib.error) as error:  # Arrow's and UTF-16's included
        raise UserError(
            f"{path}: cannot be read as {format_of(path)} ({error}); expected an undamaged file in "
            "UTF-8 or in what --encoding names"
        ) from None
