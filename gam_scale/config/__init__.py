"""The one place where a run is configured: its settings, what goes together, and its file.

A config file is JSON with the sections of :class:`RunConfig`.
"""

from gam_scale.config.load import load_config
from gam_scale.config.sections import (
    CheckpointConfig,
    DataConfig,
    DataSetConfig,
    EvalConfig,
    EvalSetConfig,
    LogConfig,
    ParallelConfig,
    RunConfig,
)
from gam_scale.config.training import AnnealConfig, StageConfig, TrainConfig
from gam_scale.model.config import ModelConfig
from gam_scale.model.short_form import AttentionConfig, GAMConfig, MambaConfig, MemoryConfig

__all__ = [  # what others read from here
    "AnnealConfig",
    "AttentionConfig",
    "CheckpointConfig",
    "DataConfig",
    "DataSetConfig",
    "EvalConfig",
    "EvalSetConfig",
    "GAMConfig",
    "LogConfig",
    "MambaConfig",
    "MemoryConfig",
    "ModelConfig",
    "ParallelConfig",
    "RunConfig",
    "StageConfig",
    "TrainConfig",
    "load_config",
]
