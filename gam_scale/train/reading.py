"""The data that a run reads: its data sets, and the order of their samples."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gam_scale.config import DataConfig, DataSetConfig, EvalSetConfig, RunConfig
from gam_scale.config.names import set_names
from gam_scale.config.stages import stages_of
from gam_scale.data.shards import TokenSplit
from gam_scale.data.stream import TrainStream, open_split
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.evaluate.downstream.task import Material, Measure, make_ready, read_tasks
from gam_scale.evaluate.text import long_documents, starts_of


@dataclass(frozen=True)
class RunData:
    """The opened data of a run."""

    train: list[TokenSplit]
    valid: list[TokenSplit]
    """Validation splits of the sets that have one."""
    stream: TrainStream
    tokenizer: Tokenizer
    valid_names: list[str] = field(default_factory=list)
    """Names of the sets in ``valid``."""
    named: dict[str, list[TokenSplit]] = field(default_factory=dict)
    """Splits of ``eval.sets``, by name."""

    @property
    def splits(self) -> list[TokenSplit]:
        """All splits that the run reads."""
        return [*self.train, *self.valid, *(s for splits in self.named.values() for s in splits)]


def open_data(config: RunConfig, cache: Path) -> RunData:
    """Open the data sets of ``config``; remote sets are downloaded to the folder ``cache``.

    Raises:
        UserError: a set is missing or damaged, or holds less than one sequence; or
            ``checkpoint.best`` names no set with a validation split.
    """
    train = open_split(config.data.sets, "train", cache, cache_limit=config.data.cache_limit)
    stream = TrainStream(
        train,
        [entry.weight for entry in config.data.sets],
        config.data.seq_len,
        config.data.documents,
        config.train.seed,
        config.data.shuffle_tokens,
        config.train.global_batch_size if config.data.carry_state else 0,
        stages_of(config),
    )
    names, valid = _open_validation(config.data, train, cache)
    tokenizer = train[0].load_tokenizer()
    named = {
        name: _open_named(f"eval.sets.{name}", entry, config.data, cache, tokenizer.sha256)
        for name, entry in config.eval.sets.items()
    }
    best = config.checkpoint.best
    if best and best not in names and best not in named:
        raise UserError(f"checkpoint.best is {best}, which has no validation split; expected one")
    return RunData(train, valid, stream, tokenizer, names, named)


def ready_tasks(config: RunConfig, data: RunData) -> dict[str, Measure]:
    """Return the tasks of ``eval.tasks``, with their questions made.

    Raises:
        UserError: a task cannot be asked.
    """
    where, seed = "eval.tasks", config.train.seed

    def documents(at_least: int) -> list[np.ndarray]:
        if not data.valid:
            raise UserError(
                "it needs validation text, and no set of data.sets has any; expected one"
            )
        streams = starts_of(data.valid, config.eval.max_tokens)
        expected = "longer texts in data.sets, or a task of fewer tokens"
        what = "the validation text"
        return long_documents(streams, data.tokenizer.bos_id, at_least, what, expected)

    material = Material(data.tokenizer, documents, config.data.seq_len, seed)
    return make_ready(read_tasks(config.eval.tasks, where), material, where)


def _open_validation(
    data: DataConfig, train: list[TokenSplit], cache: Path
) -> tuple[list[str], list[TokenSplit]]:
    """Return the names and the validation splits of the sets that have such a split.

    prepare_data can make sets without one.
    """
    here = [split.manifest.splits.get("valid") for split in train]
    having = [i for i, info in enumerate(here) if info and info.tokens > 1]
    entries, names = [data.sets[i] for i in having], set_names(data)
    valid = open_split(entries, "valid", cache, cache_limit=data.cache_limit) if having else []
    return [names[i] for i in having], valid


def _open_named(
    where: str, entry: EvalSetConfig, data: DataConfig, cache: Path, tokenizer: str
) -> list[TokenSplit]:
    """Return the splits of an entry of ``eval.sets``, in tokens of the run's own tokenizer."""
    entries = [DataSetConfig(entry.path)] if entry.path else data.sets
    try:
        splits = open_split(entries, entry.split, cache, tokenizer, data.cache_limit)
        for split in splits:
            split.check_cut(data.seq_len, "data.seq_len")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if not any(split.tokens > 1 for split in splits):
        raise UserError(f"{where}: {splits[0].name} has nothing to predict; expected some text")
    return splits
