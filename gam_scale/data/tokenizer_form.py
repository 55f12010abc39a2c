"""The stored form of a tokenizer that others made: its own file's content and how it is used."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from gam_scale.data.tokenizer import Choice
from gam_scale.errors import UserError
from gam_scale.strict import from_dict, parse_json

FORMAT = "gam-scale-tokenizer"
SENTENCEPIECE: Literal["sentencepiece"] = "sentencepiece"
HUGGINGFACE: Literal["huggingface"] = "huggingface"


@dataclass(frozen=True)
class Wrapped:
    """A stored tokenizer: its kind, the names of its special tokens, and the file's content."""

    format: str
    kind: Literal["sentencepiece", "huggingface"]
    bos: str
    eos: str | None
    lossy: bool
    model: Any
    """sentencepiece: base64; huggingface: the object of tokenizer.json."""

    @property
    def choice(self) -> Choice:
        """How the tokenizer is used."""
        return Choice(self.bos, self.eos, self.lossy)


def wrap(kind: str, names: tuple[str, str | None], lossy: bool, model: Any) -> bytes:
    """Return the bytes of a stored tokenizer; equal tokenizers give equal bytes."""
    bos, eos = names
    data = {"format": FORMAT, "kind": kind, "bos": bos, "eos": eos, "lossy": lossy, "model": model}
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def is_json(data: bytes) -> bool:
    """Return whether a tokenizer's file is JSON; a sentencepiece model begins with another byte."""
    return data.lstrip()[:1] == b"{"


def unwrap(data: bytes, name: str) -> Wrapped | dict[str, Any]:
    """Parse a stored tokenizer, or else the object of a tokenizer.json.

    Raises:
        UserError: the data is neither.
    """
    try:
        found = parse_json(data.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: cannot be read ({error}); expected a tokenizer") from None
    if isinstance(found, dict) and found.get("format") == FORMAT:
        wrapped: Wrapped = from_dict(Wrapped, found, name)
        content = wrapped.model
        if isinstance(content, str) if wrapped.kind == SENTENCEPIECE else _is_tokenizer(content):
            return wrapped
        raise UserError(f"{name}: holds no tokenizer of {wrapped.kind}; copy it again")
    if not _is_tokenizer(found):
        raise UserError(
            f"{name}: is not a tokenizer; expected a sentencepiece model, or tokenizer.json of "
            "Hugging Face's tokenizers with an object 'model'"
        )
    return found


def _is_tokenizer(content: Any) -> bool:
    """Return whether ``content`` has the form of a tokenizer.json."""
    return isinstance(content, dict) and isinstance(content.get("model"), dict)
