"""Parts of a configuration: quantizer, augmentation, learning-rate schedule, distillation, sparsity terms.

The constructors check nothing: `codeq.config.ExperimentConfig` validates a whole configuration, to report all errors at
once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict
from torch import nn

from codeq.common.errors import CodeqError, quote
from codeq.config import checks
from codeq.config.arguments import Kwargs
from codeq.config.checks import from_callable, registered
from codeq.config.serialize import OWN, Part
from codeq.config.values import Count, Factor, Flag, Natural, Rate, Text, Texts
from codeq.quantizer import QUANTIZERS
from codeq.schedules import SCHEDULES
from codeq.sparsity import LOSSES, LossFunction, build_loss


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig(Part):
    """Quantizer of the weights.

    Parameters
    ----------
    name : str
        Name in `QUANTIZERS`.
    kwargs : dict
        Arguments of its constructor.
    exclude_layers : list of str
        Patterns of the layers that stay float; default: ``[conv1, bn, linear]`` for the CIFAR ResNets, else none.
    """

    name: Annotated[Text, registered(QUANTIZERS)]
    kwargs: Annotated[Kwargs, AfterValidator(checks.quantizer_kwargs)] = field(default_factory=dict)
    # The default depends on the model, so it is `None` only until the whole configuration is validated.
    exclude_layers: Annotated[list[Text], Strict()] = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class FreezeConfig(Part):
    """Epochs at the end of the training in which parameters of the quantizers stay as they are.

    Parameters
    ----------
    dz : int
        Last epochs without updates of the dead-zone logits.
    bit : int
        Last epochs without updates of the bit-width logits.
    """

    dz: Natural = 0
    bit: Natural = 0


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig(Part):
    """Augmentation of training images beyond that of the data set, see `codeq.data.Augmentation`.

    Parameters
    ----------
    randaugment : int
        Random operations per image (RandAugment, arXiv 1909.13719); 0: none.
    magnitude : int
        Strength of these operations, 0 to 30.
    cutout : int
        Side in pixels of a square that is filled with the mean colour (arXiv 1708.04552); 0: none.
    """

    randaugment: Annotated[int, Strict(), Field(ge=0, le=14)] = 0
    magnitude: Annotated[int, Strict(), Field(ge=0, le=30)] = 9
    cutout: Natural = 0


@dataclass(frozen=True, kw_only=True)
class LrSchedulerKwargs(Part):
    """Details of the learning-rate schedule, see `codeq.optimizers.lr_factor`.

    Parameters
    ----------
    warmup : int
        Epochs of growth at the beginning; ``one_cycle`` needs at least one.
    step_size : int, optional
        Epochs between two steps of ``step``; default: a third of the epochs after the warm-up.
    gamma : float
        Factor of one step of ``step``.
    """

    warmup: Natural = 0
    step_size: Count | None = None
    gamma: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.1


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Part):
    """Knowledge distillation from trained runs (Hinton et al., arXiv 1503.02531).

    Parameters
    ----------
    teacher : str or list of str
        Folder of the teacher's run, relative to the project; of a run with a validation split the best checkpoint is
        used, else the last one. Several teach together: what is imitated is the mean of their logits, the geometric
        mean of their predictions.
    alpha : float
        Weight of the distillation loss, in (0, 1]; the cross-entropy with the labels has weight ``1 - alpha``.
    temperature : float
        Divisor of the logits of both networks; larger values give more weight to unlikely classes.
    """

    teacher: Texts
    alpha: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.5
    temperature: Rate = 4.0

    @property
    def teachers(self) -> list[str]:
        """Folders of all teachers' runs."""
        return [self.teacher] if isinstance(self.teacher, str) else self.teacher


class _Referenced(Part):
    """Base of the parts that refer to a registered function, or to a user's callable, which no file can store."""

    name: str
    function: Callable[..., Any] | None

    def own_function(self) -> Callable[..., Any] | None:
        """Return the user's callable; `None` for a registered function."""
        if self.name.startswith(OWN) and self.function is None:
            raise CodeqError(f"{quote(self.name)} is a callable of your own, which no file can store: pass it again")
        return self.function


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(_Referenced):
    """Schedule of a coefficient over the epochs.

    Parameters
    ----------
    name : str
        Name in `SCHEDULES`, or ``own:…``.
    kwargs : dict
        Arguments of its factory.
    function : callable, optional
        A user's schedule; not written to YAML.
    """

    name: Annotated[Text, registered(SCHEDULES, or_own=True)] = "constant"
    kwargs: Annotated[Kwargs, AfterValidator(checks.schedule_kwargs)] = field(default_factory=dict)
    function: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def build(self) -> Callable[[float, int], float]:
        """Return the schedule ``(epoch, total_epochs) -> coefficient``.

        Examples
        --------
        >>> ScheduleConfig(name="linear_warmup", kwargs={"delay": 2, "ramp": 4}).build()(4, 10)
        0.5
        """
        return self.own_function() or SCHEDULES[self.name](**self.kwargs)


@dataclass(frozen=True, kw_only=True)
class LossTerm(_Referenced):
    """Sparsity term of the loss, ``lambda · schedule(epoch) · loss``.

    Parameters
    ----------
    name : str
        Name in `LOSSES`, or ``own:…``.
    lambda_ : float
        Factor of the term; ``lambda`` in YAML.
    kwargs : dict
        Arguments of the loss.
    schedule : ScheduleConfig
        Default: constant 1.
    step : {"gradient", "proximal"}
        Whether the term is part of the loss, or a proximal operator shrinks the weights after each optimizer step.
    detach_quantizer : bool
        Whether the quantizer's parameters get no gradient from the term.
    function : callable, optional
        A user's loss; not written to YAML.
    """

    name: Annotated[Text, registered(LOSSES, or_own=True)]
    lambda_: Annotated[Factor, Field(alias="lambda")] = 1.0
    kwargs: Annotated[Kwargs, AfterValidator(checks.loss_kwargs)] = field(default_factory=dict)
    schedule: Annotated[ScheduleConfig, from_callable(SCHEDULES)] = field(default_factory=ScheduleConfig)
    step: Annotated[Literal["gradient", "proximal"], AfterValidator(checks.step)] = "gradient"
    detach_quantizer: Flag = False
    function: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def build(self, model: nn.Module, input_size: tuple[int, int, int]) -> LossFunction:
        """Return the loss ``fn(model) -> scalar`` for `model`, whose inputs are `(C, H, W)` = `input_size`."""
        return self.own_function() or build_loss(self.name, self.kwargs, model, input_size)
