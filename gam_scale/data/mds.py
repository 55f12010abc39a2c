"""The one place that imports ``streaming`` (mosaicml-streaming), the MDS reader and writer."""

import importlib
import importlib.util
import sys
from types import ModuleType

# Modules that streaming always imports, though reading and writing MDS needs none of them.
_READY_MADE_SETS = ("streaming.vision", "streaming.multimodal", "streaming.text")
_BATCH_TYPES = {
    "transformers": None,
    "transformers.feature_extraction_utils": "BatchFeature",
    "transformers.tokenization_utils_base": "BatchEncoding",
}


def import_streaming() -> ModuleType:
    """Import ``streaming``, also where torchvision and transformers are absent.

    streaming needs torchvision only for its ready-made data sets, and transformers only for two
    types of batch that its loader knows. Stand-ins for them are in ``sys.modules`` during the
    import alone, so that a later import of the real packages finds them, or finds them missing.
    """
    if "streaming" in sys.modules:
        return sys.modules["streaming"]
    stand_ins: dict[str, ModuleType] = {}
    has_transformers = importlib.util.find_spec("transformers") is not None
    if not has_transformers:
        for name, batch_type in _BATCH_TYPES.items():
            stand_ins[name] = ModuleType(name)
            if batch_type:
                setattr(stand_ins[name], batch_type, type(batch_type, (), {}))
    if not has_transformers or importlib.util.find_spec("torchvision") is None:
        stand_ins |= {name: ModuleType(name) for name in _READY_MADE_SETS}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("streaming")
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)
