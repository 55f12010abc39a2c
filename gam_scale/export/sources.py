"""The model's source as a flat folder of files with relative imports."""

import ast
import hashlib
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from gam_scale.model.parts import FEED_FORWARDS, MIXERS, NORMS

TEMPLATES = "gam_scale.export.templates"
EVERY_PART = "gam_scale.model.every_part"
_IMPORT = re.compile(r"^(\s*from )(gam_scale[.\w]*)(?= import )", re.MULTILINE)
_OPERATORS = '"gam_scale::'  # the library that custom operators are registered in


def flat_sources(templates: Iterable[str]) -> dict[str, str]:
    """Return by file name the text of some :data:`TEMPLATES` and of all our modules they import.

    ``gam_scale.model.lm`` becomes ``gam_scale_model_lm.py``; a template keeps its name. Operators
    are registered in a library named by a hash of the sources, so that an export never replaces
    those of an installed gam_scale, or of another export, in the same process.
    """
    texts: dict[str, str] = {}
    waiting = [f"{TEMPLATES}.{name}" for name in templates]
    while waiting:
        module = waiting.pop()
        if module not in texts:
            texts[module] = _read(module)
            waiting += _imports(module, texts[module])
    digest = hashlib.sha256("".join(texts[m] for m in sorted(texts)).encode()).hexdigest()
    operators = f'"gam_scale_{digest[:12]}::'
    files = {
        f"{_flat(module)}.py": _rewritten(module, text).replace(_OPERATORS, operators)
        for module, text in texts.items()
    }
    return {name: text + _also(name, files) for name, text in files.items()}


def _also(name: str, files: dict[str, str]) -> str:
    """Return the end of a configuration file, which names every other file; else nothing.

    transformers 4 copies only the files that this file itself names. Without the others, loading
    would fail before the configuration could say that transformers is too old.
    """
    if not name.startswith("configuration"):
        return ""
    others = sorted(file.removesuffix(".py") for file in files if file.startswith("gam_scale"))
    lines = "".join(f"    from .{other} import *  # noqa: F403\n" for other in others)
    return f"\nif False:  # for transformers 4, which copies what this file names alone\n{lines}"


def _read(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    if module == EVERY_PART:  # searches packages, which a flat folder does not have
        parts = sorted(r.where(kind) for r in (NORMS, FEED_FORWARDS, MIXERS) for kind in r)
        return "".join(f"from {where} import {name}  # noqa: F401\n" for where, name in parts)
    return Path(spec.origin).read_text(encoding="utf-8")


def _imports(module: str, text: str) -> list[str]:
    """Return our modules that ``text`` imports; assert that each import can be rewritten."""
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gam_scale"):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            whole = [alias.name for alias in node.names]
            assert not any(n.startswith("gam_scale") for n in whole), f"{module}: {whole}"
    assert sorted(names) == sorted(m[2] for m in _IMPORT.finditer(text)), f"{module}: {names}"
    return names


def _rewritten(module: str, text: str) -> str:
    text = _IMPORT.sub(lambda match: f"{match[1]}.{_flat(match[2])}", text)
    return f"# Written by GAM Scale's tools/convert_checkpoint.py from {module}.\n{text}"


def _flat(module: str) -> str:
    if module.startswith(f"{TEMPLATES}."):
        return module.removeprefix(f"{TEMPLATES}.")
    return module.replace(".", "_")
