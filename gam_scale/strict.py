"""Strict JSON for dataclasses: every unknown key, wrong type and value out of range is named.

A field is declared with :func:`option`, which keeps its documentation and its bounds beside its
default; files that the program wrote itself are read back into plain dataclasses by the same rules.
Supported types: bool, int, float, str, ``Literal``, ``T | None``, :data:`FloatOrAuto` and its like,
``list[T]``, ``tuple[T, ...]``, ``dict[str, T]``, nested dataclasses, and ``Any`` for what another
package checks.
"""

import copy
import dataclasses
import difflib
import functools
import json
import math
import types
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gam_scale.errors import UserError, one_line
from gam_scale.files import read_regular

AUTO = "auto"
"""What stands in a config for a number that is to be chosen from other settings."""

if TYPE_CHECKING:  # their types once the number is chosen, before anything computes with it
    FloatOrAuto = float
    IntOrAuto = int
else:
    FloatOrAuto = float | Literal["auto"]
    IntOrAuto = int | Literal["auto"]

LARGEST_INT = 2**63
"""Whole numbers must be below it: what a tensor, an index or a seed can hold."""


def option(
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    read: Callable[[Any, str], Any] | None = None,
    type_name: str = "",
) -> Any:
    """Declare a dataclass field with its documentation and its accepted range.

    ``read`` makes the value from the JSON and its dotted path, where the field's type does not say
    how; ``type_name`` then describes the values it takes.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    meta: dict[str, Any] = {
        "doc": doc,
        "bounds": {k: v for k, v in bounds.items() if v is not None},
    }
    if read is not None:
        meta |= {"read": read, "type_name": type_name}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def section(cls: type, doc: str) -> Any:
    """Declare a dataclass field that nests another configuration dataclass."""
    return dataclasses.field(default_factory=cls, metadata={"doc": doc, "bounds": {}})


_hints = functools.cache(typing.get_type_hints)
"""Function that returns the types of a dataclass's fields; evaluating them is slow."""


