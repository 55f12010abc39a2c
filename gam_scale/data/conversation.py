"""Conversations to fine-tune a model on, as read from the rows of files and data sets."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from gam_scale.errors import UserError
from gam_scale.strict import shown

ROLES = ("system", "user", "assistant")
MESSAGES, PROMPT, COMPLETION = "messages", "prompt", "completion"
RESPONSE = "response"  # llm-foundry's other name for a completion
COLUMNS = (MESSAGES, PROMPT, COMPLETION, RESPONSE)
EXPECTED = f"a row with {MESSAGES!r}, or with {PROMPT!r} and {COMPLETION!r}"


@dataclass(frozen=True)
class Message:
    """What one side says; ``is_learned`` marks an answer that the model learns to give."""

    role: str
    content: str
    is_learned: bool = False

    def as_dict(self) -> dict[str, str]:
        """Return the message in the form that chat templates expect."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Conversation:
    """Messages in order: a prompt, an answer, perhaps more of both; the last one is an answer."""

    messages: tuple[Message, ...]
    where: str = ""
    """The file and line that the conversation was read from, for error messages."""

    def __len__(self) -> int:
        """Return the number of characters in all contents."""
        return sum(len(message.content) for message in self.messages)

    @property
    def size(self) -> int:
        """The number of UTF-8 bytes in all contents."""
        return sum(len(message.content.encode()) for message in self.messages)

    def digest(self, size: int) -> bytes:
        """Return a hash of who says what and what is learned; ``where`` does not enter it."""
        said = [[m.role, m.content, m.is_learned] for m in self.messages]
        return hashlib.blake2b(json.dumps(said).encode(), digest_size=size).digest()


def conversation_of(row: Any, where: str) -> Conversation | UserError:
    """Return a row's conversation, or the error that says what is wrong with the row.

    A row has either ``messages``, or ``prompt`` and ``completion`` (or ``response``). ``messages``
    are objects with ``role`` and ``content``, in the format of OpenAI and Hugging Face; every
    answer is learned except those of ``weight`` 0. ``prompt`` and ``completion`` are texts or lists
    of such messages; only the answers in ``completion`` are learned.
    """
    try:
        if not isinstance(row, dict):
            raise UserError(f"{where}: holds {type(row).__name__}; expected {EXPECTED}")
        if row.get(MESSAGES) is not None:
            messages = _messages(row[MESSAGES], f"{where}: {MESSAGES}")
        elif row.get(PROMPT) is not None and (answer := _answer(row)) is not None:
            messages = _pair(row[PROMPT], *answer, where)
        else:
            names = ", ".join(map(repr, row)) or "nothing"
            raise UserError(f"{where}: has {names}; expected {EXPECTED}")
        _check_turns(messages, where)
    except UserError as error:
        return error
    return Conversation(tuple(messages), where)


def _answer(row: dict[str, Any]) -> tuple[str, Any] | None:
    """Return the name and the value of the row's answer column, or None if it has none."""
    found = ((name, row[name]) for name in (COMPLETION, RESPONSE) if row.get(name) is not None)
    return next(found, None)


def _pair(prompt: Any, column: str, answer: Any, where: str) -> list[Message]:
    sides = []
    for name, value, role in ((PROMPT, prompt, "user"), (column, answer, "assistant")):
        if isinstance(value, str):
            value = [{"role": role, "content": value}]
        sides.append(_messages(value, f"{where}: {name}"))
    return [Message(message.role, message.content) for message in sides[0]] + sides[1]


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{where} is {shown(value)}; expected a list of objects with role and content"
        )
    return [_message(each, f"{where}[{i}]") for i, each in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise UserError(f"{where} is {shown(value)}; expected an object with role and content")
    role, content, weight = value.get("role"), value.get("content"), value.get("weight")
    if role not in ROLES:
        raise UserError(f"{where}.role is {shown(role)}; expected one of {', '.join(ROLES)}")
    if not isinstance(content, str) or not content.strip():
        kind = "empty" if isinstance(content, str) else shown(content)
        raise UserError(f"{where}.content is {kind}; expected text")
    if weight not in (None, 0, 1):
        raise UserError(f"{where}.weight is {shown(weight)}; expected 0 or 1, or none")
    # JSON can spell half a surrogate pair, which no encoding of text can hold.
    content = content.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return Message(role, content, role == "assistant" and weight != 0)


def _check_turns(messages: list[Message], where: str) -> None:
    roles = [message.role for message in messages]
    if roles[-1] != "assistant":
        raise UserError(
            f"{where}: ends with a message of {roles[-1]}; expected an answer of assistant there"
        )
    if "user" not in roles[: roles.index("assistant")]:
        raise UserError(f"{where}: has no message of user before the first of assistant")
    if not any(message.is_learned for message in messages):
        raise UserError(f"{where}: every answer has weight 0; expected one to learn")
