"""Make a prepared set from text: train a tokenizer, tokenise, write streaming shards."""

import argparse
import os
import sys
from pathlib import Path

from gam_scale import cli
from gam_scale.data.chat_template import read_template
from gam_scale.data.filters import REPEATED, REPETITIVE, SHORT, Filters
from gam_scale.data.holdout import TOLERANCE
from gam_scale.data.manifest import Manifest
from gam_scale.data.pairs import TOO_LONG, Pairs
from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.rows import Reading
from gam_scale.data.sources import parse_source
from gam_scale.data.tokenizer import Choice
from gam_scale.data.tokenizer_file import load_tokenizer
from gam_scale.data.tokens import TokenReading
from gam_scale.errors import UserError
from gam_scale.report.table import Table

DEFAULT_FORM = "'User: ...', 'Assistant: ...', blank lines between"
EPILOG = """\
a SOURCE is one of
  python-stdlib               the Python standard library's own source: on every machine, 10 MB
  hf:NAME[:CONFIG[:SPLIT]]    a Hugging Face dataset, streamed
  FILE, FOLDER or 'GLOB'      .txt, .jsonl, .parquet or .arrow, plain or with .gz or .zst;
                              or what datasets' save_to_disk wrote
  tokens                      .bin (nanoGPT's, llm.c's; Megatron's with its .idx), .npy, or a folder
                              of MDS shards, with the --tokenizer that made them

examples
  # no download: a small corpus to try things on
  python tools/prepare_data.py --train python-stdlib --vocab-size 4096 --out data/stdlib

  # TinyStories from the hub, with its own validation split
  python tools/prepare_data.py --train hf:roneneldan/TinyStories \\
      --valid hf:roneneldan/TinyStories --vocab-size 10000 --out data/tinystories

  # WikiText files, an article a document, and then more text with the same tokenizer
  python tools/prepare_data.py --train wiki.train.txt --valid wiki.valid.txt \\
      --test wiki.test.txt --document-separator wikitext --vocab-size 10000 --out data/wikitext
  python tools/prepare_data.py --train 'crawl/*.jsonl.zst' --out data/crawl \\
      --tokenizer data/wikitext/tokenizer.model

  # conversations, for fine-tuning a model of that tokenizer at 1,024 tokens
  python tools/prepare_data.py --train chats.jsonl --pairs --seq-len 1024 --out data/chats \\
      --tokenizer data/wikitext/tokenizer.model

  # with a tokenizer of Hugging Face, from a folder that save_pretrained wrote
  python tools/prepare_data.py --train 'crawl/*.jsonl.zst' --out data/crawl --tokenizer llama/
"""


def main() -> None:
    options = parse_args()
    how = Reading(
        Reading.text_column if options.text_column is None else options.text_column,
        options.document_separator,
        options.encoding,
        options.skip_bad,
        options.template,
        options.pairs,
    )
    tokens = token_reading(options)
    spec = PrepareSpec(
        out=options.out,
        **{
            split: [parse_source(name, split, how, tokens) for name in getattr(options, split)]
            for split in ("train", "valid", "test")
        },
        vocab_size=options.vocab_size or PrepareSpec.vocab_size,
        model_type=options.model_type or PrepareSpec.model_type,
        character_coverage=options.character_coverage,
        tokenizer=options.tokenizer,
        choice=choice(options),
        valid_fraction=options.valid_fraction,
        max_documents=options.max_documents,
        filters=Filters(
            options.deduplicate or bool(options.deduplicate_against),
            options.min_chars or 0,
            options.max_repetition,
            tuple(options.deduplicate_against),
        ),
        pairs=pairs(options),
        workers=options.workers or cores(),
        overwrite=options.overwrite,
    )
    manifest = submit(spec, options) if options.submit else prepare(spec)
    print(table(manifest))
    if note := hold_out_note(manifest):
        print(f"\n{note}")
    if not manifest.tokenizer.exact:
        print("\nthe tokenizer does not give every text back: bits per byte are of what comes back")
    print(f"\nprepared set: {options.out}")


