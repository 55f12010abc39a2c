"""README.md and the other pages, and the commands that they tell users to type."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)


class Command(NamedTuple):
    """One command of a page, its continued lines joined, and the page's comments (#) on it."""

    page: str
    line: str
    said: str
    """The comment lines above it in its block, and the comment on its own line."""

    @property
    def words(self) -> list[str]:
        """The command's words, split as a shell does."""
        return shlex.split(self.line, comments=True)

    def __str__(self) -> str:
        return f"{self.page}: {self.line.strip()}"


def blocks(page: Path, language: str) -> list[str]:
    """Return the contents of a page's fenced blocks of a language."""
    found = FENCED.findall(page.read_text(encoding="utf-8"))
    return [text for name, text in found if name == language]


LOOP = re.compile(r"for (\w+) in ([^;]+); do\n(.*?)^done\n", re.M | re.S)
"""A loop of a shell over words, with its body."""


def unrolled(block: str) -> str:
    """Return a block's lines, those of a loop once for each of its words."""

    def each(loop: re.Match[str]) -> str:
        name, words, body = loop.groups()
        return "".join(body.replace(f"${name}", word) for word in words.split())

    return LOOP.sub(each, block)


def commands(page: Path) -> list[Command]:
    """Return the commands in a page's bash blocks, in order."""
    found = []
    for block in blocks(page, "bash"):
        alone = ""
        for line in unrolled(block).replace("\\\n", " ").splitlines():
            if line.lstrip().startswith("#"):
                alone += f" {line}"
            elif line.strip():
                own = line.partition(" #")[2]
                found.append(Command(page.name, line, f"{alone} {own}"))
    return found


def inline(page: Path) -> list[str]:
    """Return the inline code of a page's sentences and tables, each piece on one line."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


QUICK = {
    "train.warmup_steps": 2,
    "train.global_batch_size": 4,
    "eval.every_steps": 0,
    "log.wandb": "off",
    "log.tensorboard": "false",
    "parallel.engine": "torch",
    "parallel.device": "cpu",
}
"""Settings that, with a smaller model and fewer steps, make a page's training take seconds."""


def overrides(settings: dict[str, object]) -> list[str]:
    """Return the command-line words that set these settings."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def type_in(
    run_tool: Callable[..., int],
    words: list[str],
    settings: dict[str, object],
    instead: dict[str, object],
) -> None:
    """Run a page's command in this process.

    Args:
        run_tool: the fixture.
        words: the command.
        settings: set over the page's own, if the command is a training.
        instead: replacements for some words.
    """
    program, path, *rest = words
    assert program == "python", words
    tool = path.removeprefix("tools/").removesuffix(".py")
    more = overrides(settings) if tool == "pretrain" else []
    assert run_tool(tool, *[instead.get(word, word) for word in rest], *more) == 0, words


COMMANDS = [command for page in PAGES for command in commands(page)]
