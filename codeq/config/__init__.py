"""`ExperimentConfig`: all settings of a run, as a strict dataclass and as YAML."""

from codeq.config.device import resolve_device
from codeq.config.experiment import ExperimentConfig
from codeq.config.parts import LossTerm, OptimizerConfig, ParamGroup, ParamGroups, QuantizerConfig, ScheduleConfig
from codeq.config.serialize import serialize
from codeq.config.yaml import parse_overrides, parse_scalar

__all__ = [
    "ExperimentConfig", "QuantizerConfig", "OptimizerConfig", "ParamGroups", "ParamGroup", "LossTerm", "ScheduleConfig",
    "resolve_device", "parse_overrides", "parse_scalar", "serialize",
]  # fmt: skip
