"""Import of DeepSpeed's universal checkpoints, which have a folder of files for each parameter."""

from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gam_scale.checkpoint.shard import PARAM
from gam_scale.checkpoint.state import TrainState
from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.export.imported import Imported
from gam_scale.export.weights import load_pickled
from gam_scale.hyperparameters import with_chosen
from gam_scale.model.lm import outline
from gam_scale.strict import LARGEST_INT

_FILES = {PARAM: "fp32", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
_EMBEDDING = "embedding.weight"


def read_universal(folder: Path, config: RunConfig, tokenizer: Path) -> Imported:
    """Read parameters, Adam's moments and the step count of our model that DeepSpeed trained.

    Args:
        folder: what ``python -m deepspeed.checkpoint.ds_to_universal`` wrote.
        config: the run's config; if its vocabulary size is 0, the embedding's is taken.

    Raises:
        UserError: not such a folder, a damaged file, or parameters of another model.
    """
    if not (folder / "zero").is_dir():
        raise UserError(
            f"{folder} has no folder zero; expected a universal checkpoint, as python -m "
            "deepspeed.checkpoint.ds_to_universal writes it"
        )
    names = sorted(p.name for p in (folder / "zero").iterdir() if p.is_dir())
    config = with_chosen(_with_vocabulary(folder, config))
    shapes = {name: p.shape for name, p in outline(config.model).named_parameters()}
    tensors = {}
    for name in names:
        for kind, file in _FILES.items():
            path = folder / "zero" / name / f"{file}.pt"
            if kind == PARAM or path.is_file():
                tensors[f"{kind}.{name}"] = _read(path, shapes.get(name))
    steps, applied = _steps(folder, names)
    stepped = {name for kind, name in (key.split(".", 1) for key in tensors) if kind != PARAM}
    tensors |= {f"step.{name}": torch.tensor(float(applied)) for name in stepped}
    return Imported(
        source=folder,
        config=config,
        tensors=tensors,
        state=TrainState(
            step=steps, optimizer_steps=applied, sequences=steps * config.train.global_batch_size
        ),
        tokenizer=tokenizer,
    )


def _with_vocabulary(folder: Path, config: RunConfig) -> RunConfig:
    if config.model.vocab_size:
        return config
    embedding = _tensor(folder / "zero" / _EMBEDDING / "fp32.pt")
    rows = embedding.numel() // config.model.d_model
    return replace(config, model=replace(config.model, vocab_size=rows))


def _read(path: Path, shape: torch.Size | None) -> Tensor:
    """Read one tensor, and give it its shape back where ZeRO stage 3 has flattened it."""
    tensor = _tensor(path)
    if shape is not None and tensor.dim() == 1 and tensor.numel() == shape.numel():
        return tensor.view(shape)
    return tensor


def _tensor(path: Path) -> Tensor:
    value: Any = load_pickled(path)
    if isinstance(value, dict):
        value = value.get("param")
    if not isinstance(value, Tensor):
        raise UserError(f'{path} holds no tensor; expected one, or a dict with one under "param"')
    return value.detach()


def _steps(folder: Path, names: list[str]) -> tuple[int, int]:
    """Return the number of steps taken, and how many of them Adam applied.

    Raises:
        UserError: neither number is there, without which Adam's bias correction would be wrong.
    """
    applied = next((p for n in names if (p := folder / "zero" / n / "step.pt").is_file()), None)
    engine = next(iter(sorted(folder.glob("*mp_rank_00_model_states.pt"))), None)
    counts = []
    if engine is not None:
        # The file may hold a user's own objects, which are not loaded; then Adam's count must do.
        with suppress(UserError) if applied else nullcontext():
            state = load_pickled(engine)
            steps = state.get("global_steps") if isinstance(state, dict) else None
            counts.append(_count(steps, engine))
    if applied is not None:
        counts.append(_count(load_pickled(applied), applied))
    if not counts:
        raise UserError(
            f"{folder} says nowhere how many steps were taken; expected a step.pt beside the "
            "parameters or the engine's *_model_states.pt"
        )
    return counts[0], counts[-1]


def _count(value: Any, path: Path) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        count = -1
    if not 0 <= count < LARGEST_INT:
        raise UserError(f"{path}: its count of steps is no number; expected 0 or more")
    return count
