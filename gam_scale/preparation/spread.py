"""Prepare a set by many processes, stage after stage, each of which does only what is missing."""

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gam_scale
from gam_scale.data.digests import DIGESTS_FILE
from gam_scale.data.manifest import (
    INDEX_FILE,
    Manifest,
    ShardInfo,
    SplitInfo,
    TokenizerInfo,
    sha256_of,
    write_manifest,
)
from gam_scale.data.place import clear_leftovers, may_write, place, verified_manifest
from gam_scale.data.prepare import (
    BLOCK_TOKENS,
    TOKENIZER_FILE,
    PrepareSpec,
    check_sources,
    check_splits,
)
from gam_scale.data.progress import progress
from gam_scale.data.rows import LeftOut
from gam_scale.data.tokenizer_file import load_tokenizer
from gam_scale.data.tokenizer_training import train_on_sample
from gam_scale.errors import UserError
from gam_scale.files import write_bytes, write_json
from gam_scale.preparation.array import (
    Array,
    Local,
    OnSlurm,
    Size,
    failure_error,
    follow,
    share_out,
)
from gam_scale.preparation.folder import Folder
from gam_scale.preparation.saved import done_items, outcome
from gam_scale.preparation.streams import shard_bounds
from gam_scale.preparation.verdicts import judge
from gam_scale.run.lock import RunLock
from gam_scale.strict import read_json

SAID = {
    "measured": "measuring the text",
    "sampled": "sampling for the tokenizer",
    "tokenised": "tokenising",
    "sharded": "writing shards",
}
VERDICTS = "verdicts.json"
LEAST_S = 30.0
"""Processor seconds below which a preparation's speed says nothing about larger ones."""
LATE_S = 30.0
"""Seconds until the last files that a task on another node wrote are surely seen here."""


def prepare_spread(spec: PrepareSpec, cluster: str, size: Size) -> Manifest:
    """Make by many processes the set of :func:`gam_scale.data.prepare.prepare`, byte for byte.

    Finished work is kept in a hidden folder beside the set until the set is whole; the same call
    goes on from there, whatever ended the one before.

    Args:
        spec: what to prepare; ``workers`` has no effect here.
        cluster: slurm or local.
        size: the size of each stage's array of tasks.

    Raises:
        UserError: as in ``prepare``; an earlier call began with another ``spec``; or another
            command is at work on the set.
        EndedByOthers: tasks failed; stderr says which.
    """
    check_sources(spec)
    if spec.pairs is not None:
        raise UserError(
            "--submit cuts running text into parts, and --pairs packs conversations one after "
            "another; expected one of the two"
        )
    out = spec.out.resolve()
    clear_leftovers(out)
    folder = Folder.of(out)
    source = spec.describe()
    if not may_write(out, spec.overwrite):
        made = verified_manifest(out, source)
        print(f"{spec.out} is already prepared from the same inputs", file=sys.stderr)
        _clear_away(folder, spec.out)
        return made
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{spec.out}: cannot be made ({error.strerror}); expected --out in a folder that can "
            "be written to"
        ) from None
    with _locked(folder, spec.out):
        if not folder.is_begun(spec) and (earlier := OnSlurm.earlier(folder.jobs)):
            earlier.stop()  # it writes results of other settings
            earlier.wait()
        folder.begin(spec)
        manifest = _Preparation(folder, cluster, size).run(source)
        place(folder.set, out, spec.overwrite)
    shutil.rmtree(folder.path, ignore_errors=True)
    return manifest


def _clear_away(folder: Folder, out: Path) -> None:
    """Remove the leftovers of a command that was killed after placing its set, if not in use."""
    if not folder.path.exists():
        return
    with suppress(UserError):  # a command with --overwrite is at work there
        with _locked(folder, out):
            folder.clear()
        shutil.rmtree(folder.path, ignore_errors=True)