def submit(spec: PrepareSpec, options: argparse.Namespace) -> Manifest:
    """Prepare the set by tasks that run side by side, on Slurm or on this machine."""
    try:
        from gam_scale.launch.submit import find_cluster
        from gam_scale.preparation.array import Size
        from gam_scale.preparation.spread import prepare_spread
    except ImportError:
        raise UserError("submitit is not installed; expected `make install` first") from None
    if options.cluster in (None, "auto"):
        cluster, reason = find_cluster()
    else:
        cluster, reason = options.cluster, "--cluster says so"
    where, elsewhere = "Slurm", ["workers"]
    tasks, processes = options.tasks or 8, options.cpus_per_task or 8
    if cluster == "local":
        where = "this machine, without Slurm"
        elsewhere = ["partition", "cpus_per_task", "minutes"]
        tasks = min(tasks, spec.workers)
        processes = spec.workers // tasks
    print(f"{where}: {reason}", file=sys.stderr)
    if unused := [f"--{n.replace('_', '-')}" for n in elsewhere if getattr(options, n) is not None]:
        print(f"not used there: {', '.join(unused)}", file=sys.stderr)
    size = Size(tasks, processes, options.partition or "", options.minutes or 1440)
    return prepare_spread(spec, cluster, size)


def table(manifest: Manifest) -> str:
    """Return a table of the splits; if text was held out, with the shares asked and held."""
    rows = [["split", "documents", "tokens", "bytes", "bytes/token", "shards"]]
    for name, split in manifest.splits.items():
        counts = (split.documents, split.tokens, split.bytes)
        ratio = f"{split.bytes / split.tokens:.3f}"
        rows.append([name, *(f"{n:,}" for n in counts), ratio, str(len(split.shards))])
    if shares := held_out(manifest):
        rows[0] += ["asked", "held out"]
        for row in rows[1:]:
            row += map(percent, shares) if row[0] == "valid" else ("", "")
    if manifest.pairs is not None:
        rows[0] += ["answer tokens", "padding"]
        for row in rows[1:]:
            answers = manifest.splits[row[0]].answers
            assert answers is not None
            row += [f"{answers.tokens:,}", f"{answers.padding:,}"]
    reasons = (REPEATED, SHORT, REPETITIVE, TOO_LONG)
    for reason in (r for r in reasons if any(r in s.left_out for s in manifest.splits.values())):
        rows[0].append(reason)
        for row in rows[1:]:
            row.append(f"{manifest.splits[row[0]].left_out.get(reason, 0):,}")
    return str(Table("", rows[0], rows[1:]))


def held_out(manifest: Manifest) -> tuple[float, float] | None:
    """Return the share of the training text to be held out, and the share that is held out."""
    asked = manifest.source.get("valid_fraction")
    if not asked or not {"train", "valid"} <= set(manifest.splits):
        return None
    train, valid = manifest.splits["train"].bytes, manifest.splits["valid"].bytes
    return asked, valid / (train + valid)


def hold_out_note(manifest: Manifest) -> str | None:
    """Return a sentence if these two shares differ."""
    shares = held_out(manifest)
    if shares is None or percent(shares[0]) == percent(shares[1]):
        return None
    asked, held = shares
    note = f"validation holds {percent(held)} of the text where {percent(asked)} was asked: "
    if abs(held - asked) <= TOLERANCE * asked:
        return (
            f"{note}documents are held out whole where that comes within a fifth of it, and cut "
            "elsewhere"
        )
    return (
        f"{note}the text is short, or an earlier version held it out; --valid gives a text of your "
        "own, --overwrite prepares anew"
    )


def percent(share: float) -> str:
    return f"{100 * share:.2g}%"


def token_reading(options: argparse.Namespace) -> TokenReading:
    """Return how to read files of ids: at which tokens documents end, and the type of an id."""
    if options.tokenizer is None:
        if options.token_separator:
            raise UserError("--token-separator is of a tokenizer; expected --tokenizer")
        return TokenReading(dtype=options.token_dtype or TokenReading.dtype)
    asked = choice(options) or Choice()
    if options.token_separator:
        asked = Choice(options.token_separator, None, asked.lossy)
    tokenizer = load_tokenizer(options.tokenizer, None if asked == Choice() else asked)
    return TokenReading(tuple(sorted(tokenizer.ends)), options.token_dtype or tokenizer.dtype)


