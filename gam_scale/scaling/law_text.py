"""Laws as LaTeX, for a paper, and as rows of a CSV, for a program."""

import re
from collections.abc import Sequence

from gam_scale.report.markdown import one_space
from gam_scale.report.numbers import general
from gam_scale.scaling.analysis import Analysis, Family
from gam_scale.scaling.law import COEFFICIENTS
from gam_scale.scaling.points import UNNAMED

_LATEX = {c: f"\\{c}" for c in "#$%&_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def latex(analysis: Analysis) -> str:
    """Return an equation for each family, in amsmath's ``align``."""
    lines = []
    for family in analysis.families:
        law = family.fit.law
        name = "" if family.name == UNNAMED else f"_{{\\text{{{latex_text(family.name)}}}}}"
        lines.append(
            f"  L{name}(N, D) &= {law.E:.3f} + \\frac{{{_number(law.A)}}}{{N^{{{law.alpha:.3f}}}}}"
            f" + \\frac{{{_number(law.B)}}}{{D^{{{law.beta:.3f}}}}}"
        )
    return "\\begin{align}\n" + " \\\\\n".join(lines) + "\n\\end{align}\n"


def latex_text(text: str) -> str:
    """Return ``text`` on one line, escaped so that LaTeX shows every character."""
    return "".join(_LATEX.get(c, c) for c in one_space(text))


def law_rows(analysis: Analysis) -> tuple[list[str], list[Sequence[object]]]:
    """Return header and rows of a CSV of each family's coefficients, exponents and intervals."""
    quantities = (*COEFFICIENTS, "a", "b", "G")
    header = ["family", *(f"{q}{end}" for q in quantities for end in ("", "_low", "_high"))]
    rows: list[Sequence[object]] = []
    for family in analysis.families:
        cells = [(_value(family, q), *(family.intervals[q] or ("", ""))) for q in quantities]
        rows.append((family.name, *(cell for three in cells for cell in three)))
        rows[-1] = (*rows[-1], family.optimum.flops_per_pair)
    return [*header, "flops_per_parameter_and_token"], rows


def _value(family: Family, quantity: str) -> float:
    source = family.fit.law if quantity in COEFFICIENTS else family.optimum
    return float(getattr(source, quantity))


def _number(value: float) -> str:
    """Format with four digits, without commas, which LaTeX would follow by a space."""
    text = general(value, 4).replace(",", "")
    return re.sub(r"e(-?\d+)$", r" \\times 10^{\1}", text)
