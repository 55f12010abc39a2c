"""The exceptions that are no defects: a mistake to mend, another rank's failure, a wish to stop."""

MOST_CHARACTERS = 1200
"""Of a whole message: several lines of a terminal, not the page that a pasted value would fill."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence saying what, where, and what would be accepted.

    Command lines print it as a single ``error:`` line and exit with status 2; a traceback is kept
    for defects of our own. Whatever a message quotes, it stays one line that a terminal can show.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message, MOST_CHARACTERS))


class EndedByOthers(Exception):
    """A failure of another rank, which the message names, ended this one: no defect of its own.

    Command lines print the message and exit with status 1; the traceback is in the rank's log.
    """


class MistakeElsewhere(EndedByOthers):
    """The same where the other rank met what a user can mend: to start again would not help.

    Command lines exit with status 2.
    """


class Stopped(Exception):
    """A signal asked to stop, and what was going on gives way; there is nothing of it to save."""


def one_line(text: str, most: int = 60) -> str:
    """A text as a message quotes it: at most so many characters, and what cannot print escaped."""
    text = printable(text[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."


def printable(text: str) -> str:
    """A text that commands no terminal: what cannot print, line breaks too, is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
