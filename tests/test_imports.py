"""Imports point one way: rooms (packages and top modules) have an order, and there is no circle.

``python tests/test_imports.py`` lists the imports that break the order.
"""

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent

ORDER = (
    {"tools", "benchmarks"},
    {"scaling", "reproduce", "compare", "preparation"},
    {"experiment"},
    {"launch", "plan", "export"},
    {"train"},
    {"run", "parallel", "checkpoint", "data", "evaluate", "generate", "chat", "interop"},
    {"config", "former_configs", "hardware", "hyperparameters", "schedule"},
    {"model"},
    {
        "kernels",
        "report",
        "cli",
        "environment",
        "strict",
        "files",
        "grouping",
        "process",
        "pulse",
        "remote",
        "errors",
    },
    {"gam_scale"},
)
"""Rows of rooms, from the top: a room imports only from its own row and from those below."""


def modules() -> dict[str, ast.Module]:
    """Parse every module of the package, the tools and the benchmarks, by dotted name."""
    folders = ("gam_scale", "tools", "benchmarks")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {_name(path): ast.parse(path.read_text()) for path in paths}


def imports(parsed: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Return which others each module imports, also inside functions and for type checkers."""
    return {n: _imported(tree, parsed) & parsed.keys() - {n} for n, tree in parsed.items()}


def room(module: str) -> str:
    """Return a module's room: ``data`` of ``gam_scale.data.rows``, ``tools`` of ``tools.plan``."""
    first, *rest = module.split(".")
    return rest[0] if first == "gam_scale" and rest else first


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle; an empty list if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def back_up(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Return the imports from a higher row, as (importer, imported)."""
    row = {name: i for i, names in enumerate(ORDER) for name in names}
    pairs = [(module, each) for module, needed in graph.items() for each in sorted(needed)]
    return [(a, b) for a, b in pairs if row[room(a)] > row[room(b)]]


def rooms_of_one_row(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return which other rooms of its own row each room imports."""
    row = {name: i for i, names in enumerate(ORDER) for name in names}
    needed: dict[str, set[str]] = {name: set() for name in row}
    for module, others in graph.items():
        here = room(module)
        needed[here] |= {room(o) for o in others if row[room(o)] == row[here]} - {here}
    return needed


def test_every_room_has_a_place_in_the_order():
    assert {room(module) for module in modules()} == set().union(*ORDER)


def test_no_circle_of_modules():
    assert circle(imports(modules())) == []


def test_no_circle_of_rooms():
    assert circle(rooms_of_one_row(imports(modules()))) == []


def test_nothing_runs_back_up():
    assert back_up(imports(modules())) == []


def test_nothing_but_its_tool_imports_reproduce():
    needs = imports(modules())
    importers = {a for a, needed in needs.items() if any(room(b) == "reproduce" for b in needed)}
    outside = {module for module in importers if room(module) != "reproduce"}
    assert outside == {"tools.reproduce_paper"}


def test_a_circle_and_an_import_from_above_are_seen():
    rows, loop, lm = "gam_scale.data.rows", "gam_scale.train.loop", "gam_scale.model.lm"
    text = f"import {loop}\ndef f():\n    from gam_scale.model import lm"
    graph = imports({rows: ast.parse(text), loop: ast.parse(""), lm: ast.parse("")})
    assert graph[rows] == {loop, lm} and circle(graph) == []
    assert back_up(graph) == [(rows, loop)]
    graph[loop].add(rows)
    assert set(circle(graph)) == {rows, loop}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(tree: ast.Module, known: Mapping[str, ast.Module]) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & known.keys() or {node.module}
    return names


if __name__ == "__main__":
    found = imports(modules())
    print("circle of modules:", circle(found) or "none")
    print("circle of rooms:", circle(rooms_of_one_row(found)) or "none")
    for importer, imported in back_up(found):
        print(f"{importer} imports {imported}")
