"""Parts of a configuration that exist in this process alone: of a cell or a script, or given as functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from codeq.common.errors import quote
from codeq.common.registry import Registry
from codeq.config.experiment import ExperimentConfig
from codeq.config.serialize import OWN
from codeq.data import DATASETS
from codeq.models import MODELS
from codeq.optimizers import OPTIMIZERS
from codeq.quantizer import QUANTIZERS
from codeq.schedules import SCHEDULES
from codeq.sparsity import LOSSES


def session_parts(config: ExperimentConfig, imports: Iterable[str]) -> list[str]:
    """Return the parts of `config` that a new process which makes `imports` does not know, as text.

    Examples
    --------
    >>> session_parts(ExperimentConfig("demo"), [])
    []
    >>> session_parts(ExperimentConfig("demo", sparsity_fn=lambda model: model.fc1.weight.abs().sum()), [])
    ["loss '<lambda>'"]
    """
    named = {
        f"{registry.kind} {quote(name.removeprefix(OWN))}": None
        for registry, name in _named_parts(config)
        if name.startswith(OWN) or not registry.is_known_elsewhere(name, imports)
    }
    return list(named)


def call_in_session(call: str, parts: Iterable[str]) -> str:
    """Return what to do in place of a command that could not know `parts`.

    Examples
    --------
    >>> call_in_session("run_experiment(config)", ["model 'mine'"])
    "run_experiment(config) in this session, or in a new one that has defined model 'mine' again"
    """
    return f"{call} in this session, or in a new one that has defined {', '.join(parts)} again"


def _named_parts(config: ExperimentConfig) -> Iterator[tuple[Registry[Any], str]]:
    yield MODELS, config.model
    yield DATASETS, config.dataset
    if config.quantizer:
        yield QUANTIZERS, config.quantizer.name
    yield OPTIMIZERS, config.optimizer.type
    if config.optimizer.theta:
        yield OPTIMIZERS, config.optimizer.theta.type
    for term in config.loss_terms:
        yield LOSSES, term.name
        yield SCHEDULES, term.schedule.name
    if config.theta_schedule:
        yield SCHEDULES, config.theta_schedule.name