def pairs(options: argparse.Namespace) -> Pairs | None:
    """Return how to read conversations; None without --pairs."""
    if not options.pairs:
        if options.seq_len or options.chat_template:
            raise UserError("--seq-len and --chat-template are of conversations; expected --pairs")
        return None
    if not options.seq_len:
        raise UserError("--pairs packs conversations whole; expected --seq-len, as data.seq_len")
    of_texts = (options.text_column, options.template, options.document_separator)
    if any(each is not None for each in of_texts):
        raise UserError(
            "--text-column, --template and --document-separator are of texts; expected none of "
            "them with --pairs"
        )
    if not options.chat_template:
        return Pairs(options.seq_len)
    return Pairs(options.seq_len, read_template(options.chat_template))


def choice(options: argparse.Namespace) -> Choice | None:
    """Return how to use the given tokenizer; None: as it was stored, or by its own names."""
    asked = Choice(options.bos, options.eos, options.lossy)
    return None if asked == Choice() else asked


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    for split, note in (
        ("train", "training text"),
        ("valid", "validation text (default: some of --train is held out)"),
        ("test", "test text"),
    ):
        add(f"--{split}", metavar="SOURCE", action="append", default=[], help=f"{note}; repeatable")
    add(
        "--out", type=Path, metavar="DIR", required=True, help="folder to write the prepared set to"
    )
    add("--vocab-size", type=cli.count(), metavar="N",
        help="number of the tokenizer's ids, 258 special and byte pieces included (default: "
        f"{PrepareSpec.vocab_size})")  # fmt: skip
    add("--model-type", choices=("bpe", "unigram"),
        help=f"kind of tokenizer to train (default: {PrepareSpec.model_type})")  # fmt: skip
    add("--character-coverage", type=cli.number(at_least=0.98, at_most=1), metavar="F",
        help="share of the text's characters to be covered by pieces of their own, given to the "
        "commonest characters first; bytes spell all others (default: 0.9995, or as many "
        "characters as fill half of the vocabulary if it has no room for those)")  # fmt: skip
    add("--tokenizer", type=Path, metavar="PATH",
        help="tokenizer to use instead of training one: a sentencepiece model, a tokenizer.json, a "
        "folder of save_pretrained, or that of a prepared set")  # fmt: skip
    add("--bos", type=cli.text, metavar="NAME",
        help="special token of --tokenizer that opens every document (default: the one it "
        "names)")  # fmt: skip
    add("--eos", type=cli.text, metavar="NAME",
        help="special token of --tokenizer that also closes every document (default: "
        "none)")  # fmt: skip
    add("--lossy", action="store_true",
        help="accept a --tokenizer that does not give every text back exactly; a set then counts "
        "the bytes of its text, bits per byte of an evaluation those that come back")  # fmt: skip
    add("--text-column", type=cli.text, metavar="NAME",
        help="column with the text in .jsonl, .parquet, .arrow and hub datasets; a nested one is "
        "written data.text (default: text)")  # fmt: skip
    add("--template", type=cli.text, metavar="TEXT",
        help="text of a row made of several columns, as in '{title}\\n\\n{data.text}', instead of "
        "--text-column")  # fmt: skip
    add("--pairs", action="store_true",
        help="read rows as conversations, to fine-tune on their answers alone: 'messages', objects "
        "with role and content, or 'prompt' and 'completion'")  # fmt: skip
    add("--seq-len", type=cli.count(), metavar="N",
        help="with --pairs: tokens of a sequence (data.seq_len), into which conversations are "
        "packed whole; longer ones are left out and counted")  # fmt: skip
    add("--chat-template", type=Path, metavar="FILE",
        help="with --pairs: Jinja template that turns messages into text, as transformers' "
        f"chat_template (default: {DEFAULT_FORM})")  # fmt: skip
    add("--encoding", metavar="NAME",
        help="encoding of .txt and .jsonl files (default: UTF-8, or what a byte order mark "
        "says)")  # fmt: skip
    add(
        "--skip-bad",
        action="store_true",
        help="leave out rows and files that cannot be read, and count them",
    )
    add("--document-separator", metavar="LINE",
        help="line between documents, such as TinyStories' '<|endoftext|>'; 'wikitext': every "
        "top-level heading begins a document (default: each file or row is a "
        "document)")  # fmt: skip
    add("--valid-fraction", type=cli.number(at_least=0, below=1), metavar="F",
        default=PrepareSpec.valid_fraction,
        help="share of the training text to hold out if there is no --valid: whole documents, or "
        "the tail of one where documents are few; 0: none (default: %(default)s)")  # fmt: skip
    add("--deduplicate", action="store_true",
        help="leave out documents that repeat an earlier one, and count them")  # fmt: skip
    add("--deduplicate-against", type=Path, metavar="SET", action="append", default=[],
        help="also leave out the documents of this prepared set, which must be deduplicated "
        "itself; repeatable")  # fmt: skip
    add("--min-chars", type=cli.count(), metavar="N",
        help="leave out texts of fewer than N characters, and count them")  # fmt: skip
    add("--max-repetition", type=cli.number(at_least=0, below=1), metavar="F",
        help="leave out texts in which more than this share of the words is in phrases of five "
        "words that came before in the text (0.15 to 0.3 are in use), and count them")  # fmt: skip
    add("--token-dtype", choices=("uint16", "uint32"),
        help="type of the ids in .bin files that hold nothing else (default: the narrower one that "
        "holds all ids of the tokenizer)")  # fmt: skip
    add("--token-separator", type=cli.text, metavar="NAME",
        help="special token between documents in files of ids (default: the one that opens "
        "documents, and --eos)")  # fmt: skip
    add(
        "--max-documents",
        type=cli.count(),
        metavar="N",
        help="read only the first N documents of each split",
    )
    add("--workers", type=cli.count(), metavar="N",
        help=f"number of processes on this machine (default: {cores()}, its cores)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the prepared set at --out")
    several = parser.add_argument_group(
        "prepare by tasks side by side, the same set byte for byte; the same command goes on where "
        "it was ended"
    )
    add = several.add_argument
    add(
        "--submit",
        action="store_true",
        help="run the tasks as an array on Slurm, or on this machine if it has none",
    )
    add("--tasks", type=cli.count(), metavar="N", help="tasks of each array (default: 8)")
    add("--cluster", choices=["auto", "slurm", "local"],
        help="where tasks run; auto: on Slurm if its controller answers (default: "
        "auto)")  # fmt: skip
    add("--partition", metavar="P", help="Slurm partition (default: the cluster's)")
    add("--cpus-per-task", type=cli.count(), metavar="N",
        help="cores of a task on Slurm (default: 8); on this machine all tasks together have those "
        "of --workers")  # fmt: skip
    add("--minutes", type=cli.count(), metavar="N",
        help="time limit of a task in minutes, after which it starts again and goes on (default: "
        "1440)")  # fmt: skip
    options = parser.parse_args()
    for flag in ("tasks", "cluster", "partition", "cpus_per_task", "minutes"):
        if getattr(options, flag) is not None and not options.submit:
            raise UserError(f"--{flag.replace('_', '-')} is of tasks; expected --submit with it")
    if options.template is not None and options.text_column is not None:
        raise UserError("--template and --text-column are both given; expected one of them")
    if not options.train:
        parser.error("--train is missing; expected at least one SOURCE")
    training = (options.vocab_size, options.model_type, options.character_coverage)
    if options.tokenizer and any(training):
        raise UserError(
            "--tokenizer brings its own vocabulary; expected no --vocab-size, --model-type or "
            "--character-coverage"
        )
    if choice(options) and not options.tokenizer:
        raise UserError(
            "--bos, --eos and --lossy are of a tokenizer that is given; expected --tokenizer"
        )
    return options


def cores() -> int:
    """Return how many cores this process may use: on a cluster, those of the job."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


if __name__ == "__main__":
    cli.run(main)
