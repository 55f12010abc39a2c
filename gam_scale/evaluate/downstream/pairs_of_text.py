"""Tokens of a context and its continuation, and the boundary between them."""

from collections.abc import Sequence

import numpy as np

from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.evaluate.scorer import Text
from gam_scale.strict import shown


def continued(
    tokenizer: Tokenizer, context: str, continuation: str, seq_len: int
) -> tuple[Text, np.ndarray]:
    """Return a text that asks for the ids of ``continuation``, and these ids.

    The boundary is lm-evaluation-harness's: space at the end of the context belongs to the
    continuation, whose ids are those of the whole text without as many at its start as the context
    alone has. The text begins with bos; if it is too long, its last ``seq_len`` tokens are read.

    Raises:
        UserError: both are empty, or the continuation alone is longer than ``seq_len``.
    """
    before = context.rstrip()
    whole = tokenizer.encode(context + continuation)
    n = max(1, len(whole) - len(tokenizer.encode(before)))
    if not whole or n > seq_len:
        raise UserError(
            f"{shown(continuation)} has {n if whole else 0} tokens; expected 1 to the {seq_len} "
            "that the model reads"
        )
    ids = np.array([tokenizer.bos_id, *whole], np.int64)
    read = ids[:-1][-seq_len:]
    return Text(read, np.arange(len(read) - n, len(read))), ids[-n:]


def n_bytes(texts: Sequence[str]) -> np.ndarray:
    """Count the UTF-8 bytes of each text."""
    return np.array([len(text.encode()) for text in texts])
