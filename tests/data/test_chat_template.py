"""Chat templates give transformers' text, its ids, and a mask of the ids that carry loss."""

import json

import numpy as np
import pytest
from chats import CHATML, byte_level

from gam_scale.data.chat_template import DEFAULT, ChatTemplate, read_template
from gam_scale.data.conversation import Conversation, Message, conversation_of
from gam_scale.data.tokenizer_file import load_tokenizer
from gam_scale.errors import UserError


def talk(*contents: str, system: str = "") -> Conversation:
    """Return a conversation in which user and assistant take turns, behind ``system`` if given."""
    messages = [Message("system", system)] if system else []
    for i, content in enumerate(contents):
        messages.append(Message(["user", "assistant"][i % 2], content, bool(i % 2)))
    return Conversation(tuple(messages))


TALKS = [
    talk("Who is it?", "It is I."),
    talk("  Wo ist\nes? ", " ¡42 漢字!\n\nYes?  ", system="Be brief.\n"),
    talk("a", "(b).", "c?", "d!\n", "e", '"f"'),
    talk("Say <s> and <|im_end|>", "No: <s>."),
]


@pytest.fixture(scope="module")
def ours(prepared_set):
    """A tokenizer that was trained here, without eos: bos alone separates documents."""
    return load_tokenizer(prepared_set / "tokenizer.model")


@pytest.fixture(scope="module", name="byte_level")
def byte_level_fixture(tmp_path_factory):
    """A tokenizer like GPT-2's, with tokens for chats and an eos of its own."""
    return byte_level(tmp_path_factory.mktemp("tokenizer"))


def learned(tokenizer, ids, carries) -> list[str]:
    """Return the text of each run of ids that carry loss, with special tokens as ``<id>``."""
    runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(carries)) + 1)
    special = set(tokenizer.special_ids.values())
    return [
        "".join(f"<{i}>" if i in special else tokenizer.decode([i]) for i in ids[run].tolist())
        for run in runs
        if carries[run[0]]
    ]


def test_the_default_in_plain_text(ours):
    ids, carries = ChatTemplate(DEFAULT, ours).encode(TALKS[2])
    text = "User: a\n\nAssistant: (b). \n\nUser: c?\n\nAssistant: d! \n\nUser: e\n\nAssistant: "
    assert ids[0] == ids[-1] == ours.bos_id and not carries[0] and carries[-1]
    assert ours.decode(ids) == text + '"f"'
    assert learned(ours, ids, carries) == [" (b).", " d!", f' "f"<{ours.bos_id}>']


def test_an_end_of_its_own_closes_every_answer(byte_level):
    ids, carries = ChatTemplate(DEFAULT, byte_level).encode(TALKS[2])
    end = f"<{byte_level.eos_id}>"
    assert learned(byte_level, ids, carries) == [f" (b).{end}", f" d!{end}", f' "f"{end}']
    assert (ids == byte_level.bos_id).sum() == 1


def test_what_is_not_learned_carries_no_loss(ours):
    row = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "no", "weight": 0},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "yes", "weight": 1},
    ]
    read = conversation_of({"messages": row}, "x")
    assert learned(ours, *ChatTemplate(DEFAULT, ours).encode(read)) == [f" yes<{ours.bos_id}>"]
    for name in ("completion", "response"):
        read = conversation_of({"prompt": row[:3], name: "yes"}, "x")
        assert learned(ours, *ChatTemplate(DEFAULT, ours).encode(read)) == [f" yes<{ours.bos_id}>"]


def test_special_tokens_of_a_template_are_ids_and_those_of_messages_letters(byte_level):
    template = ChatTemplate(CHATML, byte_level)
    ids, carries = template.encode(TALKS[3])
    end = byte_level.special_ids["<|im_end|>"]
    assert (ids == end).sum() == 2 and (ids == byte_level.special_ids["<|im_start|>"]).sum() == 2
    assert learned(byte_level, ids, carries) == [f"No: <s>.<{end}>"]
    assert "Say <s> and <|im_end|>" in byte_level.decode(ids)
    assert template.stops == {end, byte_level.bos_id, byte_level.eos_id}


