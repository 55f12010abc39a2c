"""Average of a run's checkpoints, written as one more checkpoint.

Averaging the weights over the last part of a run whose learning rate stays up (LAWA, arXiv
2209.14981) removes much of the loss that noisy steps add, without the steps of a decay.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gam_scale import __version__
from gam_scale.checkpoint.canonical import CanonicalTensors, write_shards
from gam_scale.checkpoint.names import CHECKPOINTS
from gam_scale.checkpoint.shard import PARAM, Shard
from gam_scale.checkpoint.state import load_state
from gam_scale.checkpoint.store import CheckpointStore, load_config_of, resolve, saving
from gam_scale.checkpoint.verify import CONFIG, TOKENIZER, verify_checkpoint
from gam_scale.errors import UserError
from gam_scale.export.folder import new_folder
from gam_scale.files import read_regular, write_json
from gam_scale.run.settings import MAY_CHANGE, differences, is_of_stages, same_stages
from gam_scale.strict import read_json, shown

NOTE = "averaged.json"
"""File in the new run directory that lists the averaged checkpoints."""
FILE_BYTES = 256 << 20
"""Most bytes of one file of the result, unless one tensor has more. It bounds the memory needed."""


def checkpoints_of(paths: Sequence[str | Path], last: int = 0) -> list[Path]:
    """Return the checkpoints that ``paths`` name, in order of their steps.

    Args:
        paths: step-* folders, and run directories, which name all of their checkpoints.
        last: take only this many, the newest, of each run directory; 0: all.

    Raises:
        UserError: there are fewer than two or than ``last``, or two of one step.
    """
    found = [folder for path in paths for folder in _within(Path(path), last)]
    by_step = {load_state(folder).step: folder for folder in found}
    if len(by_step) < 2 or len(by_step) < len(found):
        names = ", ".join(map(str, found))
        raise UserError(f"{names}: expected two checkpoints or more, each of another step")
    return [by_step[step] for step in sorted(by_step)]


def average(folders: Sequence[Path], out: Path) -> Path:
    """Write a new run directory ``out`` whose one checkpoint has the mean of all parameters.

    The checkpoint has the step, config, tokenizer and place in the data of the last of ``folders``,
    but no optimizer states: further training starts with those of a new run. Sums are float32;
    memory holds one file's worth of the result (:data:`FILE_BYTES`, or one tensor) twice.

    Args:
        folders: checkpoints, as :func:`checkpoints_of` returns them.
        out: a new or empty folder.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: the checkpoints are not of one run, one is damaged, or ``out`` is not new.
    """
    newest = folders[-1]
    for folder in folders:
        verify_checkpoint(folder)
    sources = list(map(CanonicalTensors, folders))
    for other, source in zip(folders[:-1], sources, strict=False):
        _check_same(other, source, newest, sources[-1])
    state, config = load_state(newest), load_config_of(newest)
    state = replace(state, best_val_loss=None, world_size=1, code_version=__version__)
    with new_folder(out) as folder:
        store, files = CheckpointStore(folder / CHECKPOINTS), _files(sources[-1])
        partial = store.begin(state.step)
        with saving(store.path(state.step)):
            for number, names in enumerate(files):
                means = (Shard.whole(PARAM, name, _mean(sources, name)) for name in names)
                write_shards(partial, number, len(files), means)
        written = store.commit(len(files), state, config, read_regular(newest / TOKENIZER))
        write_json(folder / NOTE, [str(each.resolve()) for each in folders])
    return out / CHECKPOINTS / written.name


def _within(path: Path, last: int) -> list[Path]:
    for folder in (path / CHECKPOINTS, path):
        store = CheckpointStore(folder)
        if steps := store.steps():
            if last > len(steps):
                raise UserError(
                    f"--last is {last} but {path} has {len(steps)} "
                    f"checkpoint{'s' * (len(steps) > 1)}; expected at most as many "
                    "(checkpoint.keep_last says how many a run keeps)"
                )
            return [store.path(step) for step in steps[-last:]]
    return [resolve(path)]


def _check_same(
    folder: Path, tensors: CanonicalTensors, newest: Path, expected: CanonicalTensors
) -> None:
    """Check that a checkpoint is of the same run as the newest one.

    Raises:
        UserError: it is not; the message names what differs.
    """
    config = load_config_of(newest)
    for key, (before, now) in differences(read_json(folder / CONFIG), config).items():
        same = is_of_stages(key) and same_stages(folder / CONFIG, config, load_state(folder).step)
        if not (same or key.startswith(MAY_CHANGE)):
            raise UserError(
                f"{key} is {shown(before)} in {folder} but {shown(now)} in {newest}; expected "
                "checkpoints of one run"
            )
    if read_regular(folder / TOKENIZER) != read_regular(newest / TOKENIZER):
        raise UserError(f"{folder} and {newest} have other tokenizers; expected one run's")
    ours, theirs = _parameters(tensors), _parameters(expected)
    for name in ours.keys() | theirs.keys():
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{name} is {_in_words(ours.get(name))} in {folder} but "
                f"{_in_words(theirs.get(name))} in {newest}; expected checkpoints of one run"
            )


def _parameters(tensors: CanonicalTensors) -> dict[str, tuple[list[int], torch.dtype]]:
    keys = ((key.split(".", 1), content) for key, content in tensors.content().items())
    return {name: content for (kind, name), content in keys if kind == PARAM}


def _in_words(content: tuple[list[int], torch.dtype] | None) -> str:
    return "missing" if content is None else f"of shape {tuple(content[0])}"


def _files(tensors: CanonicalTensors) -> list[list[str]]:
    """Return the names of the parameters in each file of the result."""
    files: list[list[str]] = []
    room = 0
    for name, (shape, dtype) in _parameters(tensors).items():
        size = torch.Size(shape).numel() * dtype.itemsize
        if not files or size > room:
            files.append([])
            room = FILE_BYTES
        files[-1].append(name)
        room -= size
    return files


def _mean(sources: Sequence[CanonicalTensors], name: str) -> Tensor:
    """Return the mean of a parameter, in the parameter's dtype."""
    tensors = _each(sources, name)
    first = next(tensors)
    total = first.float()
    for tensor in tensors:
        total += tensor
    return (total / len(sources)).to(first.dtype)


def _each(sources: Sequence[CanonicalTensors], name: str) -> Iterator[Tensor]:
    for source in sources:
        shape, _ = source.content()[f"{PARAM}.{name}"]
        yield source.read(PARAM, name, [0] * len(shape), shape)
