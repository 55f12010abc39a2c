"""Find the lines that use torch.cuda and, as a pytest plugin, record which lines tests run.

The plugin traces the files that have such lines, line by line; all else runs untraced. At the end
it writes [path, line] pairs to the file named by the environment variable CUDA_LINES.
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
    """Yield each use of torch.cuda: the function's name within the file, and the line."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}".lstrip(".")
            is_use = isinstance(child, ast.Attribute) and ast.unparse(child) == "torch.cuda"
            # An argument's annotation, and code outside of functions, asks a GPU for nothing.
            if is_use and name and not isinstance(node, ast.arg):
                yield name, child.lineno
            yield from walk(child, inner)

    yield from walk(ast.parse(source), "")


def all_lines() -> dict[str, set[int]]:
    """Return the package's lines that use torch.cuda, by ``path:function``."""
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