@pytest.mark.parametrize("source", [DEFAULT, CHATML])
@pytest.mark.parametrize("talk_", TALKS)
def test_a_prompt_is_how_the_conversation_begins(byte_level, ours, source, talk_):
    for tokenizer in (byte_level, ours):
        template = ChatTemplate(source, tokenizer)
        ids, carries = template.encode(talk_)
        prompt = template.prompt(talk_.messages[:-1])
        assert prompt == ids[: len(prompt)].tolist() and carries[len(prompt)]
        assert carries[len(prompt) :].sum() >= len(carries) - len(prompt) - 1  # all but a last "\n"


def test_the_text_is_the_one_that_transformers_renders(ours):
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    for source in (DEFAULT, CHATML):
        for talk_ in TALKS:
            messages = [message.as_dict() for message in talk_.messages]
            names = {"bos_token": "<s>", "eos_token": "<s>", "pad_token": "<s>"}
            for count, prompt in ((len(messages), False), (len(messages) - 1, True)):
                (theirs,), _ = utilities.render_jinja_template(
                    conversations=[messages[:count]],
                    chat_template=source,
                    add_generation_prompt=prompt,
                    **names,
                )
                template = ChatTemplate(source, ours)
                ids = template.prompt(talk_.messages[:-1]) if prompt else template.encode(talk_)[0]
                text = theirs.removeprefix("<s>").removesuffix("<s>" if source == DEFAULT else "")
                assert ours.decode(ids) == text


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("{% for %}", "cannot be read"),
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ messages[0]['content'] }}", "leaves an answer out"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}x", "with add_generation_p"),
        ("{% for m in messages %}{{ m['content'] | length }}{% endfor %}", "by what is in it"),
        ("{% for m in messages %}{{ bos_token + m['content'] }}{% endfor %}", "within a conv"),
        ("{{ messages.append(1) }}", "does not take"),
    ],
)
def test_templates_that_cannot_be(ours, source, fault):
    with pytest.raises(UserError, match=fault):
        ChatTemplate(source, ours).encode(TALKS[0])


def test_a_file_that_is_no_template(tmp_path):
    for content in (b"\xff{{ x }}", b" \n"):
        (tmp_path / "chat.jinja").write_bytes(content)
        with pytest.raises(UserError, match="chat.jinja: is empty or not UTF-8; expected a chat"):
            read_template(tmp_path / "chat.jinja")


def test_noncharacters_are_refused(ours):
    with pytest.raises(UserError, match="U[+]FDD0"):
        ChatTemplate(DEFAULT, ours).encode(talk("a\ufdd01", "b"))


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ([], "holds list"),
        ({"text": "a"}, "has 'text'; expected a row with 'messages'"),
        ({"prompt": "a"}, "expected a row with 'messages'"),
        ({"messages": []}, "messages is \\[\\]"),
        ({"messages": ["a"]}, r"messages\[0\] is \"a\""),
        ({"messages": [{"role": "human", "content": "a"}]}, 'role is "human"; expected one of'),
        ({"messages": [{"role": "user", "content": " \n"}]}, r"messages\[0\].content is empty"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "content is .*; expected text"),
        ({"messages": [{"role": "user", "content": "a"}]}, "ends with a message of user"),
        ({"prompt": "a", "completion": ""}, r"completion\[0\].content is empty"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no message of user before"),
        (
            {"prompt": "a", "completion": [{"role": "assistant", "content": "b", "weight": 0}]},
            "every answer has weight 0",
        ),
        (
            {"prompt": "a", "completion": [{"role": "assistant", "content": "b", "weight": 0.5}]},
            "weight is 0.5",
        ),
    ],
)
def test_rows_that_are_none_say_so(row, fault):
    with pytest.raises(UserError, match=f"pairs.jsonl: line 3.*{fault}"):
        raise conversation_of(json.loads(json.dumps(row)), "pairs.jsonl: line 3")
