"""Writing of a model that was read from another format into one of our checkpoints."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gam_scale.checkpoint.canonical import write_shards
from gam_scale.checkpoint.fit import check_parameters, check_states
from gam_scale.checkpoint.names import CHECKPOINTS
from gam_scale.checkpoint.shard import Shard
from gam_scale.checkpoint.state import TrainState
from gam_scale.checkpoint.store import CheckpointStore, saving
from gam_scale.checkpoint.verify import CONFIG
from gam_scale.config import RunConfig
from gam_scale.data.tokenizer import Choice
from gam_scale.data.tokenizer_file import load_tokenizer
from gam_scale.errors import UserError
from gam_scale.export.folder import new_folder
from gam_scale.export.weights import check_weights
from gam_scale.files import write_json
from gam_scale.model.lm import outline
from gam_scale.parallel.optimizer import parameter_groups, states_of
from gam_scale.strict import to_dict


@dataclass
class Imported:
    """A model that was read from another format."""

    source: Path
    """The file or folder that was read, which error messages name."""
    config: RunConfig
    tensors: dict[str, Tensor]
    """Parameters and optimizer states, by the keys ``KIND.NAME`` of
    :class:`~gam_scale.checkpoint.shard.Shard`."""
    state: TrainState
    tokenizer: Path
    choice: Choice | None = None
    """How the tokenizer is used; None: as its own file says."""


def write_checkpoint(imported: Imported, out: Path) -> Path:
    """Write a new run directory ``out`` with one checkpoint in our own format.

    The directory's config.json is for a run that continues from this checkpoint, in the directory
    ``out`` with ``-on`` appended. Optimizer states that were not found are left out; our readers
    take those of a new run.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: tensors or tokenizer do not fit the config, or ``out`` is not new.
    """
    tokenizer = load_tokenizer(imported.tokenizer, imported.choice)
    vocab_size = imported.config.model.vocab_size
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{imported.tokenizer} has {tokenizer.vocab_size} ids but the model of "
            f"{imported.source} only {vocab_size}; expected the tokenizer it was trained with"
        )
    _check_tensors(imported)
    with new_folder(out) as folder:
        store = CheckpointStore(folder / CHECKPOINTS)
        step = imported.state.step
        partial = store.begin(step)
        with saving(store.path(step)):
            write_shards(partial, 0, 1, _shards(imported.tensors))
        written = store.commit(1, imported.state, imported.config, tokenizer.model_bytes)
        write_json(folder / CONFIG, to_dict(_trains_on(imported.config, out)))
    return out / CHECKPOINTS / written.name


def _trains_on(config: RunConfig, out: Path) -> RunConfig:
    """Return the config of a run beside ``out`` that starts from its weights; only data.sets may
    still be missing."""
    start = replace(config.checkpoint, init_from=str(out))
    log = replace(config.log, run_dir=f"{out}-on")
    return replace(config, checkpoint=start, log=log)


def _shards(tensors: dict[str, Tensor]) -> list[Shard]:
    shards = []
    for key, tensor in tensors.items():
        kind, name = key.split(".", 1)
        shards.append(Shard.whole(kind, name, tensor.detach().to(torch.float32).contiguous()))
    return shards


def _check_tensors(imported: Imported) -> None:
    source, model = imported.source, imported.config.model
    if model.vocab_size < 1:
        raise UserError(f"{source}: model.vocab_size is {model.vocab_size}; expected at least 1")
    try:
        model.check()
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    check_weights(source, imported.tensors)
    shapes = {key: tensor.shape for key, tensor in imported.tensors.items()}
    expected = {name: p.shape for name, p in outline(model).named_parameters()}
    check_parameters(source, shapes, expected)
    written = {key: (shape, torch.float32) for key, shape in shapes.items()}
    check_states(source, written, states_of(parameter_groups(outline(model), imported.config)))
