"""Every setting of every job: frozen dataclasses, their defaults and their checks.

A file in ``configs/`` starts from one of the jobs, changes what it must, and hands ``main`` an
``ml_collections.ConfigDict`` (see ``config_dict``); ``main`` turns that back into the dataclass once. Below that line
there is no ConfigDict. Imports nothing of ours.
"""

from loong_jax.config.checks import ConfigError, require, require_choice
from loong_jax.config.evaluation import HELD_OUT, FvdConfig
from loong_jax.config.jobs import (
    FULL_TOKENIZER_JOB,
    JOBS,
    CheckDataJob,
    ClaimsJob,
    DemoJob,
    DoctorJob,
    EstimateJob,
    EvaluateJob,
    ExportJob,
    Job,
    LanguageModelJob,
    SampleJob,
    TokenizeJob,
    TokenizerJob,
)
from loong_jax.config.media import MediaLimits
from loong_jax.config.model import (
    DEBUG_TRANSFORMER,
    SMALL_TRANSFORMER,
    TRANSFORMER_PRESETS,
    LossConfig,
    TransformerConfig,
)
from loong_jax.config.sampling import (
    DecodingConfig,
    IntSchedule,
    SamplingChanges,
    SamplingConfig,
    Schedule,
    by_frame,
    in_all_rounds,
)
from loong_jax.config.serving import ServeJob, ServingLimits
from loong_jax.config.sources import SourceName, is_tokens, parse_sources
from loong_jax.config.tokenizer import (
    DEBUG_TOKENIZER,
    DiscriminatorConfig,
    QuantizerConfig,
    TokenizerConfig,
    TokenizerLossConfig,
)
from loong_jax.config.training import (
    SMALL_TOKENIZER_OPTIMIZER,
    SMALL_TRANSFORMER_OPTIMIZER,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)

__all__ = [
    "DEBUG_TOKENIZER",
    "DEBUG_TRANSFORMER",
    "FULL_TOKENIZER_JOB",
    "HELD_OUT",
    "JOBS",
    "SMALL_TOKENIZER_OPTIMIZER",
    "SMALL_TRANSFORMER",
    "SMALL_TRANSFORMER_OPTIMIZER",
    "TRANSFORMER_PRESETS",
    "CheckDataJob",
    "ClaimsJob",
    "ConfigError",
    "DataConfig",
    "DecodingConfig",
    "DemoJob",
    "DiscriminatorConfig",
    "DoctorJob",
    "EstimateJob",
    "EvaluateJob",
    "ExportJob",
    "FvdConfig",
    "IntSchedule",
    "Job",
    "LanguageModelJob",
    "LossConfig",
    "MediaLimits",
    "MeshConfig",
    "OptimizerConfig",
    "QuantizerConfig",
    "SampleJob",
    "SamplingChanges",
    "SamplingConfig",
    "Schedule",
    "ServeJob",
    "ServingLimits",
    "SourceName",
    "TokenizeJob",
    "TokenizerConfig",
    "TokenizerJob",
    "TokenizerLossConfig",
    "TrainConfig",
    "TransformerConfig",
    "by_frame",
    "in_all_rounds",
    "is_tokens",
    "parse_sources",
    "require",
    "require_choice",
]
