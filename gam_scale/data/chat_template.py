"""Turn conversations into token ids by a Jinja template, like transformers' ``chat_template``."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gam_scale.data.conversation import Conversation, Message
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError, one_line
from gam_scale.files import read_regular

DEFAULT = """\
{{ bos_token }}
{%- for message in messages %}
    {%- set content = message['content'] | trim %}
    {%- if message['role'] == 'assistant' %}
        {{- 'Assistant: ' + content }}
        {%- if loop.last or eos_token != bos_token %}
            {{- eos_token }}
        {%- endif %}
        {%- if not loop.last %}
            {{- ' \\n\\n' }}
        {%- endif %}
    {%- elif message['role'] == 'user' %}
        {{- 'User: ' + content + '\\n\\n' }}
    {%- else %}
        {{- content + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""
"""The default: ``User: ...``, ``Assistant: ...``, unlabelled system messages, blank lines between.

Every answer is closed by eos. If the tokenizer has no eos, bos closes the last answer alone,
because a bos after an earlier answer would begin another document. The spaces before and after an
answer keep every tokenizer from merging it with the text around it.
"""

# Unicode noncharacters, which are text in no script: the content of a message may not hold them.
_ID, _ID_END, _ANSWER, _ANSWER_END = map(chr, range(0xFDD0, 0xFDD4))
_SPECIAL = re.compile(f"{_ID}([0-9]+){_ID_END}")
_CLOSING = re.compile(rf"\s*{_ID}[0-9]+{_ID_END}")
_MARKS = re.compile(f"[{_ANSWER}{_ANSWER_END}]")
_RESERVED = re.compile(f"[{_ID}-{_ANSWER_END}]")


def read_template(path: Path) -> str:
    """Return the source of a template file.

    Raises:
        UserError: the file cannot be read, or is empty or not UTF-8.
    """
    try:
        source = read_regular(path).decode()
    except UnicodeDecodeError:
        source = ""
    if not source.strip():
        raise UserError(f"{path}: is empty or not UTF-8; expected a chat template in Jinja")
    return source


class ChatTemplate:
    """Renders messages as the text, and as the token ids, that a model reads.

    Special tokens that the template writes, as ``bos_token`` or by their names, become their ids;
    special tokens that a message spells out are encoded as ordinary letters.

    Args:
        source: Jinja, rendered with the variables that transformers gives: ``messages``,
            ``add_generation_prompt``, ``bos_token``, ``eos_token`` (bos if the tokenizer has no
            eos), ``pad_token``.
        tokenizer: the model's tokenizer.

    Raises:
        UserError: the source is not a valid template.
    """

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        self.source, self._tokenizer = source, tokenizer
        names = sorted(tokenizer.special_ids, key=len, reverse=True)
        spelled = re.compile("|".join(map(re.escape, names)))
        marked = spelled.sub(lambda match: _mark(tokenizer.special_ids[match[0]]), source)
        try:
            self._template = _environment().from_string(marked)
        except jinja2.TemplateError as error:
            raise UserError(
                f"the chat template cannot be read ({one_line(str(error))}); expected Jinja as "
                "transformers' chat_template"
            ) from None

    @property
    def end_id(self) -> int:
        """The id of eos, or else bos, which ends a conversation that the template leaves open."""
        tokenizer = self._tokenizer
        return tokenizer.bos_id if tokenizer.eos_id is None else tokenizer.eos_id

    @cached_property
    def stops(self) -> frozenset[int]:
        """The ids that end an answer, at which a generator stops."""
        messages = [Message("user", "a"), Message("assistant", "b", is_learned=True)]
        ids, carries = self.encode(Conversation(tuple(messages)))
        return self._tokenizer.ends | {int(ids[np.flatnonzero(carries)[-1]])}

    def prompt(self, messages: Iterable[Message]) -> list[int]:
        """Return the ids of a conversation up to where its next answer begins, bos included.

        Raises:
            UserError: the template rejects these messages.
        """
        text = self._render([_checked(message) for message in messages], prompt=True)
        return self._opened(self._ids(text).tolist())

    def encode(self, conversation: Conversation) -> tuple[np.ndarray, np.ndarray]:
        """Encode a whole conversation.

        Each answer is encoded by itself, as a model writes it: from the end of the prompt before it
        to the special token that closes it, inclusive.

        Returns:
            The ids (n,), bos first, and a mask (n,) bool of the ids that carry loss: the learned
            answers and the tokens that close them.

        Raises:
            UserError: the template rejects the conversation, changes an answer, or writes another
                text before an answer than the prompt that it writes for that answer.
        """
        where = f"{conversation.where}: " if conversation.where else ""
        try:
            return self._encode(conversation.messages)
        except UserError as error:
            raise UserError(f"{where}{error}") from None

    def _encode(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        given = [_checked(message) for message in messages]
        text = self._render(given)
        marked = self._render([_marked(message) for message in given])
        if _MARKS.sub("", marked) != text:
            raise UserError(
                "the chat template treats an answer by what is in it; expected it whole"
            )
        spans = self._spans(given, text, marked)
        parts, carries, done = [], [], 0
        for start, end, is_learned in [*spans, (len(text), len(text), False)]:
            for piece, learned in ((text[done:start], False), (text[start:end], is_learned)):
                ids = self._ids(piece)
                parts.append(ids)
                carries.append(np.full(len(ids), learned))
            done = end
        if not text.endswith(_ID_END, 0, spans[-1][1]):  # nothing closes the last answer
            parts.append(np.array([self.end_id]))
            carries.append(np.array([spans[-1][2]]))
        return self._whole(np.concatenate(parts), np.concatenate(carries))

    def _spans(
        self, messages: Sequence[Message], text: str, marked: str
    ) -> list[tuple[int, int, bool]]:
        """Return (start, end, is_learned) of each answer in ``text``, closing token included."""
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        marks = [match.start() - n for n, match in enumerate(_MARKS.finditer(marked))]
        if len(marks) != 2 * len(answers):
            raise UserError("the chat template leaves an answer out, or writes it twice")
        spans = []
        for i, first, end in zip(answers, marks[::2], marks[1::2], strict=True):
            prompt = self._render(messages[:i], prompt=True)
            if not text.startswith(prompt) or len(prompt) > first:
                raise UserError(
                    f"the chat template writes another text before the answer messages[{i}] than "
                    "with add_generation_prompt; expected the same"
                )
            if closing := _CLOSING.match(text, end):
                end = closing.end()
            elif i == answers[-1]:
                end = len(text)  # where ``end_id`` is appended
            spans.append((len(prompt), end, messages[i].is_learned))
        return spans

    def _whole(self, ids: np.ndarray, carries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        opened = self._opened(ids.tolist())
        carries = np.concatenate([np.zeros(len(opened) - len(ids), bool), carries])
        if self._tokenizer.bos_id in opened[1:-1]:
            raise UserError(
                "the chat template writes the token that opens a document within a conversation; "
                "expected it at its start, and at its end at most"
            )
        return np.array(opened, self._tokenizer.dtype), carries

    def _opened(self, ids: list[int]) -> list[int]:
        bos = self._tokenizer.bos_id
        return ids if ids[:1] == [bos] else [bos, *ids]

    def _ids(self, text: str) -> np.ndarray:
        """Encode a rendered text in which special tokens are marked."""
        parts: list[np.ndarray] = []
        for number, part in enumerate(_SPECIAL.split(text)):
            ids = [int(part)] if number % 2 else self._tokenizer.encode(part)
            parts.append(np.array(ids, np.int64))
        return np.concatenate(parts)

    def _render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        end = _mark(self.end_id)
        try:
            return self._template.render(
                messages=[message.as_dict() for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=prompt,
                bos_token=_mark(self._tokenizer.bos_id),
                eos_token=end,
                pad_token=end,
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise UserError(
                f"the chat template does not take the messages ({one_line(str(error))})"
            ) from None


class _Generation(Extension):
    """Accepts the tag ``generation``, with which some templates mark answers for transformers."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return a Jinja environment like transformers' (utils/chat_template_utils.py).

    It lacks ``strftime_now``, so that the same messages give the same ids on every day.
    """

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment


def _mark(token: int) -> str:
    return f"{_ID}{token}{_ID_END}"


def _checked(message: Message) -> Message:
    if reserved := _RESERVED.search(message.content):
        raise UserError(
            f"a message holds U+{ord(reserved[0]):04X}, which is no character of a text"
        )
    return message


def _marked(message: Message) -> Message:
    """Mark where an answer's text begins and ends, inside the spaces around it."""
    if message.role != "assistant":
        return message
    core = message.content.strip()
    before, _, after = message.content.partition(core)
    return Message(message.role, f"{before}{_ANSWER}{core}{_ANSWER_END}{after}")
