"""A conversation: what it costs, what the model is told, and how it ends."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from small import small
from warm import PATH

from gam_scale.chat import Chat
from gam_scale.data.chat_template import DEFAULT, ChatTemplate
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.data.tokenizer_file import load_tokenizer
from gam_scale.errors import UserError
from gam_scale.generate import Continuation, Sampling
from gam_scale.model.lm import build_model

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def tokenizer(prepared_set: Path) -> Tokenizer:
    return load_tokenizer(prepared_set / "tokenizer.model")


class Told:
    """A model that records the ids that it reads, and says given text or ids, then the end."""

    def __init__(self, tokenizer: Tokenizer, *says: str | int) -> None:
        self.model = build_model(small("static", vocab_size=tokenizer.vocab_size), seed=1)
        self.says = [
            token
            for part in says
            for token in (tokenizer.encode(part) if isinstance(part, str) else [part])
        ]
        self.read: list[list[int]] = []
        extend = self.model.extend

        def noted(tokens, state):
            self.read.append(tokens[0].tolist())
            _, state = extend(tokens, state)
            logits = torch.zeros(1, tokenizer.vocab_size)
            logits[0, self.says.pop(0) if self.says else tokenizer.bos_id] = 9.0
            return logits, state

        self.model.extend = noted


def chat(told: Told, tokenizer: Tokenizer, template: str = "") -> Chat:
    made = ChatTemplate(template, tokenizer) if template else None
    return Chat(Continuation(told.model, tokenizer, GREEDY), tokenizer, made)


def test_a_text_goes_on_and_nothing_is_read_twice(tokenizer):
    told = Told(tokenizer, "the dog", "a tree", tokenizer.bos_id, "near")
    talk = chat(told, tokenizer)
    n = len(tokenizer.encode("the dog"))
    assert "".join(talk.answer("a cat sees", n)) == "the dog"
    assert "".join(talk.answer("finds")) == "a tree"
    expected = [tokenizer.bos_id, *tokenizer.encode("a cat sees"), *tokenizer.encode("the dog")]
    expected += [*tokenizer.encode("\nfinds"), *tokenizer.encode("a tree")]
    assert [i for ids in told.read for i in ids] == expected
    told.read.clear()
    assert "".join(talk.answer("over")) == "near"  # the document ended: another begins
    assert told.read[0] == [tokenizer.bos_id, *tokenizer.encode("over")]


def test_a_template_is_followed_and_turns_cost_their_own_tokens(tokenizer):
    template = ChatTemplate(DEFAULT, tokenizer)
    (end,) = template.stops - tokenizer.ends or {tokenizer.bos_id}
    told = Told(tokenizer, " the dog", end, " a tree", end, " runs", end)
    talk = chat(told, tokenizer, DEFAULT)
    assert "".join(talk.answer("a cat")) == " the dog"
    first = [i for ids in told.read for i in ids]
    told.read.clear()
    assert "".join(talk.answer("and then")) == " a tree"
    second = [i for ids in told.read for i in ids]
    text = tokenizer.decode([*first, *second])
    assert text.startswith("User: a cat\n\nAssistant: the dog")
    assert text.count("a cat") == 1 and text.endswith("User: and then\n\nAssistant: a tree")


def test_an_answer_in_other_tokens_is_read_again(tokenizer):
    """The model answers letter by letter, as no tokenizer encodes it."""
    letters = [tokenizer.encode(letter)[-1] for letter in " cat"]
    told = Told(tokenizer, *letters, tokenizer.bos_id, " a tree")
    talk = chat(told, tokenizer, DEFAULT)
    assert "".join(talk.answer("a dog")) == " cat"
    told.read.clear()
    assert "".join(talk.answer("and then")) == " a tree"
    read = tokenizer.decode([i for ids in told.read for i in ids])
    assert read.startswith("User: a dog\n\nAssistant: cat")


def test_half_a_character_waits_for_its_other_half(tokenizer):
    halves = tokenizer.encode("é")
    assert len(halves) > 1
    told = Told(tokenizer, "a", *halves, tokenizer.bos_id)
    assert list(chat(told, tokenizer).answer("x")) == ["a", "é"]
    told = Told(tokenizer, "a", halves[0], tokenizer.bos_id)
    assert list(chat(told, tokenizer).answer("x")) == ["a", "\N{REPLACEMENT CHARACTER}"]


def test_what_is_left_before_its_end_is_what_was_said(tokenizer):
    told = Told(tokenizer, "the dog finds a tree", " near")
    talk = chat(told, tokenizer)
    answer = talk.answer("a cat")
    said = [next(answer), next(answer)]
    answer.close()
    list(talk.answer("and", 1))
    text = tokenizer.decode([i for ids in told.read for i in ids])
    assert text == f"a cat{''.join(said)}\nand"


def test_the_tool_answers_lines_and_forgets_what_is_too_long(whole, tmp_path):
    """Standard input is no terminal; the second line is too long for a context of 48 tokens."""
    run = whole(model={"block": "attention", "attention": {"n_heads": 2}}, train={"steps": 4})
    lines = f"the cat\n{'sees ' * 80}\nthe dog\n"
    command = [sys.executable, "tools/generate.py", str(run), "--chat", "--device", "cpu"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=ENVIRONMENT,
        input=lines.encode() + b"\xff\n",
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.count(b"\n") >= 3
    error = done.stderr.decode()
    assert "all that was said is forgotten" in error and "bytes that are not UTF-8" in error


def test_on_a_terminal_ctrl_c_ends_an_answer_and_ctrl_d_the_chat(whole):
    run = whole(model={"layers": ["delta"], "memory": {"n_heads": 2}}, train={"steps": 4})
    main, side = pty.openpty()
    command = [sys.executable, "tools/generate.py", str(run), "--chat", "--device", "cpu"]
    many = [*command, "--max-tokens", "1000000", "--temperature", "9"]
    process = subprocess.Popen(
        many,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
        # A shell has its background jobs ignore Ctrl-C, and these tests may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(side)
    try:
        until(main, lambda seen: b"> " in seen)
        os.write(main, b"the cat\n")
        until(main, lambda seen: b"\n" in seen and len(seen) >= 40)
        process.send_signal(signal.SIGINT)
        until(main, lambda seen: b"> " in seen)
        interrupt = partial(process.send_signal, signal.SIGINT)
        until(main, lambda seen: b"(Ctrl-D ends)" in seen, press=interrupt)
        with suppress(OSError):  # its side of the terminal is closed
            until(main, lambda _: False, press=lambda: os.write(main, b"\x04"))
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(main)


def until(
    main: int, done: Callable[[bytes], bool], press: Callable[[], object] = lambda: None
) -> None:
    """Read the terminal until ``done`` is true of what it has shown since the call.

    ``press`` is called whenever the terminal is silent for a second: a key pressed after a prompt
    but before it is read may be lost or come late, and an answer may have what looks like a prompt.
    """
    seen, deadline = b"", time.monotonic() + 100
    while not done(seen):
        assert time.monotonic() < deadline, f"the last shown: {seen[-500:]!r}"
        if select.select([main], [], [], 1)[0]:
            seen += os.read(main, 4096)
        else:
            press()


def test_a_prompt_from_standard_input_is_no_chat(run_tool, tmp_path, capsys):
    assert run_tool("generate", tmp_path, "-", "--chat") == 2
    assert "--chat reads its lines from standard input" in capsys.readouterr().err


def test_a_conversation_longer_than_the_context_is_a_sentence(tokenizer):
    config = small("attention", vocab_size=tokenizer.vocab_size, position="learned", max_seq_len=8)
    model = build_model(config, seed=0)
    talk = Chat(Continuation(model, tokenizer, GREEDY), tokenizer)
    with pytest.raises(UserError, match="the prompt has .* tokens and the model's context 8"):
        list(talk.answer("the cat sees the dog and the tree"))
