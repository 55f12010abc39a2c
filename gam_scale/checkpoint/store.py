"""The checkpoints of one run: save, list, load, keep the last few and the best."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.files import atomic_folder, verify_folder, write_bytes, write_json
from gam_scale.strict import from_dict, read_json, to_dict

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
CONFIG, TOKENIZER, BEST = "config.json", "tokenizer.model", "best.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class TrainState:
    """What a run is, besides weights and moments. Everything else follows from it.

    Data order, dropout masks and learning rates are pure functions of the seed and the step, so
    there is no generator or iterator state to keep.
    """

    step: int = 0
    """Optimizer steps done."""
    sequences: int = 0
    """Sequences consumed: where the data stream goes on."""
    data_fingerprint: str = ""
    """Identity of the data stream (sets, weights, context, seed)."""
    optimizer_steps: int = 0
    """Steps that were applied: Adam's own count, fewer than ``step`` after skipped ones."""
    best_val_loss: float | None = None
    """Lowest validation loss so far."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Counts of tokens and sums since the last logged line."""
    world_size: int = 1
    """Ranks that saved it; a resumed run may have another number."""
    code_version: str = ""


class CheckpointStore:
    """``folder/step-00000100/`` and so on; the newest is the run's state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, ascending."""
        return sorted(int(p.name.removeprefix("step-")) for p in self.folder.glob("step-*"))

    def path(self, step: int) -> Path:
        """The folder of one step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def latest(self) -> Path | None:
        """The newest checkpoint, if there is one."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def best(self) -> Path | None:
        """The checkpoint of the lowest validation loss, if one was kept."""
        if not (self.folder / BEST).is_file():
            return None
        path = self.path(read_json(self.folder / BEST)["step"])
        return path if path.is_dir() else None

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
        config: RunConfig,
        tokenizer: bytes,
    ) -> Path:
        """Write one checkpoint; a kill at any instant leaves the earlier ones as they were.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        final = self.path(state.step)
        try:
            with atomic_folder(final) as folder:
                save_file(_parameters(model), folder / MODEL)
                save_file(_moments(model, optimizer), folder / OPTIMIZER)
                write_json(folder / STATE, asdict(state))
                write_json(folder / CONFIG, to_dict(config))
                write_bytes(folder / TOKENIZER, tokenizer)
        except Exception as error:
            # safetensors reports a full disk in an exception type of its own.
            full = "No space left" in str(error) or "os error 28" in str(error)
            if not full and not isinstance(error, OSError):
                raise
            kept = self.steps()
            last = f"the last good one is step {kept[-1]}" if kept else "there is no earlier one"
            reason = "the disk is full" if full else str(error)
            raise UserError(f"{final}: checkpoint not saved ({reason}); {last}") from None
        return final

    def mark_best(self, step: int, val_loss: float) -> None:
        """Record that ``step``'s checkpoint is the best so far."""
        write_json(self.folder / BEST, {"step": step, "val_loss": val_loss})

    def prune(self, keep_last: int) -> None:
        """Remove all but the newest ``keep_last`` checkpoints and the best one."""
        best = self.best()
        for step in self.steps()[:-keep_last]:
            if self.path(step) != best:
                # Renamed first: a kill midway must not leave a folder that looks whole.
                doomed = self.folder / f".step-{step:08d}.removed"
                shutil.rmtree(doomed, ignore_errors=True)
                self.path(step).rename(doomed)
        for doomed in self.folder.glob(".step-*.removed"):
            shutil.rmtree(doomed, ignore_errors=True)


def resolve(path: str | Path) -> Path:
    """The checkpoint folder that ``path`` means: itself, or a run directory's newest.

    Raises:
        UserError: there is no checkpoint there.
    """
    path = Path(path)
    if (path / STATE).is_file():
        return path
    for folder in (path / "checkpoints", path):
        if newest := CheckpointStore(folder).latest():
            return newest
    raise UserError(f"{path} holds no checkpoint; expected a run directory or a step-* folder")


def load_config_of(checkpoint: Path) -> RunConfig:
    """The complete configuration that a checkpoint was trained with."""
    return from_dict(RunConfig, read_json(checkpoint / CONFIG))


def load_state(checkpoint: Path) -> TrainState:
    """The train state of a checkpoint, after its checksums were verified."""
    verify_folder(checkpoint)
    return TrainState(**json.loads((checkpoint / STATE).read_text()))


def load_model(checkpoint: Path, model: nn.Module) -> None:
    """Copy a checkpoint's parameters into ``model``.

    Raises:
        UserError: a parameter is missing, unknown or of another shape.
    """
    _copy_into(dict(model.named_parameters()), load_file(checkpoint / MODEL), checkpoint / MODEL)


def load_optimizer(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState
) -> None:
    """Copy a checkpoint's Adam moments into ``optimizer``, whose parameters are ``model``'s."""
    stored = load_file(checkpoint / OPTIMIZER)
    into = {}
    for name, parameter in model.named_parameters():
        slots = optimizer.state[parameter]
        # Fused AdamW keeps its step count on the device of the parameter.
        slots["step"] = torch.tensor(float(state.optimizer_steps), device=parameter.device)
        for moment in MOMENTS:
            slots[moment] = torch.empty_like(parameter, requires_grad=False)
            into[f"{moment}.{name}"] = slots[moment]
    _copy_into(into, stored, checkpoint / OPTIMIZER)


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().contiguous() for name, p in model.named_parameters()}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        slots = optimizer.state.get(parameter, {})
        for moment in MOMENTS:
            value = slots.get(moment)
            tensors[f"{moment}.{name}"] = torch.zeros_like(parameter) if value is None else value
    return {name: t.detach().contiguous() for name, t in tensors.items()}


def _copy_into(into: dict[str, Tensor], stored: dict[str, Tensor], path: Path) -> None:
    for name in stored:
        if name not in into:
            raise UserError(f"{path}: {name} is not a tensor of this model")
    for name, target in into.items():
        if name not in stored:
            raise UserError(f"{path} has no tensor {name}, which this model needs")
        if stored[name].shape != target.shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(stored[name].shape)}; this model expects "
                f"{tuple(target.shape)}"
            )
        target.data.copy_(stored[name])
