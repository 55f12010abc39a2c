"""A run's configuration: its settings, the rules for combining them, and its file.

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

__all__ = [  # the names that other packages use
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
