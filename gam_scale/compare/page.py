"""The page of a comparison, made from its rows alone, as HTML, Markdown and pictures."""

import json
from collections.abc import Sequence
from pathlib import Path

from gam_scale.compare import task_tables, text_tables
from gam_scale.compare.spec import Spec, TaskSpec
from gam_scale.experiment.cell import Row
from gam_scale.experiment.kept import RESULTS, write_rows
from gam_scale.files import write_bytes
from gam_scale.report.page import Page, Part
from gam_scale.report.table import Table
from gam_scale.strict import to_dict


def write_page(spec: Spec, rows: Sequence[Row], to: Path) -> list[Path]:
    """Write report.html, report.md, a .png of every figure, and the rows, one a line.

    Args:
        spec: the comparison.
        rows: rows of its finished cells, at least one.
        to: folder to write into, made if need be.

    Returns:
        The paths of the files.
    """
    if isinstance(spec, TaskSpec):
        title, shown = "Models on synthetic tasks", task_tables.parts(rows)
    else:
        title, shown = "Models on text", text_tables.parts(rows, spec)
    names = ", ".join(dict.fromkeys(row["model"] for row in rows))
    parts: list[Part] = [*shown, _settings(spec, rows)]
    files = Page(title, names, parts).files("png")
    to.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_bytes(to / name, data)
    write_rows(rows, to)
    return [*(to / name for name in files), to / RESULTS]


def _settings(spec: Spec, rows: Sequence[Row]) -> Table:
    """Tabulate the settings of the comparison, and the versions of the code that made its rows."""
    versions = sorted({row["code_version"] for row in rows})
    settings = [["code version", ", ".join(versions)]]
    values = to_dict(spec)
    models = values.pop("models")
    shown = [(key, value) for key, value in values.items() if key != "data"]
    settings += [[key, json.dumps(value)] for key, value in [*shown, *models.items()]]
    return Table("Settings", ["setting", "value"], settings, in_words=True)
