"""Values as they may stand in a job script, where a line break would begin a line of its own."""

import re

from gam_scale.errors import UserError, one_line


def in_one_line(value: str, what: str) -> str:
    """``value`` itself.

    Raises:
        UserError: it has a line break or another control character.
    """
    if value.isprintable():
        return value
    raise UserError(
        f"{what} is {one_line(value)}; expected no line break or other control character, which "
        "would end its line of the job script"
    )


def sbatch_options(text: str) -> dict[str, str | bool]:
    """GAM_SBATCH, such as ``exclusive mem=0``, by option; True where there is no value.

    Raises:
        UserError: a word is no option.
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
    """Lines of shell for a job script; none where ``text`` is empty.

    Raises:
        UserError: one of them is an option for sbatch.
    """
    lines = text.splitlines()
    for line in lines:
        if line.startswith("#SBATCH"):
            raise UserError(
                f"{what} has the line {one_line(line)}; expected commands, and sbatch's options in "
                "GAM_SBATCH"
            )
    return lines
