"""Import of state dicts of the official GAM code (arXiv 2509.00605)."""

from pathlib import Path

from torch import Tensor

from gam_scale.checkpoint.shard import PARAM
from gam_scale.checkpoint.state import TrainState
from gam_scale.config import DataConfig, RunConfig
from gam_scale.errors import UserError
from gam_scale.export.imported import Imported
from gam_scale.export.weights import check_weights, load_pickled, load_safetensors
from gam_scale.interop import load_official


def read_official(path: Path, tokenizer: Path) -> Imported:
    """Read the parameters in a ``.safetensors`` file, or in a ``.pt`` file that holds nothing else.

    Raises:
        UserError: no such file, a damaged one, or not the official model's tensors.
    """
    state = load_safetensors(path) if path.suffix == ".safetensors" else _load_state_dict(path)
    check_weights(path, state)
    try:
        model = load_official(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    # The official code trains at its full context, on one stream of concatenated documents.
    data = DataConfig(seq_len=model.config.max_seq_len, documents="concatenate")
    return Imported(
        source=path,
        config=RunConfig(model.config, data),
        tensors={f"{PARAM}.{name}": p.detach() for name, p in model.named_parameters()},
        state=TrainState(),
        tokenizer=tokenizer,
    )


def _load_state_dict(path: Path) -> dict[str, Tensor]:
    state = load_pickled(path)
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise UserError(f"{path} is not a state dict; expected tensors by name and nothing else")
    return state
