"""GAM Scale: train Gated Associative Memory language models (arXiv 2509.00605) at scale.

``from gam_scale import Layer`` gives a layer for a model of your own; see docs/layer.md.
"""

import os
import sys
from importlib import import_module
from typing import Any

if sys.platform == "darwin":  # before torch is imported: the CPU does what Apple's GPUs lack
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__version__ = "0.1.0"

# Imported on first use, so that a launcher that needs only the version does not wait for torch.
_PUBLIC = {
    "FEED_FORWARDS": "model.parts",
    "LanguageModel": "model.lm",
    "Layer": "model.layer",
    "Layout": "model.layout",
    "MIXERS": "model.parts",
    "ModelConfig": "model.config",
    "NORMS": "model.parts",
    "UserError": "errors",
    "build_model": "model.lm",
}
__all__ = ["__version__", *sorted(_PUBLIC)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
