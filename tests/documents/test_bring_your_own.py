"""docs/bring_your_own.md: every row names tests that are there."""

import ast
import re

from pages import ROOT

PAGE = ROOT / "docs" / "bring_your_own.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_row_names_a_test_that_is_there():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [line for line in lines if not line.startswith("| what you bring")]
    assert len(rows) > 15 and len({line.count("|") for line in rows}) == 1
    for line in rows:
        found = NAMED.findall(line.rsplit("|", 2)[1])
        assert found, f"a row without a test: {line}"
        for path, name in found:
            body = ast.parse((ROOT / path).read_text()).body
            there = {node.name for node in body if isinstance(node, ast.FunctionDef)}
            assert name in there, f"{path} has no {name}"
