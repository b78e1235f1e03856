"""The form of a configuration, as YAML files hold it: nested dataclasses whose annotations say what is allowed.

Nothing is checked when a part is made by hand: `ExperimentConfig` checks a whole configuration, to report all
problems at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict
from torch import nn

from codeq.common.errors import CodeqError
from codeq.config import checks
from codeq.config.arguments import Kwargs
from codeq.config.checks import from_callable, registered
from codeq.config.serialize import OWN, Part
from codeq.data import DATASETS
from codeq.models import MODELS
from codeq.optimizers import OPTIMIZERS
from codeq.quantizer import QUANTIZERS
from codeq.schedules import SCHEDULES
from codeq.sparsity import LOSSES, Loss, build_loss

Text = Annotated[str, Strict(), Field(min_length=1), AfterValidator(checks.text)]
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1, le=2**31 - 1)]
Natural = Annotated[int, Strict(), Field(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Strict(), Field(ge=0, le=2**64 - 1)]  # the seeds of torch.manual_seed
Rate = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Factor = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
# A flag that YAML files also write as 0 and 1.
ZeroOrOne = Annotated[
    Flag, BeforeValidator(lambda value: bool(value) if type(value) is int and value in (0, 1) else value)
]
NullMeansDefault = BeforeValidator(lambda value: {} if value is None else value)


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig(Part):
    """What quantizes the weights.

    Parameters
    ----------
    name : str
        In `QUANTIZERS`.
    kwargs : dict
        Arguments of its constructor.
    exclude_layers : list of str
        Patterns of layers that stay float; default ``[conv1, bn, linear]`` for the CIFAR ResNets, else none.
    """

    name: Annotated[Text, registered(QUANTIZERS)]
    kwargs: Annotated[Kwargs, AfterValidator(checks.quantizer_kwargs)] = field(default_factory=dict)
    exclude_layers: Annotated[list[Text], Strict()] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ParamGroup(Part):
    """The optimizer's settings for the weights.

    Parameters
    ----------
    lr : float
        Learning rate at the start.
    weight_decay : float
        The optimizer's own weight decay.
    momentum : float, optional
        Of sgd, in [0, 1); default none.
    """

    lr: Rate = 1e-3
    weight_decay: Factor = 0.0
    momentum: Annotated[float, Strict(), Field(ge=0, lt=1)] | None = None


@dataclass(frozen=True, kw_only=True)
class ThetaGroup(ParamGroup):
    """The optimizer's settings for one kind of quantizer parameter.

    `weight_decay` is what `ExperimentConfig.theta_regularizer` says.
    """

    weight_decay: Factor = 0.01


@dataclass(frozen=True, kw_only=True)
class ParamGroups(Part):
    """Settings of the weights (`base`), the dead-zone logits (`dz`) and the bit-width logits (`bit`)."""

    base: ParamGroup = field(default_factory=ParamGroup)
    dz: Annotated[ThetaGroup, NullMeansDefault] = field(default_factory=ThetaGroup)
    bit: Annotated[ThetaGroup, NullMeansDefault] = field(default_factory=ThetaGroup)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Part):
    """Which optimizer, and its settings.

    Parameters
    ----------
    type : str
        In `OPTIMIZERS`.
    kwargs : dict
        Further arguments of its constructor, for all groups alike.
    param_groups : ParamGroups
        Settings of each group of parameters.
    """

    type: Annotated[Text, registered(OPTIMIZERS)] = "adamw"
    kwargs: Annotated[Kwargs, AfterValidator(checks.optimizer_kwargs)] = field(default_factory=dict)
    param_groups: Annotated[ParamGroups, AfterValidator(checks.param_groups)] = field(default_factory=ParamGroups)


@dataclass(frozen=True, kw_only=True)
class LrSchedulerKwargs(Part):
    """Details of the course of the learning rates, see `codeq.optimizers.lr_factor`.

    Parameters
    ----------
    warmup : int
        Epochs at the beginning over which the rates grow linearly.
    step_size : int, optional
        Epochs between two steps of ``step``; default a third of those after the warm-up.
    gamma : float
        Factor of one step of ``step``.
    """

    warmup: Natural = 0
    step_size: Count | None = None
    gamma: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.1


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Part):
    """A trained run whose predictions the training imitates beside the labels (Hinton et al., arXiv 1503.02531).

    Parameters
    ----------
    teacher : str
        Folder of the run, relative to the project; its best checkpoint is used.
    alpha : float
        Share of the imitation in the loss, in (0, 1]; the labels' cross-entropy has the rest.
    temperature : float
        By which both networks' logits are divided; larger ones show more of the unlikely classes.
    """

    teacher: Text
    alpha: Annotated[float, Strict(), Field(gt=0, le=1)] = 0.5
    temperature: Rate = 4.0


class _Referenced(Part):
    """Something that a registry can make, or a callable of the user's own, which no file can hold."""

    name: str
    function: Callable[..., Any] | None

    def own_function(self) -> Callable[..., Any] | None:
        """Return the user's own callable, `None` for a registered one."""
        if self.name.startswith(OWN) and self.function is None:
            raise CodeqError(f"{self.name!r} is a callable of your own, which no file can hold: pass it again")
        return self.function


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(_Referenced):
    """A coefficient over the epochs.

    Parameters
    ----------
    name : str
        In `SCHEDULES`, or ``own:…``.
    kwargs : dict
        Arguments of its factory.
    function : callable, optional
        A user's own schedule; not written to YAML.
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
    """One sparsity term of the loss, ``lambda · schedule(epoch) · loss``.

    Parameters
    ----------
    name : str
        In `LOSSES`, or ``own:…``.
    lambda_ : float
        Its factor, ``lambda`` in YAML.
    kwargs : dict
        Arguments of the loss.
    schedule : ScheduleConfig
        Default: constantly 1.
    step : {"gradient", "proximal"}
        Whether the term is part of the loss, or shrinks the weights after each step of the optimizer.
    detach_quantizer : bool
        Whether the term leaves the quantizer's parameters alone.
    function : callable, optional
        A user's own loss; not written to YAML.
    """

    name: Annotated[Text, registered(LOSSES, or_own=True)]
    lambda_: Annotated[Factor, Field(alias="lambda")] = 1.0
    kwargs: Annotated[Kwargs, AfterValidator(checks.loss_kwargs)] = field(default_factory=dict)
    schedule: Annotated[ScheduleConfig, from_callable(SCHEDULES)] = field(default_factory=ScheduleConfig)
    step: Annotated[Literal["gradient", "proximal"], AfterValidator(checks.step)] = "gradient"
    detach_quantizer: Flag = False
    function: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def build(self, model: nn.Module, input_size: tuple[int, int, int]) -> Loss:
        """Return the loss ``fn(model) -> scalar`` for `model`, whose inputs are `(C, H, W)` = `input_size`."""
        return self.own_function() or build_loss(self.name, self.kwargs, model, input_size)


@dataclass(frozen=True, kw_only=True)
class ExperimentSchema(Part):
    """One experiment; the defaults are those of a YAML file, which trains a float model unless it names a quantizer.

    Parameters
    ----------
    name : str
        What the run is called.
    model : str
        In `MODELS`.
    model_kwargs : dict
        Further arguments of the model's factory.
    pretrained : bool
        Whether the training starts from the model's published weights.
    dataset : str
        In `DATASETS`.
    data_dir : str, optional
        Where the data set lies; default ``data`` in the project.
    num_classes : int, optional
        Default: as many as the data set has.
    img_size : int
        Height and width of the images, in pixels.
    epochs, batch_size : int
        At least 1.
    workers : int
        Processes that load data sets too large for memory.
    seed : int
        Of initial weights, data order and augmentation.
    device : str, optional
        Default: cuda, else mps, else cpu.
    amp : {"bf16"}, optional
        Mixed precision of the forward pass in training; default none, float32.
    deterministic : bool
        Whether a GPU must give the same run for the same seed, at the price of speed.
    recalibrate_batchnorm : int
        Training batches from which BatchNorm's statistics are estimated anew before each evaluation; 0 keeps the
        running ones.
    channels_last : bool
        Memory layout of images and convolutions.
    use_compile : bool
        Whether to use ``torch.compile``.
    wandb_mode : {"disabled", "offline", "online"}, optional
        Whether Weights & Biases follows the run; default ``WANDB_MODE`` of the environment, else disabled.
    wandb_project : str
        Project of Weights & Biases that the run belongs to.
    tensorboard : bool
        Whether TensorBoard's event files are written, too.
    save_dir : str, optional
        Parent of the run's folder, relative to the project; default ``outputs`` and the run's name.
    run_dir : str, optional
        The run's folder; default: a new one in `save_dir`.
    viz_interval : int
        Epochs between pictures.
    checkpoint_interval : int
        Batches between checkpoints inside an epoch; 0 makes one after each epoch alone.
    lr_scheduler : {"cosine", "step", "constant"}
        Course of all learning rates: half a cosine down to 0, a factor every so many epochs, no change.
    lr_scheduler_kwargs : LrSchedulerKwargs
        Its warm-up and steps.
    label_smoothing : float
        Share of the labels' probability that is spread over all classes, in [0, 1).
    distillation : DistillationConfig, optional
        Default: none.
    theta_regularizer : {"l2", "decoupled"}
        What the weight decay of the quantizer's parameters is: ``λ‖θ‖²`` in the loss, or the optimizer's own.
    quantizer : QuantizerConfig, optional
        Default: none, a float model.
    optimizer : OptimizerConfig
        Default: adamw.
    loss_terms : list of LossTerm
        Added to the cross-entropy.
    """

    name: Text
    model: Annotated[Text, registered(MODELS)] = "resnet20"
    model_kwargs: Annotated[Kwargs, AfterValidator(checks.model_kwargs)] = field(default_factory=dict)
    pretrained: Annotated[ZeroOrOne, AfterValidator(checks.pretrained)] = False
    dataset: Annotated[Text, registered(DATASETS)] = "cifar10"
    data_dir: Text | None = None
    num_classes: Annotated[Count | None, AfterValidator(checks.num_classes)] = None
    img_size: Count = 32
    epochs: Count = 300
    batch_size: Count = 512
    workers: Natural = 2
    seed: Seed = 0
    device: Annotated[Text | None, AfterValidator(checks.device)] = None
    amp: Literal["bf16"] | None = None
    deterministic: Flag = False
    recalibrate_batchnorm: Natural = 0
    channels_last: Flag = True
    use_compile: ZeroOrOne = False
    wandb_mode: Literal["disabled", "offline", "online"] | None = None
    wandb_project: Text = "codeq"
    tensorboard: Flag = False
    save_dir: Text | None = None
    run_dir: Text | None = None
    viz_interval: Count = 25
    checkpoint_interval: Natural = 0
    lr_scheduler: Literal["cosine", "step", "constant"] = "cosine"
    lr_scheduler_kwargs: LrSchedulerKwargs = field(default_factory=LrSchedulerKwargs)
    label_smoothing: Annotated[float, Strict(), Field(ge=0, lt=1)] = 0.0
    distillation: DistillationConfig | None = None
    theta_regularizer: Literal["l2", "decoupled"] = "decoupled"
    quantizer: Annotated[QuantizerConfig | None, BeforeValidator(checks.with_default_exclusions)] = None
    optimizer: Annotated[OptimizerConfig, AfterValidator(checks.optimizer)] = field(default_factory=OptimizerConfig)
    loss_terms: Annotated[
        list[Annotated[LossTerm, from_callable(LOSSES)]], Strict(), AfterValidator(checks.loss_terms)
    ] = field(default_factory=list)
