"""Checks of values that go into a job script, where a line break would begin a new line."""

import re

from gam_scale.errors import UserError, one_line


def in_one_line(value: str, what: str) -> str:
    """Return ``value`` unchanged.

    Raises:
        UserError: ``value`` has a line break or another control character.
    """
    if value.isprintable():
        return value
    raise UserError(
        f"{what} is {one_line(value)}; expected no line break or other control character, which "
        "would end its line of the job script"
    )


def sbatch_options(text: str) -> dict[str, str | bool]:
    """Return the options in GAM_SBATCH, such as ``exclusive mem=0``; True for one without a value.

    Raises:
        UserError: a word is not an option.
    """
    options: dict[str, str | bool] = {}
    for word in text.split():
        name, equals, value = word.removeprefix("--").partition("=")
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_-]*", name):
            raise UserError(
                f"GAM_SBATCH has {one_line(word)}; expected sbatch's long options, such as "
                "exclusive mem=0"
            )
        options[name.replace("-", "_")] = (
            in_one_line(value, f"GAM_SBATCH's {name}") if equals else True
        )
    return options


def shell_lines(text: str, what: str) -> list[str]:
    """Return the lines of ``text``, shell commands for a job script.

    Raises:
        UserError: a line is an option for sbatch.
    """
    lines = text.splitlines()
    for line in lines:
        if line.startswith("#SBATCH"):
            raise UserError(
                f"{what} has the line {one_line(line)}; expected commands, and sbatch's options in "
                "GAM_SBATCH"
            )
    return lines
