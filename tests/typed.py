"""Check a command that a page shows without running it: parse its options, load its files.

``checked(words)`` raises what the command itself would raise. It returns whether it knows the
command: it knows those of this project, and no other program's.
"""

import argparse
import re
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pages import ROOT

from gam_scale import cli
from gam_scale.compare.spec import read_spec
from gam_scale.config import load_config
from gam_scale.errors import UserError
from gam_scale.scaling.sweep_spec import read_sweep

PLACEHOLDER = re.compile(r"\b(?:FILE|DIR|RUN|NAME|TEXT|KEY|N)\b")
"""Words for the reader's own values; a config whose name has one cannot be loaded here."""
LAUNCHERS = {"deepspeed", "torchrun", "srun"}
IN_A_SHELL = {".venv/bin/activate", "slurm/site.sh"}


class _Parsed(Exception):
    """Raised to end a command once it has parsed its command line."""


def checked(words: list[str]) -> bool:
    """Check a command and return whether it is one of this project's.

    Raises:
        UserError, AssertionError: an unknown option, a config that does not load, ...
    """
    environment, words = _split(["1" if word == "N" else word for word in words])
    program, *rest = words
    if program in LAUNCHERS:
        tools = [i for i, word in enumerate(words) if word.startswith("tools/")]
        words = ["python", *words[tools[0] :]] if tools else words
        program, *rest = words
    if program in ("python", "python3"):
        return _python(rest)
    if program == "make":
        return _make(rest)
    if program == "." and rest[0] in IN_A_SHELL:
        return True
    if program == "echo":
        return rest[1] == ">" and rest[2].startswith("runs/")
    scripts = [word for word in words if re.fullmatch(r"slurm/\w+\.sh", word)]
    return bool(scripts) and _script(scripts[0], environment)


def _split(words: list[str]) -> tuple[dict[str, str], list[str]]:
    given = {}
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, given[name] = words[0].partition("=")
        words = words[1:]
    return given, words


def _python(words: list[str]) -> bool:
    if words[0] == "-m":
        module = words[1]
        if not module.startswith(("benchmarks.", "gam_scale.")):
            return False
        path = ROOT / f"{module.replace('.', '/')}.py"
        path = path if path.exists() else ROOT / module.replace(".", "/") / "__main__.py"
        words = words[2:]
    elif words[0].startswith(("tools/", "docs/site/")):
        path, words = ROOT / words[0], words[1:]
    else:
        return False
    args = _arguments(path, words)
    if args is not None:
        _read_files(path.stem, args)
    return True


def _arguments(path: Path, words: list[str]) -> argparse.Namespace | None:
    assert path.exists(), f"{path.relative_to(ROOT)} is not there"
    before, sys.argv = sys.argv, [str(path), *words]
    found: list[argparse.Namespace] = []
    with _stop_when_parsed(found):
        try:
            _main_of(path)()
        except _Parsed:
            pass
        except SystemExit as end:
            raise AssertionError(f"{path.name} ended with {end.code}") from None
        finally:
            sys.argv = before
    return found[0] if found else None


@cache
def _main_of(path: Path) -> Any:
    return runpy.run_path(str(path), run_name=f"{path.stem}_of_a_page")["main"]


@contextmanager
def _stop_when_parsed(found: list[argparse.Namespace]) -> Iterator[None]:
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: Any, **kept: Any) -> Any:
        found.append(parse(self, *given, **kept))
        raise _Parsed

    argparse.ArgumentParser.parse_args = stop  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = parse  # type: ignore[method-assign]


def _read_files(tool: str, args: argparse.Namespace) -> None:
    given = vars(args)
    config = given.get("config")
    for path in config if isinstance(config, list) else [config]:
        if str(path).startswith("runs/"):  # what another command writes
            continue
        if path and not PLACEHOLDER.search(str(path)) and tool != "bootstrap":
            overrides = given.get("overrides") or []
            load_config(ROOT / path, [_in_place(item) for item in overrides])
    if tool in ("sweep", "scaling_report") and given.get("sweep"):
        read_sweep(ROOT / given["sweep"])
    if given.get("spec"):
        read_spec(ROOT / given["spec"])


def _in_place(override: str) -> str:
    return PLACEHOLDER.sub("1", override)


def _make(words: list[str]) -> bool:
    targets = [word for word in words if "=" not in word]
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    lost = set(targets) - set(known)
    assert not lost, f"the Makefile has no {', '.join(lost)}; it has {', '.join(known)}"
    return True


def _script(path: str, environment: dict[str, str]) -> bool:
    assert (ROOT / path).exists(), f"{path} is not there"
    text = (ROOT / path).read_text()
    (own,) = re.findall(r"CONFIG:-([\w/.]+)", text) or ["configs/gam_1b.json"]
    parser = cli.Parser(add_help=False)
    cli.add_overrides(parser)
    parser.add_argument("--fresh", action="store_true")
    args, unknown = parser.parse_known_args(environment.get("GAM_ARGS", "").split())
    if unknown:
        raise UserError(f"GAM_ARGS has {unknown}; expected --set and --fresh")
    load_config(ROOT / environment.get("CONFIG", own), args.overrides)
    return True
