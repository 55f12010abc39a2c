"""Load a trained model from its checkpoint alone: weights, config and tokenizer."""

from dataclasses import dataclass
from pathlib import Path

import torch

from gam_scale.checkpoint.state import load_state
from gam_scale.checkpoint.store import load_config_of, load_model, resolve
from gam_scale.checkpoint.verify import TOKENIZER, verify_checkpoint
from gam_scale.config import RunConfig
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.data.tokenizer_file import load_tokenizer
from gam_scale.model.lm import LanguageModel, outline


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds, ready for use."""

    model: LanguageModel
    tokenizer: Tokenizer
    config: RunConfig
    step: int
    path: Path


def load_trained(path: str | Path, device: str | torch.device = "cpu") -> Trained:
    """Load a step-* folder, or the newest one of a run directory, in evaluation mode.

    Raises:
        UserError: no checkpoint there, or a damaged file (by name).
    """
    folder = resolve(path)
    verify_checkpoint(folder)
    config = load_config_of(folder)
    model = outline(config.model).to_empty(device="cpu")
    load_model(folder, model)
    tokenizer = load_tokenizer(folder / TOKENIZER)
    step = load_state(folder).step
    return Trained(model.to(device).eval(), tokenizer, config, step, folder)
