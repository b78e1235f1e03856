# The public names of codeq.config; `__init__.py` imports each from here when it is first used.
# ruff: noqa: I001 - one import for each module, with the aliases that make its names public
from .device import resolve_device as resolve_device
from .experiment import ExperimentConfig as ExperimentConfig
from .optimizer import OptimizerConfig as OptimizerConfig, ParamGroup as ParamGroup, ParamGroups as ParamGroups
from .parts import LossTerm as LossTerm, QuantizerConfig as QuantizerConfig, ScheduleConfig as ScheduleConfig
from .serialize import serialize as serialize
from .yaml import parse_overrides as parse_overrides, parse_scalar as parse_scalar
