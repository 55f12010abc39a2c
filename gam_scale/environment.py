"""What launchers and schedulers leave in the environment, read as numbers."""

from collections.abc import Mapping

from gam_scale.errors import UserError
from gam_scale.strict import shown


def number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    """The whole number, zero or more, that the variable ``name`` holds.

    Args:
        env: where it stands.
        name: of the variable.
        default: where it is absent or empty; None: it must be there.

    Raises:
        UserError: it is no such number.
    """
    value = env.get(name, "")
    if not value and default is not None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise UserError(f"{name} is {shown(value)} in the environment; expected a number")
    return int(value)
