"""The one place where a run is configured: its settings, what goes together, and its file.

A config file is JSON with the sections of :class:`RunConfig`.
"""

from gam_scale.config.load import load_config
from gam_scale.config.sections import (
    CheckpointConfig,
    DataConfig,
    DataSetConfig,
    EvalConfig,
    LogConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from gam_scale.config_model import (
    LONGEST,
    WIDEST,
    AttentionConfig,
    GAMConfig,
    LayerKind,
    MambaConfig,
    MemoryConfig,
    MemoryKind,
    ModelConfig,
)

__all__ = [  # what others read from here
    "LONGEST",
    "WIDEST",
    "AttentionConfig",
    "CheckpointConfig",
    "DataConfig",
    "DataSetConfig",
    "EvalConfig",
    "GAMConfig",
    "LayerKind",
    "LogConfig",
    "MambaConfig",
    "MemoryConfig",
    "MemoryKind",
    "ModelConfig",
    "ParallelConfig",
    "RunConfig",
    "TrainConfig",
    "load_config",
]
