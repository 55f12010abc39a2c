"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence saying what, where, and what would be accepted.

    Command lines print it as a single ``error:`` line and exit with status 2; a traceback is kept
    for defects of our own.
    """