def from_dict(cls: type, data: Any, where: str = "") -> Any:
    """Build dataclass ``cls`` from parsed JSON; ``where`` is the dotted path used in messages.

    Raises:
        UserError: naming the key, the value and what would be accepted.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where or 'the config'} is {shown(data)}; expected an object")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = _hints(cls)
    for key in data:
        if key not in fields:
            name = _join(where, one_line(key))
            raise UserError(f"{name} is not a setting{_suggest(where, key, list(fields))}")
    for key, field in fields.items():
        if key not in data and _is_required(field):
            raise UserError(f"{_join(where, key)} is missing; expected {_type_name(hints[key])}")
    return cls(**{k: _value(fields[k], hints[k], v, _join(where, k)) for k, v in data.items()})


def to_dict(config: Any) -> dict[str, Any]:
    """Return the complete, JSON-ready form of a configuration dataclass."""
    return dataclasses.asdict(config)


def read_json(path: str | Path) -> Any:
    """Parse a JSON file, with the file and line named when that fails."""
    try:
        text = read_regular(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a JSON file") from None
    return parse_json(text, str(path))


def read_record(cls: type, path: str | Path) -> Any:
    """Read the dataclass that a JSON file holds, checked as strictly as a config.

    Raises:
        UserError: naming the file, and the key where one is missing, unknown or wrong.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path} is {shown(data)}; expected an object")
    try:
        return from_dict(cls, data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_json(text: str, where: str, row: int | None = None) -> Any:
    """Parse JSON that may come from anybody.

    It also refuses what Python would take, or fail on later: a key given twice, nesting without
    end, numbers of thousands of digits, halves of surrogate pairs.

    Args:
        text: one value.
        where: the text's source, which opens a message.
        row: number of a corpus's row that the text is; None: no row. Rows are taken as other
            programs meant them: the last value of a key given twice counts, and halves of surrogate
            pairs stay, for the reader to mend.

    Raises:
        UserError: naming the line.
    """
    try:
        return _parse(text) if row is None else _parse_row(text)
    except json.JSONDecodeError as error:
        line, wanted = (row, "; expected one object a line") if row else (error.lineno, "")
        raise UserError(f"{where}: line {line} is not valid JSON ({error.msg}){wanted}") from None
    except _UnfitJson as error:
        raise UserError(f"{where}: {f'line {row}: ' if row else ''}{error}") from None


def is_text(value: str) -> bool:
    """Return whether a string can be written as UTF-8: no half surrogate pair, no foreign byte."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def merged(base: Any, over: Any) -> Any:
    """Return ``over`` with the keys that its objects lack taken from ``base``, at every depth."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: merged(base.get(key), value) for key, value in over.items()}


def apply_overrides(data: Any, overrides: Sequence[str]) -> Any:
    """Copy ``data`` with ``section.key=value`` overrides, whose values are JSON or bare words."""
    if overrides and not isinstance(data, dict):
        raise UserError(f"the config is {shown(data)}; expected an object")
    data = copy.deepcopy(data)
    for item in overrides:
        path, equals, text = item.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise UserError(
                f"--set '{one_line(item)}' is not an assignment; expected section.key=value"
            )
        node = data
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                name = one_line(key)
                raise UserError(f"--set '{one_line(item)}': {name} is a value, not a section")
        try:
            node[keys[-1]] = _parse(text)
        except json.JSONDecodeError:
            node[keys[-1]] = text
        except _UnfitJson as error:
            raise UserError(f"--set '{one_line(item)}': {error}") from None
    return data


def is_auto(value: object) -> bool:
    """Return whether a setting is "auto", a number still to be chosen."""
    return value == AUTO


def shown(value: Any) -> str:
    """Return a value as a message quotes it: JSON on one line of at most 60 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return one_line(text)


def describe(cls: type, where: str = "") -> list[tuple[str, str, str, str]]:
    """Return a row (dotted key, type, default, documentation) for every setting below ``cls``."""
    hints = _hints(cls)
    rows = []
    for field in dataclasses.fields(cls):
        hint, key = hints[field.name], _join(where, field.name)
        if "doc" not in field.metadata:
            continue  # a part's kind, which is no setting of its own
        if dataclasses.is_dataclass(hint):
            rows += describe(typing.cast(type, hint), key)
        else:
            make, default = field.default_factory, field.default
            if make is not dataclasses.MISSING:
                default = make()
            kind = field.metadata.get("type_name") or _type_name(hint)
            said = "none" if _is_required(field) else json.dumps(default)
            rows.append((key, kind, said, field.metadata["doc"]))
            (*_, each) = typing.get_args(hint) or (None,)
            if typing.get_origin(hint) in (list, dict) and dataclasses.is_dataclass(each):
                below = f"{key}[]" if typing.get_origin(hint) is list else f"{key}.NAME"
                rows += describe(typing.cast(type, each), below)
    return rows


class _UnfitJson(Exception):
    """Valid JSON that no reader should accept; the message says why, and what is expected."""


def _parse(text: str) -> Any:
    value = _parse_row(text, _unique)
    if "\\u" in text and not is_text(json.dumps(value, ensure_ascii=False)):
        raise _UnfitJson("has half of a surrogate pair (\\ud800 to \\udfff); expected text")
    return value


def _parse_row(text: str, make: Callable[[list[tuple[str, Any]]], dict] | None = None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=make)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise _UnfitJson("nested too deeply; expected a few levels") from None
    except ValueError:  # Python's own limit, since longer ones take quadratic time
        raise _UnfitJson("has a number of thousands of digits; expected shorter ones") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise _UnfitJson(f"the key {shown(twice)} stands twice in one object; expected it once")
    return made


def _value(field: dataclasses.Field, hint: Any, value: Any, where: str) -> Any:
    if read := field.metadata.get("read"):
        return read(value, where)
    return _convert(hint, value, where, field.metadata.get("bounds", {}))


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str, bounds: dict[str, float]) -> Any:
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return _literal(hint, value, where)
    if origin in (types.UnionType, typing.Union):
        return _either(hint, value, where, bounds)
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where} is {shown(value)}; expected an object")
        kind = inner[1] if inner else Any
        return {k: _convert(kind, v, _join(where, one_line(k)), bounds) for k, v in value.items()}
    if origin is list:
        if not isinstance(value, list):
            wanted = f"a {_type_name(hint)}{_example(inner[0], value)}"
            raise UserError(f"{where} is {shown(value)}; expected {wanted}")
        if inner[0] is int and not bounds and all(map(_is_plain_int, value)):
            return list(value)  # a checkpoint's index has millions of them
        return [_convert(inner[0], v, f"{where}[{i}]", bounds) for i, v in enumerate(value)]
    if origin is tuple:
        return _tuple(hint, value, where, bounds)
    return _scalar(hint, value, where, bounds)


def _is_plain_int(value: Any) -> bool:
    return type(value) is int and abs(value) < LARGEST_INT


def _either(hint: Any, value: Any, where: str, bounds: dict[str, float]) -> Any:
    """Convert a value of ``T | None``, or one that is either a number or a certain word."""
    inner = typing.get_args(hint)
    literals = [each for each in inner if typing.get_origin(each) is typing.Literal]
    (kind,) = [each for each in inner if each is not types.NoneType and each not in literals]
    if not literals:
        return None if value is None else _convert(kind, value, where, bounds)
    if isinstance(value, str) and any(value in typing.get_args(each) for each in literals):
        return value
    if type(value) not in (int, float):
        raise UserError(f"{where} is {shown(value)}; expected {_type_name(hint)}")
    return _convert(kind, value, where, bounds)


def _example(kind: Any, value: Any) -> str:
    """Return, for a message, an example of a list of objects with ``value`` in its place."""
    if not dataclasses.is_dataclass(kind):
        return ""
    first = dataclasses.fields(kind)[0].name
    return f", such as [{shown({first: value if isinstance(value, str) else '...'})}]"


def _tuple(hint: Any, value: Any, where: str, bounds: dict[str, float]) -> tuple[Any, ...]:
    kinds = typing.get_args(hint)
    if kinds[-1] is Ellipsis and isinstance(value, list):
        kinds = (kinds[0],) * len(value)
    if not isinstance(value, list) or len(value) != len(kinds):
        raise UserError(f"{where} is {shown(value)}; expected a {_type_name(hint)}")
    parts = zip(kinds, value, strict=True)
    return tuple(_convert(k, v, f"{where}[{i}]", bounds) for i, (k, v) in enumerate(parts))


def _literal(hint: Any, value: Any, where: str) -> Any:
    choices = typing.get_args(hint)
    # `True == 1` in Python, so the type has to match as well as the value.
    if not any(value == c and type(value) is type(c) for c in choices):
        names = ", ".join(shown(c) for c in choices)
        raise UserError(f"{where} is {shown(value)}; expected one of {names}")
    return value


def _scalar(hint: Any, value: Any, where: str, bounds: dict[str, float]) -> Any:
    if hint is float and type(value) is int and abs(value) < LARGEST_INT:
        value = float(value)
    if hint is int and type(value) is float and value.is_integer():
        value = int(value)  # `1e6` is how people write a million in JSON
    if type(value) is not hint:
        raise UserError(f"{where} is {shown(value)}; expected {_type_name(hint)}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{where} is {value}; expected a finite number")
    if hint is int and abs(value) >= LARGEST_INT:
        raise UserError(f"{where} is {shown(value)}; expected a whole number below 2**63")
    if hint is str and ("\0" in value or not is_text(value)):
        raise UserError(f"{where} is {shown(value)}; expected text without NUL or half characters")
    tests: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
        "at_least": (lambda v, b: v >= b, "at least"),
        "above": (lambda v, b: v > b, "more than"),
        "at_most": (lambda v, b: v <= b, "at most"),
        "below": (lambda v, b: v < b, "less than"),
    }
    if not all(tests[name][0](value, bound) for name, bound in bounds.items()):
        wanted = " and ".join(f"{tests[name][1]} {bound:g}" for name, bound in bounds.items())
        raise UserError(f"{where} is {shown(value)}; expected {wanted}")
    return value


def _type_name(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return " | ".join(json.dumps(c) for c in typing.get_args(hint))
    inner = typing.get_args(hint)
    if origin is list:
        article, _, noun = _type_name(inner[0]).partition(" ")
        return f"list of {noun}s" if article in ("a", "an") else f"list of {article} {noun}".strip()
    if origin is tuple:
        return f"list of {len(inner) - (inner[-1] is Ellipsis)} or more values"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_name(each) for each in inner)
    if origin is dict or hint is types.NoneType:
        return "null" if hint is types.NoneType else "an object"
    names: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number"}
    names[str] = "a string"
    return names.get(hint, "an object" if isinstance(hint, type) else str(hint))


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _suggest(where: str, key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"; did you mean {_join(where, close[0])}?"
    return f"; expected one of {', '.join(known)}"
