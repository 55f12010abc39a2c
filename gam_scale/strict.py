"""Strict JSON for dataclasses: every unknown key, wrong type and value out of range is named.

A field is declared with :func:`option`, which keeps its documentation and its bounds beside its
default. Supported types: bool, int, float, str, ``Literal``, ``list[T]``, nested dataclasses, and
``dict[str, Any]`` for options that another package checks.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gam_scale.errors import UserError


def option(
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with its documentation and its accepted range."""
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    meta = {"doc": doc, "bounds": {k: v for k, v in bounds.items() if v is not None}}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def section(cls: type, doc: str) -> Any:
    """A dataclass field that nests another configuration dataclass."""
    return dataclasses.field(default_factory=cls, metadata={"doc": doc, "bounds": {}})


def from_dict(cls: type, data: Any, where: str = "") -> Any:
    """Build dataclass ``cls`` from parsed JSON; ``where`` is the dotted path used in messages.

    Raises:
        UserError: naming the key, the value and what would be accepted.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where or 'the config'} is {_show(data)}; expected an object")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in fields:
            raise UserError(f"{_join(where, key)} is not a setting{_suggest(key, list(fields))}")
    values = {
        key: _convert(hints[key], value, _join(where, key), fields[key].metadata["bounds"])
        for key, value in data.items()
    }
    return cls(**values)


def to_dict(config: Any) -> dict[str, Any]:
    """The complete, JSON-ready form of a configuration dataclass."""
    return dataclasses.asdict(config)


def read_json(path: str | Path) -> Any:
    """Parse a JSON file, with the file and line named when that fails."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a JSON file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a JSON file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno} is not valid JSON ({error.msg})") from None


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``data`` with ``section.key=value`` overrides; values are JSON or bare words."""
    data = json.loads(json.dumps(data))
    for item in overrides:
        path, equals, text = item.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise UserError(f"--set {item!r} is not an assignment; expected section.key=value")
        node = data
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {item!r}: {key} is a value, not a section of the config")
        try:
            node[keys[-1]] = json.loads(text)
        except json.JSONDecodeError:
            node[keys[-1]] = text
    return data


def describe(cls: type, where: str = "") -> list[tuple[str, str, str, str]]:
    """Rows (dotted key, type, default, documentation) of every setting below ``cls``."""
    hints = typing.get_type_hints(cls)
    rows = []
    for field in dataclasses.fields(cls):
        hint, key = hints[field.name], _join(where, field.name)
        if dataclasses.is_dataclass(hint):
            rows += describe(hint, key)
        else:
            default = (
                field.default_factory() if field.default is dataclasses.MISSING else field.default
            )
            rows.append((key, _type_name(hint), json.dumps(default), field.metadata["doc"]))
    return rows


def _convert(hint: Any, value: Any, where: str, bounds: dict[str, float]) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return _literal(hint, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where} is {_show(value)}; expected an object")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise UserError(f"{where} is {_show(value)}; expected a {_type_name(hint)}")
        (inner,) = typing.get_args(hint)
        return [_convert(inner, v, f"{where}[{i}]", bounds) for i, v in enumerate(value)]
    return _scalar(hint, value, where, bounds)


def _literal(hint: Any, value: Any, where: str) -> Any:
    choices = typing.get_args(hint)
    # `True == 1` in Python, so the type has to match as well as the value.
    if not any(value == c and type(value) is type(c) for c in choices):
        names = ", ".join(_show(c) for c in choices)
        raise UserError(f"{where} is {_show(value)}; expected one of {names}")
    return value


def _scalar(hint: type, value: Any, where: str, bounds: dict[str, float]) -> Any:
    if hint is float and type(value) is int:
        value = float(value)
    if hint is int and type(value) is float and value.is_integer():
        value = int(value)  # `1e6` is how people write a million in JSON
    if type(value) is not hint:
        raise UserError(f"{where} is {_show(value)}; expected {_type_name(hint)}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{where} is {value}; expected a finite number")
    tests: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
        "at_least": (lambda v, b: v >= b, "at least"),
        "above": (lambda v, b: v > b, "more than"),
        "at_most": (lambda v, b: v <= b, "at most"),
        "below": (lambda v, b: v < b, "less than"),
    }
    if not all(tests[name][0](value, bound) for name, bound in bounds.items()):
        wanted = " and ".join(f"{tests[name][1]} {bound:g}" for name, bound in bounds.items())
        raise UserError(f"{where} is {_show(value)}; expected {wanted}")
    return value


def _type_name(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return " | ".join(json.dumps(c) for c in typing.get_args(hint))
    if origin is list:
        return f"list of {_type_name(typing.get_args(hint)[0])}"
    if origin is dict:
        return "an object"
    names: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number"}
    names[str] = "a string"
    return names.get(hint, "an object" if isinstance(hint, type) else str(hint))


def _show(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, types.NoneType) else "null"
    return text if len(text) <= 60 else text[:57] + "..."


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _suggest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(known)}"
