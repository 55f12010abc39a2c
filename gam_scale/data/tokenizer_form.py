"""How a tokenizer that others made is stored: its own file's content, and how it is used."""

import json
from dataclasses import dataclass
from typing import Any

from gam_scale.data.tokenizer import Choice
from gam_scale.errors import UserError
from gam_scale.strict import from_dict, parse_json

FORMAT = "gam-scale-tokenizer"
SENTENCEPIECE, HUGGINGFACE = "sentencepiece", "huggingface"


@dataclass(frozen=True)
class Wrapped:
    """A stored tokenizer: its kind, the names of its special tokens, and the file's content."""

    format: str
    kind: str
    bos: str
    eos: str | None
    lossy: bool
    model: Any
    """sentencepiece: base64; huggingface: the object of tokenizer.json."""

    @property
    def choice(self) -> Choice:
        """How it is used."""
        return Choice(self.bos, self.eos, self.lossy)


def wrap(kind: str, names: tuple[str, str | None], lossy: bool, model: Any) -> bytes:
    """The bytes of a stored tokenizer: equal ones for equal tokenizers."""
    bos, eos = names
    data = {"format": FORMAT, "kind": kind, "bos": bos, "eos": eos, "lossy": lossy, "model": model}
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def is_json(data: bytes) -> bool:
    """Whether a tokenizer's file is JSON: a sentencepiece model begins with another byte."""
    return data.lstrip()[:1] == b"{"


def unwrap(data: bytes, name: str) -> Wrapped | dict[str, Any]:
    """A stored tokenizer, or else the object of a tokenizer.json.

    Raises:
        UserError: it is neither.
    """
    try:
        found = parse_json(data.decode("utf-8"), name)
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: cannot be read ({error}); expected a tokenizer") from None
    if isinstance(found, dict) and found.get("format") == FORMAT:
        return from_dict(Wrapped, found, name)
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        raise UserError(
            f"{name}: is not a tokenizer; expected a sentencepiece model, or tokenizer.json of "
            "Hugging Face's tokenizers with an object 'model'"
        )
    return found
