"""Parts of a configuration that describe the optimizers and their groups of parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from codeq.config import optimizer_checks
from codeq.config.arguments import Kwargs
from codeq.config.checks import registered
from codeq.config.serialize import Part
from codeq.config.values import Factor, Flag, Rate, Text
from codeq.optimizers import OPTIMIZERS

NullMeansDefault = BeforeValidator(lambda value: {} if value is None else value)


@dataclass(frozen=True, kw_only=True)
class GroupSettings(Part):
    """Settings of the optimizer for a group of parameters.

    Parameters
    ----------
    lr : float
        Initial learning rate.
    weight_decay : float
        Weight decay of the optimizer.
    momentum : float, optional
        Momentum of sgd, in [0, 1); default: none.
    """

    lr: Rate = 1e-3
    weight_decay: Factor = 0.0
    momentum: Annotated[float, Strict(), Field(ge=0, lt=1)] | None = None


@dataclass(frozen=True, kw_only=True)
class ParamGroup(GroupSettings):
    """Settings of the optimizer for the weights.

    Parameters
    ----------
    nesterov : bool, optional
        Whether the momentum of sgd is Nesterov's; default: not.
    decay_norms_and_biases : bool
        Whether `weight_decay` also applies to normalization layers, to parameters of quantizers in this group, such as
        a learned scale, and to biases and other parameters of one dimension.
    """

    nesterov: Flag | None = None
    decay_norms_and_biases: Flag = True


@dataclass(frozen=True, kw_only=True)
class ThetaGroup(GroupSettings):
    """Settings of the optimizer for the dead-zone logits or the bit-width logits.

    `ExperimentConfig.theta_regularizer` selects the meaning of `weight_decay`.
    """

    weight_decay: Factor = 0.01


@dataclass(frozen=True, kw_only=True)
class ParamGroups(Part):
    """Settings of the weights (`base`), the dead-zone logits (`dz`) and the bit-width logits (`bit`)."""

    base: ParamGroup = field(default_factory=ParamGroup)
    dz: Annotated[ThetaGroup, NullMeansDefault] = field(default_factory=ThetaGroup)
    bit: Annotated[ThetaGroup, NullMeansDefault] = field(default_factory=ThetaGroup)


@dataclass(frozen=True, kw_only=True)
class ThetaOptimizerConfig(Part):
    """Optimizer of the dead-zone and bit-width logits alone; their settings stay those of `ParamGroups`.

    Parameters
    ----------
    type : str
        Name in `OPTIMIZERS`.
    kwargs : dict
        Further arguments of its constructor.
    """

    type: Annotated[Text, registered(OPTIMIZERS)] = "adamw"
    kwargs: Annotated[Kwargs, AfterValidator(optimizer_checks.optimizer_kwargs)] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Part):
    """Optimizer and its settings.

    Parameters
    ----------
    type : str
        Name in `OPTIMIZERS`.
    kwargs : dict
        Further arguments of its constructor, the same for all groups.
    theta : ThetaOptimizerConfig, optional
        Second optimizer, of the groups `dz` and `bit`; default: none, one optimizer for all groups.
    param_groups : ParamGroups
        Settings of each group of parameters.
    """

    type: Annotated[Text, registered(OPTIMIZERS)] = "adamw"
    kwargs: Annotated[Kwargs, AfterValidator(optimizer_checks.optimizer_kwargs)] = field(default_factory=dict)
    theta: ThetaOptimizerConfig | None = None
    param_groups: Annotated[ParamGroups, AfterValidator(optimizer_checks.param_groups)] = field(
        default_factory=ParamGroups
    )
