"""Which lines ask torch.cuda for something, and, as a plugin of pytest, which of them tests ran.

Only a function that is about to run such a line is watched, line by line: all else runs untraced.
"""

import ast
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gam_scale"


def lines_of(source: str) -> Iterator[tuple[str, int]]:
    """Functions, by their names within the file, and the lines that use torch.cuda in them."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}".lstrip(".")
            is_use = isinstance(child, ast.Attribute) and ast.unparse(child) == "torch.cuda"
            # What annotates or stands outside of functions does nothing.
            if is_use and name and not isinstance(node, ast.arg):
                yield name, child.lineno
            yield from walk(child, inner)

    yield from walk(ast.parse(source), "")


def all_lines() -> dict[str, set[int]]:
    """``path:function`` of the package -> its lines."""
    found: dict[str, set[int]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, line in lines_of(path.read_text()):
            found.setdefault(f"{path.relative_to(ROOT)}:{name}", set()).add(line)
    return found


def pytest_configure() -> None:
    wanted = {str(ROOT / key.partition(":")[0]) for key in all_lines()}
    ran: set[tuple[str, int]] = set()

    def watch(frame, event, argument):
        if frame.f_code.co_filename not in wanted:
            return None
        if event == "line":
            ran.add((str(Path(frame.f_code.co_filename).relative_to(ROOT)), frame.f_lineno))
        return watch

    threading.settrace(watch)
    sys.settrace(watch)
    pytest_configure.ran = ran


def pytest_unconfigure() -> None:
    sys.settrace(None)
    Path(os.environ["CUDA_LINES"]).write_text(json.dumps(sorted(pytest_configure.ran)))
