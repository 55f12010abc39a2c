"""The table of results: a row for each figure, in the order of the checks."""

from typing import Any


def table(results: list[dict[str, Any]]) -> str:
    """Return Markdown of results that :func:`benchmarks.accept.start.run_check` returned."""
    lines = ["| check | status | seconds |", "|---|---|--:|"]
    for result in results:
        name = f"{result['check']} {result['title']}"
        lines.append(f"| {name} | {result['status']} | {result['seconds']:.0f} |")
    lines += ["", "| check | part | figure | value | unit | bound |", "|--:|---|---|--:|---|---|"]
    for result in results:
        for part, found in result["parts"].items():
            place = [str(result["check"]), part]
            lines += [_row(*place, *_cells(figure)) for figure in found["figures"]]
            lines += [_row(*place, *note, "", "") for note in found["notes"].items()]
    wrong = [line for result in results for line in _errors(result)]
    return "\n".join([*lines, *(["", "What went wrong:", "", *wrong] if wrong else [])]) + "\n"


def _cells(figure: dict[str, Any]) -> tuple[str, ...]:
    value = figure["value"]
    shown = value if isinstance(value, str) else number(value)
    bounds = [f"at most {figure['at_most']:g}"] if "at_most" in figure else []
    bounds += [f"at least {figure['at_least']:g}"] if "at_least" in figure else []
    missed = "" if figure["ok"] else " MISSED"
    return figure["figure"], shown, figure["unit"], ", ".join(bounds) + missed


def number(value: float) -> str:
    """Format a number: four digits, thousands with commas, tiny and huge ones by powers of ten."""
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e9:
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:.2e}"


def _errors(result: dict[str, Any]) -> list[str]:
    place = f"check {result['check']}"
    lines = [f"* {place}: {_line(result['error'])}"] if "error" in result else []
    for part, found in result["parts"].items():
        lines += [f"* {place}, {part}: {_line(error)}" for error in found["errors"]]
        if found["status"] == "not run":
            lines.append(f"* {place}, {part}: not run")
    return lines


def _row(*cells: str) -> str:
    return "| " + " | ".join(_line(cell) for cell in cells) + " |"


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")
