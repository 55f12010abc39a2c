"""Test chat templates in an exported folder: transformers finds the same ids and answers."""

import json

import numpy as np
import pytest
from chats import CHATML, byte_level

from gam_scale.data.chat_template import DEFAULT, ChatTemplate
from gam_scale.data.conversation import Conversation, Message
from gam_scale.export.tokenizer_files import tokenizer_files

transformers = pytest.importorskip("transformers")

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who  is\nit? "},
    {"role": "assistant", "content": "It is I."},
    {"role": "user", "content": "na\u00efve \u6f22\u5b57?"},
    {"role": "assistant", "content": "(42) \u00a1no!"},
]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Return a byte-level tokenizer like GPT-2's, with chat tokens and a separate eos."""
    return byte_level(tmp_path_factory.mktemp("tokenizer"))


def exported(tokenizer, template, folder):
    """Export a tokenizer and load it with transformers."""
    for name, content in tokenizer_files(tokenizer, template).items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"model_type": "gam_scale"}))
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("source", [DEFAULT, CHATML], ids=["default", "chatml"])
def test_the_same_ids_and_answers(ours, tmp_path, source):
    theirs, template = exported(ours, source, tmp_path), ChatTemplate(source, ours)
    messages = [Message(m["role"], m["content"], m["role"] == "assistant") for m in TALK]
    ids, carries = template.encode(Conversation(tuple(messages)))
    found = theirs.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    opened = int(source == CHATML)  # CHATML writes no bos; our documents begin with one
    assert ids.tolist()[opened:] == found["input_ids"]
    prompt = theirs.apply_chat_template(TALK[:-1], add_generation_prompt=True)["input_ids"]
    assert template.prompt(messages[:-1])[opened:] == prompt
    if source == CHATML:
        # We learn the token that closes an answer too; transformers' mask leaves it out.
        closing = carries & np.isin(ids, list(template.stops))
        assert closing.sum() == 2
        assert (carries & ~closing)[opened:].tolist() == [bool(n) for n in found["assistant_masks"]]
