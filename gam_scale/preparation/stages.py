"""The work on one item of each stage: measure, sample or tokenise a part, or write a shard.

An item is done when its ``.json``, which is written last, is in the stage's folder. An item that is
done again gives the same files.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from gam_scale.data.documents import Document, utf8_size
from gam_scale.data.encode import Encoded, encode_documents
from gam_scale.data.manifest import INDEX_FILE
from gam_scale.data.mds import import_streaming
from gam_scale.data.prepare import SplitWriter
from gam_scale.data.tokenizer_training import sample_pieces
from gam_scale.errors import UserError
from gam_scale.files import sync, write_json
from gam_scale.preparation.folder import Folder
from gam_scale.preparation.parts import Part
from gam_scale.preparation.saved import done_file, outcome, unfinished
from gam_scale.preparation.streams import read_stream
from gam_scale.preparation.survey import staying, survey
from gam_scale.preparation.verdicts import Verdict
from gam_scale.strict import read_json

Outcome = dict[str, Any]


def item_worker(path: Path, stage: str) -> Callable[[str], None]:
    """Return the function that does an item of a stage of the preparation in folder ``path``."""
    folder = Folder(path)
    if stage == "sharded":
        import_streaming()  # takes seconds, which no item should be charged

    def work(item: str) -> None:
        if done_file(folder / stage, item).exists():
            return
        began = time.process_time()
        came = WORK[stage](folder, item)
        came["seconds"] = round(time.process_time() - began, 3)
        write_json(done_file(folder / stage, item), came)

    return work


def measure(folder: Folder, item: str) -> Outcome:
    """Record, for each document of a part, what verdicts depend on."""
    part = folder.parts[int(item)]
    part.check()
    noted = survey(part.source.documents(), folder.spec)
    part.check()
    noted.save(folder / "measured" / f"{item}.npz")
    return {"documents": len(noted), "bytes": int(noted.sizes.sum())}


def sample(folder: Folder, item: str) -> Outcome:
    """Return the stretches of a part's text that train the tokenizer."""
    part = folder.parts[int(item)]
    verdict = folder.verdict(part)
    assert verdict is not None
    wanted = iter(verdict.sample.tolist())
    pieces: list[str] = []
    number, size = next(wanted, None), 0
    if number is None:  # none is of this part
        return {"pieces": pieces, "bytes": size}
    documents = _split(part, verdict, whole=False)
    texts = (d for split, d in documents if split == "train" and isinstance(d, str))
    for i, piece in enumerate(piece for text in texts for piece in sample_pieces(text)):
        size += utf8_size(piece)
        if i == number:
            pieces.append(piece)
            number = next(wanted, None)
            if number is None:
                break
    part.check()
    if number is not None:
        raise _other_documents(part)
    return {"pieces": pieces, "bytes": size}


def tokenise(folder: Folder, item: str) -> Outcome:
    """Write a part's token stream for each split that the part has text of."""
    part = folder.parts[int(item)]
    part.check()
    verdict = folder.verdict(part)
    documents = _split(part, verdict, whole=folder.spec.max_documents is None)
    splits: dict[str, Counter[str]] = {}
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for encoded in encode_documents(documents, folder.tokenizer, workers=1):
            split = encoded.split
            if split not in files:
                path = stream_file(folder, item, split)
                files[split] = stack.enter_context(open(unfinished(path), "wb"))
                splits[split] = Counter()
            files[split].write(encoded.tokens.tobytes())
            splits[split].update(
                tokens=len(encoded.tokens), documents=encoded.documents, bytes=encoded.bytes
            )
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    part.check()
    for split in splits:
        path = stream_file(folder, item, split)
        os.replace(unfinished(path), path)
    left_out = part.source.left_out
    return {
        "splits": {split: dict(counts) for split, counts in splits.items()},
        "bytes": sum(counts["bytes"] for counts in splits.values()),
        "nulls": left_out.nulls,
        "bad": left_out.bad,
        "first": left_out.first,
    }


def shard(folder: Folder, item: str) -> Outcome:
    """Write one shard of a split from the token streams of the split's parts."""
    split, _, start, end = item.split("-")
    dtype = folder.tokenizer.dtype
    streams = streams_of(folder, split)
    place = unfinished(folder / "sharded" / item)
    shutil.rmtree(place, ignore_errors=True)
    try:
        writer = SplitWriter(place, dtype)
        for tokens in read_stream(streams, dtype, int(start), int(end)):
            writer.add(Encoded(split, tokens, 0, 0))
        (info,) = writer.finish({}).shards
        (entry,) = read_json(place / INDEX_FILE)["shards"]
        target = folder.shard(item)
        entry["raw_data"]["basename"] = target.name
        target.parent.mkdir(exist_ok=True)
        os.replace(place / info.file, target)
        sync(target)  # before the note that it is done, which is synced, too
        sync(target.parent)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return {
        "entry": entry,
        "info": asdict(info) | {"file": target.name},
        "bytes": target.stat().st_size,
    }


WORK: dict[str, Callable[[Folder, str], Outcome]] = {
    "measured": measure,
    "sampled": sample,
    "tokenised": tokenise,
    "sharded": shard,
}
"""The function of each stage, by the name of the stage's folder."""


def stream_file(folder: Folder, item: str, split: str) -> Path:
    """Return the file of a part's token stream for a split, which holds nothing but ids."""
    return folder / "tokenised" / f"{item}.{split}.bin"


def streams_of(folder: Folder, split: str) -> list[tuple[Path, int]]:
    """Return the files of a split's stream in order, with the number of tokens of each."""
    return _streams(folder, split, (folder / "begun.json").stat().st_mtime_ns)


@lru_cache(maxsize=4)  # a worker writes many shards, and would read the notes of all parts for each
def _streams(folder: Folder, split: str, begun: int) -> list[tuple[Path, int]]:
    items = [f"{part.number:05d}" for part in folder.parts]
    return [
        (stream_file(folder, item, split), counts["tokens"])
        for item in items
        if (counts := outcome(folder / "tokenised", item)["splits"].get(split))
    ]


def _split(part: Part, verdict: Verdict | None, whole: bool) -> Iterator[tuple[str, Document]]:
    """Return the documents of a part that stay, each as (split, document).

    Args:
        part: the part to read.
        verdict: what becomes of its documents; None: all stay.
        whole: whether the source must have no documents after the judged ones.

    Raises:
        UserError: there are more or fewer documents than when they were judged.
    """
    documents: Iterator[Document] = part.source.documents()
    if verdict is None:
        return ((part.split, document) for document in documents)
    read = _counted(part, documents, len(verdict.reasons), whole)
    stay = staying(read, verdict.reasons)
    if part.split == "train":
        return verdict.hold_out.split(stay)
    return ((part.split, document) for document in stay)


def _counted(
    part: Part, documents: Iterator[Document], count: int, whole: bool
) -> Iterator[Document]:
    """Yield the first ``count`` documents; refuse fewer and, if ``whole``, more documents."""
    read = 0
    for document in islice(documents, count):
        read += 1
        yield document
    # If ``whole``, this reads to the end: rows without a text may follow the last document.
    if read < count or (whole and next(documents, None) is not None):
        raise _other_documents(part)


def _other_documents(part: Part) -> UserError:
    name = part.account.get("spec", part.account.get("name", part.account["kind"]))
    return UserError(
        f"{name} gives other documents than when they were counted; expected sources that stay as "
        "they are, or --overwrite to begin anew"
    )
