"""Loading of tensors from untrusted files, without running their code, and checks of tensors."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gam_scale.errors import UserError, one_line
from gam_scale.files import open_regular

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Load the tensors of one file.

    Raises:
        UserError: no such file, or a damaged one.
    """
    open_regular(path).close()
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{path} is not a safetensors file or is damaged ({error})") from None


def load_pickled(path: Path) -> Any:
    """Load a ``.pt`` file of tensors and plain containers; no code in the file is run.

    Raises:
        UserError: no such file, or one that holds anything else.
    """
    open_regular(path).close()
    try:
        # Of a mapped file unused tensors are never read; torch's old format cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception:  # a damaged pickle can make the reader fail in any way
        raise UserError(
            f"{path} is damaged or holds more than tensors; expected a state dict saved by "
            "torch.save, which is loaded without running any code of the file"
        ) from None


def check_weights(where: object, tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors can be weights, whatever their shapes.

    Args:
        where: the source, which the messages name.
        tensors: by name.

    Raises:
        UserError: a tensor has whole or complex numbers, is sparse, or is not finite.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS or tensor.layout is not torch.strided:
            kind = f"{str(tensor.dtype).removeprefix('torch.')}, {tensor.layout}"
            raise UserError(
                f"{where}: {one_line(name)} is {kind}; expected a dense tensor of float32, "
                "float64, float16 or bfloat16"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{where}: {one_line(name)} holds numbers that are not finite; expected the "
                "weights of a model that did not diverge"
            )
