"""A run that continues another: with its weights and optimizer, but with settings of its own."""

from contextlib import suppress
from pathlib import Path

from gam_scale.checkpoint.canonical import CanonicalTensors
from gam_scale.checkpoint.fetch import copies_of
from gam_scale.checkpoint.state import TrainState, load_state
from gam_scale.checkpoint.store import load_config_of, resolve
from gam_scale.checkpoint.verify import CONFIG, TOKENIZER
from gam_scale.config import RunConfig
from gam_scale.data.stream import TrainStream
from gam_scale.errors import UserError
from gam_scale.files import read_regular
from gam_scale.remote import is_url
from gam_scale.run.figures import Origin
from gam_scale.run.settings import MAY_CHANGE, differences
from gam_scale.strict import read_json, read_record, shown

NO_SHAPE = ("dropout", "init", "max_seq_len", "min_horizon", "max_horizon")
"""Settings of the model, its memories and layers that may differ: weights depend on them only by
their shapes, which are checked."""


def continued_checkpoint(continue_from: str, note: Path, cache: Path) -> Path:
    """Return the checkpoint of ``checkpoint.continue_from`` that a new run begins with.

    Args:
        continue_from: the setting.
        note: the run's continued.json. If a start was killed before it saved anything, the next
            begins with the same checkpoint, even if the other run has gone on since.
        cache: folder for copies of checkpoints at a URL.

    Raises:
        UserError: there is no checkpoint.
    """
    if note.exists():
        with suppress(UserError):  # a damaged note is written anew
            begun = Path(read_record(Origin, note).run)
            is_far = is_url(continue_from)
            source = copies_of(continue_from, cache) if is_far else Path(continue_from)
            if begun.resolve().is_relative_to(source.resolve()):
                return resolve(begun)
    return resolve(continue_from, cache)


def continuation(
    folder: Path, config: RunConfig, stream: TrainStream, tokenizer: bytes
) -> tuple[TrainState, Origin]:
    """Work out how a run of ``config`` begins with the checkpoint of another run in ``folder``.

    Its steps, schedule and metrics count from 0. If the stream is the same (sets, shares, seed,
    packing; the batch may differ) and neither run has stages, it reads on where the other run
    stopped, else its own stream from the start.

    Returns:
        The state to begin with, and a record of its origin.

    Raises:
        UserError: the checkpoint is of another model or tokenizer.
    """
    different = differences(read_json(folder / CONFIG), config)
    changed = {k: list(v) for k, v in different.items() if not k.startswith(MAY_CHANGE)}
    for key, (before, now) in changed.items():
        if key.startswith("model.") and key.rpartition(".")[2] not in NO_SHAPE:
            raise UserError(
                f"checkpoint.continue_from: {key} is {shown(now)} but {folder} has "
                f"{shown(before)}; expected the same model"
            )
    if read_regular(folder / TOKENIZER) != tokenizer:
        raise UserError(
            f"checkpoint.continue_from: the tokenizer of {folder} is not that of data.sets; "
            "expected sets that were prepared with it"
        )
    saved, optimizer = load_state(folder), CanonicalTensors(folder).has_states
    state = TrainState(optimizer_steps=saved.optimizer_steps)
    kept = ["weights", *(["optimizer"] if optimizer else [])]
    staged = config.train.stages or load_config_of(folder).train.stages
    if saved.data_fingerprint == stream.fingerprint() and not staged:
        batches = saved.step + saved.left_out
        state.first_sample = saved.first_sample
        state.first_sample += batches * load_config_of(folder).train.global_batch_size
        kept.append("place in the data")
    return state, Origin(str(folder), saved.step, kept, state.first_sample, changed)