@contextmanager
def _locked(folder: Folder, out: Path) -> Iterator[None]:
    """Hold the lock of the folder; raise a UserError if another command holds it."""
    lock = RunLock(folder.set)
    try:
        lock.acquire()
    except UserError as error:
        who = str(error).partition("is being written by ")[2].partition(";")[0]
        raise UserError(
            f"{out} is being prepared by {who or error}; expected that command to end first"
        ) from None
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class _Preparation:
    folder: Folder
    cluster: str
    size: Size

    def run(self, source: dict[str, Any]) -> Manifest:
        """Run every stage; afterwards the set is whole, but not in its place."""
        folder = self.folder
        parts = {f"{part.number:05d}": part.bytes for part in folder.parts}
        left_out: dict[str, dict[str, int]] = {}
        if folder.is_judged:
            self._stage("measured", parts)
            parts = {item: outcome(folder / "measured", item)["bytes"] for item in parts}
            left_out = self._judge()
        self._make_tokenizer(parts)
        self._stage("tokenised", parts)
        totals = self._totals(list(parts))
        check_splits(folder.spec, set(totals))
        shards = self._write_shards(totals)
        self._tell_speeds()
        return self._write_manifest(totals, shards, left_out, source)

    def _stage(self, stage: str, weights: dict[str, int]) -> None:
        """Have every missing item of a stage done; ``weights`` says how large each item is."""
        if self.cluster == "slurm" and (earlier := OnSlurm.earlier(self.folder.jobs)):
            print(f"waiting for what is left of array {earlier.numbers}", file=sys.stderr)
            self._follow(earlier, stage, weights)
        if missing := self._missing(stage, weights):
            tasks = share_out(self.folder, stage, missing, self.size)
            print(
                f"{SAID[stage]}: {len(missing)} of {len(weights)} items are to be done, in "
                f"{len(tasks)} tasks",
                file=sys.stderr,
            )
            array: Array
            if self.cluster == "slurm":
                array = OnSlurm.submit(tasks, self.folder.jobs, self.size)
                print(f"array {array.numbers} of Slurm's", file=sys.stderr)
            else:
                array = Local(tasks, self.folder.jobs)
            failures = self._follow(array, stage, missing)
            deadline = time.monotonic() + (0 if failures or self.cluster == "local" else LATE_S)
            while (left := self._missing(stage, weights)) and time.monotonic() < deadline:
                time.sleep(1)
            if left:
                raise failure_error(SAID[stage], len(left), failures)

    def _follow(self, array: Array, stage: str, weights: dict[str, int]) -> list[Any]:
        seen: set[str] = set(weights) - set(self._missing(stage, weights))
        total = sum(weights.values()) if all(weights.values()) else None
        with progress(SAID[stage], total) as counter:

            def look() -> None:
                for item in done_items(self.folder / stage) & set(weights) - seen:
                    seen.add(item)
                    counter.advance(outcome(self.folder / stage, item)["bytes"])

            try:
                return follow(array, look)
            except KeyboardInterrupt:
                print(
                    "the tasks were ended; what is done stays, and the same command goes on",
                    file=sys.stderr,
                )
                raise

    def _missing(self, stage: str, weights: dict[str, int]) -> dict[str, int]:
        done = done_items(self.folder / stage)
        if stage == "sharded":  # a set put in its place took the shards along
            done = {item for item in done if self.folder.shard(item).exists()}
            for item in weights.keys() - done:
                (self.folder / stage / f"{item}.json").unlink(missing_ok=True)
        return {item: weight for item, weight in weights.items() if item not in done}

    def _judge(self) -> dict[str, dict[str, int]]:
        """Judge all documents, once every part is measured; return counts of those left out."""
        folder, path = self.folder, self.folder / VERDICTS
        if not path.exists():
            verdicts = judge(
                folder.spec,
                folder.parts,
                folder / "measured",
                folder / "verdicts",
                folder / DIGESTS_FILE,
            )
            write_json(path, verdicts)
        return read_json(path)

    def _make_tokenizer(self, parts: dict[str, int]) -> None:
        """Copy the given tokenizer into the set, or train one, once, on a sample of all parts."""
        folder, spec = self.folder, self.folder.spec
        path = folder.set / TOKENIZER_FILE
        if path.exists():
            return
        if spec.tokenizer is not None:
            write_bytes(path, load_tokenizer(spec.tokenizer, spec.choice).model_bytes)
            return
        training = {
            f"{part.number:05d}": parts[f"{part.number:05d}"]
            for part in folder.parts
            if part.split == "train"
        }
        self._stage("sampled", training)
        pieces = (
            piece for item in training for piece in outcome(folder / "sampled", item)["pieces"]
        )
        began = time.monotonic()
        train_on_sample(pieces, path, spec.vocab_size, spec.model_type, spec.character_coverage)
        seconds = time.monotonic() - began
        print(f"training the tokenizer took {seconds:,.1f} s", file=sys.stderr)

    def _totals(self, items: list[str]) -> dict[str, Counter[str]]:
        """Return tokens, documents and bytes of each split; print which rows were left out."""
        totals: dict[str, Counter[str]] = {}
        left_out = LeftOut()
        for item in items:
            came = outcome(self.folder / "tokenised", item)
            for split, counts in came["splits"].items():
                totals.setdefault(split, Counter()).update(counts)
            left_out.nulls += came["nulls"]
            left_out.bad += came["bad"]
            left_out.first = left_out.first or came["first"]
        for note in left_out.notes():
            print(note, file=sys.stderr)
        return dict(sorted(totals.items()))

    def _write_shards(self, totals: dict[str, Counter[str]]) -> dict[str, list[str]]:
        """Write the shards of each split; return their items, in order."""
        dtype = self.folder.tokenizer.dtype
        items = {
            split: [
                f"{split}-{number:05d}-{start}-{end}"
                for number, (start, end) in enumerate(shard_bounds(counts["tokens"], dtype))
            ]
            for split, counts in totals.items()
        }
        sizes = {item: _tokens(item) * _bytes_of(dtype) for of in items.values() for item in of}
        self._stage("sharded", sizes)
        return items

    def _write_manifest(
        self,
        totals: dict[str, Counter[str]],
        shards: dict[str, list[str]],
        left_out: dict[str, dict[str, int]],
        source: dict[str, Any],
    ) -> Manifest:
        """Write the merged index of each split and, last, the manifest; return the manifest."""
        folder = self.folder
        splits = {}
        for split, counts in totals.items():
            came = [outcome(folder / "sharded", item) for item in shards[split]]
            index = folder.set / split / INDEX_FILE
            # As MDSWriter writes it.
            content = {"version": 2, "shards": [each["entry"] for each in came]}
            write_bytes(index, json.dumps(content, sort_keys=True).encode())
            splits[split] = SplitInfo(
                counts["tokens"],
                counts["documents"],
                counts["bytes"],
                sha256_of(index),
                [ShardInfo(**each["info"]) for each in came],
                left_out.get(split, {}),
            )
        tokenizer = folder.tokenizer
        info = TokenizerInfo.of(tokenizer, TOKENIZER_FILE)
        version = gam_scale.__version__
        sha256 = None
        if folder.spec.filters.deduplicate:
            shutil.copyfile(folder / DIGESTS_FILE, folder.set / DIGESTS_FILE)
            sha256 = sha256_of(folder / DIGESTS_FILE)
        manifest = Manifest(
            info, tokenizer.dtype, BLOCK_TOKENS, splits, source, version, None, sha256
        )
        write_manifest(folder.set, manifest)
        return manifest

    def _tell_speeds(self) -> None:
        """Print the processor time that each stage took and that 1 TB of such text would take."""
        text, spent = 0, 0.0
        for stage, said in SAID.items():
            came = [outcome(self.folder / stage, item) for item in done_items(self.folder / stage)]
            if not came:
                continue
            size, seconds = (sum(each[key] for each in came) for key in ("bytes", "seconds"))
            spent += seconds
            text = size if stage == "tokenised" else text
            rate = size / 1e6 / max(seconds, 1e-9)
            print(
                f"{said}: {size / 1e6:,.1f} MB in {seconds:,.1f} s of a core, {rate:,.1f} MB/s a "
                "core",
                file=sys.stderr,
            )
        if text and spent > LEAST_S:  # of less, most is starting processes
            hours = spent / text * 1e12 / 3600
            print(f"at that rate 1 TB of text takes {hours:,.0f} hours of a core", file=sys.stderr)


def _tokens(item: str) -> int:
    _, _, start, end = item.split("-")
    return int(end) - int(start)


def _bytes_of(dtype: str) -> int:
    return {"uint16": 2, "uint32": 4}[dtype]
