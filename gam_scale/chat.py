"""Conversations with a model: messages of a chat template or, without one, a growing text."""

from collections.abc import Iterator

from gam_scale.data.chat_template import ChatTemplate
from gam_scale.data.conversation import Message
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.generate import Continuation


class Chat:
    """A conversation whose turns cost only their own tokens: the state holds what was read before.

    With a template, a turn is a message and its answer. If the template writes an answer in other
    tokens than the model chose, that turn is read once more. Without a template, a message is added
    to the text on a line of its own, or begins a new document if the model has ended the last one.

    Args:
        text: an empty text, which the model continues.
        tokenizer: the model's.
        template: the chat template; None: none.
    """

    def __init__(
        self, text: Continuation, tokenizer: Tokenizer, template: ChatTemplate | None = None
    ) -> None:
        self._text, self._tokenizer, self._template = text, tokenizer, template
        self.restart()

    def restart(self) -> None:
        """Forget all that was said."""
        self._text.restart()
        self._messages: list[Message] = []
        self._mark = self._text.mark()

    def answer(self, said: str, max_tokens: int | None = None) -> Iterator[str]:
        """Yield the model's answer to ``said`` in pieces; if the caller stops early, it ends there.

        Raises:
            UserError: the conversation is longer than the model's context, or the template does not
                take what was said.
        """
        if self._template is None:
            self._add(said)
            yield from self._text.pieces(max_tokens, self._tokenizer.ends)
            return
        messages = [*self._messages, Message("user", said)]
        self._follow(self._template.prompt(messages))
        self._messages, spoken = messages, []
        self._mark = self._text.mark()
        try:
            for piece in self._text.pieces(max_tokens, self._template.stops):
                spoken.append(piece)
                yield piece
        finally:  # even if the caller stops early
            self._messages.append(Message("assistant", "".join(spoken)))

    def _add(self, said: str) -> None:
        if self._text.ended or not self._text.ids:
            self._text.restart()
            self._text.read([self._tokenizer.bos_id, *self._tokenizer.encode(said)])
        elif said:
            self._text.read(self._tokenizer.encode(f"\n{said}"))

    def _follow(self, ids: list[int]) -> None:
        """Make the text ``ids``, going on from its end, else the mark, else from nothing."""
        if not self._begins(ids):
            self._text.go_back(self._mark)
        if not self._begins(ids):
            self._text.restart()
        self._text.read(ids[len(self._text.ids) :])

    def _begins(self, ids: list[int]) -> bool:
        return self._text.ids == ids[: len(self._text.ids)]
