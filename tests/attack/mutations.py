"""What users or a bad disk may do to a file, to a value in a JSON file, and to a flag."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

DEEP = 100_000
VALUES: list[Any] = [
    *(None, True, False, "", [], {}, [[]], {"a": 1}),
    *(-1, 0, 1, 3, 1.5, -0.5, 1e30, 2**31, 2**63, 2**64, 10**400, -(2**62)),
    *(float("nan"), float("inf"), "x", "nan", "..", "../x", "pipe", "data", "a\nb", "a\0b"),
    *("x" * 5000, "\ud800", "{}", "%s", "--help", " "),
]
"""What may replace any value of a JSON file."""
WORDS = [
    *("", " ", "-1", "0", "1", "1.5", "1e30", "1e999", "nan", "-inf", "0x10", "9" * 30, "1" * 5000),
    *("x", "..", "../x", "pipe", "data", "no/such", "a\nb", "\udcff", "x" * 5000),
    *("[" * 1000, "{}", "a=b", "1,2", ",", ":", "0-0:0-0", "cuda", "%s", "\u202e", "*"),
]
"""What may be the value of any flag."""


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every value in parsed JSON, containers included."""
    yield path
    inner = {dict: dict.items, list: enumerate}.get(type(value), lambda _: ())
    for key, item in inner(value):
        yield from leaves(item, (*path, key))


def replaced(value: Any, path: tuple, new: Any) -> Any:
    """Return a copy of parsed JSON with the value ``new`` at ``path``."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def mutate_file(path: Path, rng: Random) -> str:
    """Damage a file in a random way and return which."""
    kinds: dict[str, Callable[[Path, Random], str]] = dict(_ANY)
    if path.suffix in (".json", ".jsonl"):
        # Most mistakes in a JSON file are in its values: half of the damage or so is to them.
        kinds |= {f"a value of JSON {i}": _json_value for i in range(len(_ANY))} | _JSON
    name = rng.choice(sorted(kinds))
    return kinds[name](path, rng) or name


def _json_value(path: Path, rng: Random) -> str:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = rng.randrange(len(lines)) if lines else 0
    try:
        value = json.loads(lines[number])
    except (ValueError, IndexError):
        return _flip(path, rng)
    place = rng.choice(list(leaves(value)))
    action = rng.choice(["replace", "replace", "replace", "remove", "add"])
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    if action == "remove" and place:
        del parent[place[-1]]
    elif action == "add" and place and isinstance(parent, dict):
        parent["unheard_of"] = rng.choice([1, "x", None])
    else:
        action = f"replace by {(new := rng.choice(VALUES))!r:.40}"
        value = replaced(value, place, new)
    lines[number] = json.dumps(value)
    _write(path, "\n".join(lines).encode() + b"\n")
    return f"{action} {'.'.join(map(str, place))}"


def _write(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def _flip(path: Path, rng: Random) -> str:
    content = bytearray(path.read_bytes())
    if not content:
        content = bytearray(b"\0")
    place = rng.randrange(len(content))
    content[place] ^= 1 << rng.randrange(8)
    _write(path, bytes(content))
    return f"flip a bit of byte {place}"


def _cut(path: Path, rng: Random) -> str:
    content = path.read_bytes()
    kept = rng.randrange(max(1, len(content)))
    _write(path, content[:kept])
    return f"cut after byte {kept}"


def _noise(path: Path, rng: Random) -> str:
    _write(path, rng.randbytes(max(1, len(path.read_bytes()))))
    return "noise"


def _longer(path: Path, rng: Random) -> str:
    _write(path, path.read_bytes() + rng.choice([b"\0", b"}", b"\n\n", rng.randbytes(100)]))
    return "longer"


def _empty(path: Path, rng: Random) -> str:
    _write(path, b"")
    return "empty"


def _missing(path: Path, rng: Random) -> str:
    path.unlink()
    return "missing"


def _folder(path: Path, rng: Random) -> str:
    path.unlink()
    path.mkdir()
    return "a folder"


def _pipe(path: Path, rng: Random) -> str:
    path.unlink()
    os.mkfifo(path)
    return "a named pipe"


def _device(path: Path, rng: Random) -> str:
    path.unlink()
    path.symlink_to("/dev/zero")
    return "a link to /dev/zero"


def _loop(path: Path, rng: Random) -> str:
    path.unlink()
    path.symlink_to(path.name)
    return "a link to itself"


def _secret(path: Path, rng: Random) -> str:
    content = path.read_bytes()
    _write(path, content)
    path.chmod(0)
    return "not readable"


def _deep(path: Path, rng: Random) -> str:
    _write(path, b"[" * DEEP)
    return "nested deeply"


def _digits(path: Path, rng: Random) -> str:
    _write(path, b'{"step": ' + b"1" * 5000 + b"}")
    return "a number of 5,000 digits"


def _twice(path: Path, rng: Random) -> str:
    content = path.read_bytes().lstrip()
    _write(path, content.replace(b"{", b'{"format": 9, "format": 9,', 1))
    return "a key given twice"


def _whole(path: Path, rng: Random) -> str:
    text = rng.choice([b"{}", b"[]", b"null", b'""', b"0", b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}"])
    _write(path, text)
    return f"only {text!r}"


_ANY = {
    each.__name__.strip("_"): each
    for each in (
        *(_flip, _cut, _noise, _longer, _empty, _missing),
        *(_folder, _pipe, _device, _loop, _secret),
    )
}
_JSON = {each.__name__.strip("_"): each for each in (_deep, _digits, _twice, _whole)}
