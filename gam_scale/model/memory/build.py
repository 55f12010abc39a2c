"""A memory by its kind; all have one interface, :class:`~gam_scale.model.memory.base.Memory`."""

from gam_scale.config import MemoryKind, ModelConfig
from gam_scale.model.memory.base import Memory
from gam_scale.model.memory.delta import DeltaMemory
from gam_scale.model.memory.phase import PhaseMemory
from gam_scale.model.memory.scan import ScanMemory
from gam_scale.model.memory.slot import SlotMemory
from gam_scale.model.memory.static import StaticMemory

_WRITTEN: dict[str, type[Memory]] = {
    "slot": SlotMemory,
    "delta": DeltaMemory,
    "phase": PhaseMemory,
    "scan": ScanMemory,
}


def build_memory(model: ModelConfig, kind: MemoryKind) -> Memory:
    """A memory of this kind, of the sizes that ``model`` gives it."""
    if kind == "static":
        return StaticMemory(model.d_model, model.gam.n_slots)
    return _WRITTEN[kind](model)
