"""What a run reads: its data sets, and the order of their samples."""

from dataclasses import dataclass

from gam_scale.config import DataSetConfig, RunConfig
from gam_scale.config.stages import stages_of
from gam_scale.data.shards import TokenSplit
from gam_scale.data.stream import TrainStream, open_split
from gam_scale.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class RunData:
    """What a run reads."""

    train: list[TokenSplit]
    valid: list[TokenSplit]
    """Of the sets that have a validation split."""
    stream: TrainStream
    tokenizer: Tokenizer


def open_data(config: RunConfig, cache: str) -> RunData:
    """Open the sets of ``config``; what is remote is downloaded to folder ``cache``.

    Raises:
        UserError: a set is missing or damaged, or holds less than one sequence.
    """
    train = open_split(config.data.sets, "train", cache)
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
    valid = _open_validation(config.data.sets, train, cache)
    return RunData(train, valid, stream, train[0].load_tokenizer())


def _open_validation(
    entries: list[DataSetConfig], train: list[TokenSplit], cache: str
) -> list[TokenSplit]:
    """The validation splits of the sets that have one; prepare_data makes sets without."""
    here = [split.manifest.splits.get("valid") for split in train]
    having = [e for e, info in zip(entries, here, strict=True) if info and info.tokens > 1]
    return open_split(having, "valid", cache) if having else []
