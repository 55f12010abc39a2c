"""Tokenizers of Hugging Face are exact, give the library's ids, and can be stored and read."""

import json
import random

import numpy as np
import pytest

from gam_scale.data import tokenizer as t
from gam_scale.data.chat_template import DEFAULT, ChatTemplate
from gam_scale.data.conversation import Conversation, Message
from gam_scale.data.tokenizer import Choice
from gam_scale.data.tokenizer_file import load_tokenizer, read_tokenizer
from gam_scale.errors import UserError
from gam_scale.export.tokenizer_files import tokenizer_files

tk = pytest.importorskip("tokenizers")

TEXT = ["The quick brown fox — naïve café, 漢字 и мир 🧐.\n\n    return 123\n"] * 40
ODD = " \t\r\n a  b\ufb01 e\u0301\x00<s></s><|endoftext|><0x41>\U0001f9d0\u2028  "
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACE = t.SPACE
QWEN = (
    r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(model, special, alphabet=()):
    trainer = tk.trainers.BpeTrainer(
        vocab_size=450, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(TEXT, trainer)
    return model


def byte_level(regex=None, normalizer=None, prefix=False, special=("<|endoftext|>",)):
    """Return a tokenizer of GPT-2's kind or, with ``regex``, of Qwen's and Llama 3's."""
    model = tk.Tokenizer(tk.models.BPE())
    pre, letters = tk.pre_tokenizers, tk.pre_tokenizers.ByteLevel.alphabet()
    if regex:
        split = pre.Split(tk.Regex(regex), "isolated")
        bytewise = pre.ByteLevel(add_prefix_space=False, use_regex=False)
        model.pre_tokenizer = pre.Sequence([split, bytewise])
    else:
        model.pre_tokenizer = pre.ByteLevel(add_prefix_space=prefix)
    if normalizer:
        model.normalizer = normalizer
    model.decoder = tk.decoders.ByteLevel()
    return trained(model, list(special), letters)


def with_spaces(prefix):
    """Return a tokenizer of Llama 2's kind, which writes spaces as U+2581.

    ``prefix`` says how it puts a space before a text: by a "normalizer" as in Llama's old files, by
    "metaspace" as in its new ones, or not at all ("") as in Gemma's.
    """
    model = tk.Tokenizer(tk.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace, first = tk.normalizers.Replace(" ", SPACE), tk.normalizers.Prepend(SPACE)
    if prefix == "metaspace":
        model.pre_tokenizer = tk.pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    else:
        model.pre_tokenizer = tk.pre_tokenizers.Split(SPACE, "merged_with_next")
        parts = [first, replace] if prefix == "normalizer" else [replace]
        model.normalizer = tk.normalizers.Sequence(parts)
    steps = [tk.decoders.Replace(SPACE, " "), tk.decoders.ByteFallback(), tk.decoders.Fuse()]
    if prefix:
        steps.append(tk.decoders.Strip(" ", 1, 0))
    model.decoder = tk.decoders.Sequence(steps)
    model = trained(model, ["<unk>", "<s>", "</s>"])
    content = json.loads(model.to_str())  # the byte pieces are pieces, not special tokens
    if prefix == "metaspace":  # trained on words, used on whole texts
        content["pre_tokenizer"]["split"] = False
    else:
        content["pre_tokenizer"] = None
    vocabulary = content["model"]["vocab"]
    for piece in BYTES:
        vocabulary[piece] = len(vocabulary)
    return tk.Tokenizer.from_str(json.dumps(content))


KINDS = {
    "gpt2": byte_level,
    "roberta": lambda: byte_level(prefix=True),
    "llama3": lambda: byte_level(QWEN, special=("<|begin_of_text|>", "<|end_of_text|>")),
    "llama-legacy": lambda: with_spaces("normalizer"),
    "llama": lambda: with_spaces("metaspace"),
    "gemma": lambda: with_spaces(""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_have_the_ids_that_transformers_gives(tmp_path, kind):
    """Here each answer is encoded by itself; transformers encodes the whole text at once."""
    transformers = pytest.importorskip("transformers")
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    model = load_tokenizer(tmp_path / "tokenizer.json")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in tokenizer_files(model, DEFAULT).items():
        (folder / name).write_bytes(content)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours, rng = ChatTemplate(DEFAULT, model), random.Random(0)
    parts = [*"".join(TEXT[:1]), "    ", "the", " \n", "\n\n", ".\n", "(", '"', "\u2028", "\ufb01"]
    for _ in range(40):
        talk = []
        for role in ("user", "assistant") * rng.randrange(1, 4):
            content = "".join(rng.choices(parts, k=rng.randrange(1, 20)))
            talk.append({"role": role, "content": content if content.strip() else "x"})
        said = [Message(m["role"], m["content"], m["role"] == "assistant") for m in talk]
        ids, _ = ours.encode(Conversation(tuple(said)))
        assert ids.tolist() == theirs.apply_chat_template(talk)["input_ids"]
        begun = theirs.apply_chat_template(talk[:-1], add_generation_prompt=True)["input_ids"]
        assert ours.prompt(said[:-1]) == begun


@pytest.mark.parametrize("kind", KINDS)
def test_exact_with_the_librarys_ids(tmp_path, monkeypatch, kind):
    theirs = KINDS[kind]()
    theirs.post_processor = tk.processors.TemplateProcessing(
        single=f"{'<s>' if 'llama' in kind or kind == 'gemma' else '<|endoftext|>'} $A",
        special_tokens=[("<s>", 1), ("<|endoftext|>", 0)],
    )
    theirs.enable_truncation(5)
    theirs.save(str(tmp_path / "tokenizer.json"))
    model = load_tokenizer(tmp_path / "tokenizer.json")
    theirs.no_truncation()
    theirs.encode_special_tokens = True
    monkeypatch.setattr(t, "STRETCH_CHARS", 200)
    rng = random.Random(0)
    alphabet = [*"".join(TEXT[:1]), *ODD, SPACE, "    ", "the", " \n", "\n\n"]
    texts = ["".join(rng.choices(alphabet, k=rng.randrange(40))) for _ in range(200)]
    assert model.exact
    for text in ["", ODD, SPACE, f"{SPACE} a{SPACE}{SPACE}b ", "".join(TEXT), *texts]:
        ids = model.encode(text)
        assert model.decode([model.bos_id, *ids, model.bos_id]) == text
        assert model.token_bytes()[np.array(ids, int)].sum() == len(text.encode())
        assert model.bos_id not in ids
        prefixed = kind in ("roberta", "llama-legacy", "llama")
        if (SPACE not in text or kind == "gpt2") and not (prefixed and text[:1] != " "):
            # Prefixed kinds put a space before a text: theirs is given without its first space.
            given = text[1:] if prefixed and not text.startswith("  ") else text
            if not prefixed or not given.startswith(" "):
                assert ids == theirs.encode(given, add_special_tokens=False).ids
    with pytest.raises(UnicodeEncodeError):
        model.encode("a \ud800")
    again = read_tokenizer(model.model_bytes)
    assert (again.sha256, again.encode(ODD)) == (model.sha256, model.encode(ODD))
    assert (again.vocab_size, again.bos_id) == (theirs.get_vocab_size(), model.bos_id)


@pytest.mark.parametrize(
    ("normalizer", "example"),
    [
        (tk.normalizers.NFC(), "'e\u0301' comes back as 'é'"),
        (tk.normalizers.NFKC(), "comes back as 'fi'"),
        (tk.normalizers.Lowercase(), "'Hello HELLO' comes back as 'hello hello'"),
        (tk.normalizers.Strip(), "' a' comes back as 'a'"),
        (tk.normalizers.Replace("\u201d", '"'), "'\u201d' comes back as '\"'"),
        (tk.normalizers.Sequence([tk.normalizers.Replace("``", '"')]), "'``' comes back as '\"'"),
    ],
)
def test_what_loses_text_is_shown_and_taken_if_asked(tmp_path, normalizer, example):
    byte_level(normalizer=normalizer).save(str(tmp_path / "t.json"))
    with pytest.raises(UserError, match=f"{example}; expected .*--lossy"):
        load_tokenizer(tmp_path / "t.json")
    model = load_tokenizer(tmp_path / "t.json", Choice(lossy=True))
    assert not model.exact
    ids = model.encode(ODD)
    assert model.token_bytes()[ids].sum() == len(model.decode(ids).encode())
    assert not read_tokenizer(model.model_bytes).exact


def test_added_tokens_that_swallow_spaces_lose_them(tmp_path):
    model = byte_level()
    model.add_tokens([tk.AddedToken("<kept>")])
    model.save(str(tmp_path / "t.json"))
    assert load_tokenizer(tmp_path / "t.json").exact
    model.add_tokens([tk.AddedToken("<tok>", lstrip=True, rstrip=True)])
    model.save(str(tmp_path / "t.json"))
    with pytest.raises(UserError, match="'x <tok> y' comes back as 'x<tok>y'; expected .*--lossy"):
        load_tokenizer(tmp_path / "t.json")


def test_a_long_text_is_not_cut_within_an_added_token(tmp_path, monkeypatch):
    model = byte_level()
    model.add_tokens([tk.AddedToken("lamp is lit")])
    model.save(str(tmp_path / "t.json"))
    monkeypatch.setattr(t, "STRETCH_CHARS", 20)
    text = "lamp is lit" * 40
    assert load_tokenizer(tmp_path / "t.json").encode(text) == model.encode(text).ids


def test_special_tokens_that_a_text_spells_as_pieces_are_lost(tmp_path):
    content = json.loads(byte_level(special=("<|endoftext|>", "doc")).to_str())
    content["model"]["ignore_merges"] = True  # a word in the vocabulary is one piece
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="'doc' comes back as ''"):
        load_tokenizer(tmp_path / "t.json")


def test_bytes_without_a_piece_are_lost(tmp_path):
    content = json.loads(with_spaces("").to_str())
    del content["model"]["vocab"]["<0xE1>"]
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="comes back as"):
        load_tokenizer(tmp_path / "t.json")


def test_special_tokens_by_name(tmp_path):
    model = byte_level(special=("<|im_start|>", "<|endoftext|>", "<|im_end|>"))
    model.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "tokenizer.json").bos_id == 1, "not the usual one"
    config = {"bos_token": None, "eos_token": {"content": "<|im_end|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).bos_id == 2, "a folder's own account is not read"
    named = load_tokenizer(tmp_path, Choice(bos="<|im_start|>", eos="<|im_end|>"))
    again = read_tokenizer(named.model_bytes)
    assert (again.bos_id, again.eos_id, again.ends) == (0, 2, {0, 2})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "tokenizer.model").write_bytes(named.model_bytes)
    of_set = load_tokenizer(tmp_path / "set")
    assert (of_set.sha256, of_set.eos_id) == (named.sha256, 2), "not as it was stored"
    assert load_tokenizer(tmp_path / "set", Choice(bos="<|endoftext|>")).ends == {1, 2}
    with pytest.raises(UserError, match="no special token 'the'; expected --eos as one of: <|im_"):
        load_tokenizer(tmp_path, Choice(eos="the"))
    model = byte_level(special=("<|x|>", "<|y|>"))
    model.save(str(tmp_path / "other.json"))
    with pytest.raises(UserError, match=r"which token opens a document; .*<\|x\|>, <\|y\|>"):
        load_tokenizer(tmp_path / "other.json")


def wrapped(kind, model):
    head = f'"format": "gam-scale-tokenizer", "kind": "{kind}", "bos": "<s>", "eos": null'
    return f'{{{head}, "lossy": false, "model": {model}}}'


def test_other_files(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer; expected one of tokenizer.json"):
        load_tokenizer(tmp_path)
    wordpiece = tk.Tokenizer(tk.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    wordpiece.add_special_tokens(["[CLS]"])
    for content, reason in (
        ("{}", "is not a tokenizer"),
        ('{"model": {"type": "x"}}', "cannot be read by tokenizers"),
        ('{"format": "gam-scale-tokenizer"}', "kind is missing"),
        (wrapped("x", "{}"), 'kind is "x"; expected'),
        (wrapped("sentencepiece", '"%"'), "not a sentencepiece model or is damaged"),
        (wrapped("sentencepiece", "{}"), "holds no tokenizer of sentencepiece"),
        (wrapped("huggingface", '"x"'), "holds no tokenizer of huggingface"),
        (wordpiece.to_str(), r"do not say which bytes they stand for \(WordPiece\)"),
    ):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(UserError, match=reason):
            load_tokenizer(tmp_path / "t.json")
