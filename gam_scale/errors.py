"""Exceptions that are no defects: a user's mistake, another rank's failure, a request to stop."""

MOST_CHARACTERS = 1200
"""The most in a message: several lines of a terminal, not the page that a pasted value would fill.
"""


class UserError(Exception):
    """A mistake in what the user gave: one sentence saying what, where, and what would be accepted.

    Command lines print it as a single ``error:`` line and exit with status 2; a traceback is kept
    for defects of our own. Whatever a message quotes, it stays one line that a terminal can show.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, MOST_CHARACTERS))


class Diverged(UserError):
    """A run's training diverges: to train it again with the same settings would not help."""


class EndedByOthers(Exception):
    """Another rank's failure, which the message names, ended this rank: it is no defect here.

    Command lines print the message and exit with status 1; the traceback is in the rank's log.
    """


class MistakeElsewhere(EndedByOthers):
    """Another rank's error, which a user has to mend, ended this rank: a restart would not help.

    Command lines exit with status 2.
    """


class Stopped(Exception):
    """A signal asked the process to stop, and the work in progress has nothing to save."""


def one_line(text: str, most: int = 60) -> str:
    """Return a text as a message quotes it: printable, and cut to at most ``most`` characters."""
    text = printable(text[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."


def printable(text: str) -> str:
    """Return a text whose unprintable characters, which may command a terminal, are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
