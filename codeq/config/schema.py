"""Schema of a configuration, as in YAML files: dataclasses whose annotations define the legal values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from codeq.config import checks, optimizer_checks
from codeq.config.activations import ActivationsConfig
from codeq.config.arguments import Kwargs
from codeq.config.checks import from_callable, registered
from codeq.config.optimizer import OptimizerConfig
from codeq.config.parts import (
    AugmentationConfig,
    DistillationConfig,
    FreezeConfig,
    LossTerm,
    LrSchedulerKwargs,
    QuantizerConfig,
    ScheduleConfig,
)
from codeq.config.serialize import Part
from codeq.config.target import TargetConfig
from codeq.config.values import Count, Flag, Fraction, Natural, Seed, Text, ZeroOrOne
from codeq.data import DATASETS
from codeq.models import MODELS
from codeq.optimizers import Scheduler
from codeq.schedules import SCHEDULES
from codeq.sparsity import LOSSES


@dataclass(frozen=True, kw_only=True)
class ExperimentSchema(Part):
    """Schema of one experiment with the defaults of a YAML file: a float model, unless a quantizer is given.

    Parameters
    ----------
    name : str
        Name of the run.
    imports : list of str
        Files and modules with parts of the user's own, which are imported first.
    model : str
        Name in `MODELS`, ``timm:NAME``, ``torchvision:NAME``, or ``module:factory`` of an imported module.
    model_kwargs : dict
        Further arguments of the model's factory.
    pretrained : bool
        Whether to start from the published weights of the model; those of `resnet20` are part of codeq.
    init_from : str, optional
        Initial weights: the folder of a run, whose last checkpoint is taken, or a file of weights (``.pt``, ``.pth``,
        ``.bin``, ``.safetensors``). A compacted network (``codeq compact RUN --trainable``) replaces that of `model`.
    init_from_strict : bool
        Whether those weights must fit completely; otherwise what fits is loaded.
    dataset : str
        Name in `DATASETS`.
    data_dir : str, optional
        Folder of the data set; default: ``data`` in the project.
    num_classes : int, optional
        Default: the number of classes of the data set.
    img_size : int
        Height and width of the images, in pixels.
    augmentation : AugmentationConfig, optional
        Further augmentation of the training images; default: none beyond that of the data set.
    validation : float, optional
        Fraction of the training images, in (0, 1), that is set aside and evaluated after every epoch to select the best
        checkpoint; default: none, the test images select it.
    epochs, batch_size : int
        At least 1.
    workers : int
        Number of processes that load a data set too large for memory.
    seed : int
        Seed of the initial weights, the order of the data and the augmentation, below 2⁶⁴.
    device : str, optional
        Default: cuda, else mps, else cpu.
    amp : {"auto", "bf16"}, optional
        Mixed precision of the forward pass in training; ``auto``: bf16 where the device has instructions for it;
        default: none, float32.
    deterministic : bool
        Whether the same seed gives the same run on a GPU, which is slower.
    recalibrate_batchnorm : int
        Number of training batches to re-estimate the BatchNorm statistics before each evaluation; 0 keeps the
        running statistics.
    channels_last : bool
        Whether images and convolutions use the channels-last memory format.
    use_compile : bool
        Whether to use ``torch.compile``.
    cuda_graph : bool
        Whether a GPU replays the training step from a CUDA graph that is recorded in each epoch, for a model and losses
        whose Python code is the same in every step; without effect on other devices.
    wandb_mode : {"disabled", "offline", "online"}, optional
        Mode of Weights & Biases; default: ``WANDB_MODE`` of the environment, else disabled, unless `wandb_project` is
        named.
    wandb_project : str
        Weights & Biases project. Any other than the default is followed: online if a key is configured, else offline.
    tensorboard : bool
        Whether to write TensorBoard event files.
    save_dir : str, optional
        Parent of the run's folder, relative to the project; default: ``outputs`` and the run's name.
    run_dir : str, optional
        The run's folder; default: a new one in `save_dir`.
    viz_interval : int
        Epochs between two figures.
    checkpoint_interval : int
        Batches between two checkpoints inside an epoch; 0: after each epoch only.
    stop_degenerate : bool
        Whether to stop a training that will not recover, with the status ``degenerate``, instead of only warning.
    degenerate_patience : int
        Epochs at chance, or without a change of the loss, after which a training counts as degenerate.
    lr_scheduler : {"cosine", "step", "constant", "one_cycle"}
        Schedule of all learning rates: half a cosine down to 0, a factor every `step_size` epochs, no change, half a
        cosine up and another one down.
    lr_scheduler_kwargs : LrSchedulerKwargs
        Warm-up and steps of that schedule.
    lr_schedule_unit : {"epoch", "step"}
        Whether the learning rates change with every epoch or with every batch.
    ema : float, optional
        Decay per batch of an exponential moving average of the weights, in (0, 1), which is evaluated and saved in
        place of the weights; default: none.
    label_smoothing : float
        Fraction of the labels' probability that is spread over all classes, in [0, 1).
    distillation : DistillationConfig, optional
        Default: none.
    theta_regularizer : {"l2", "decoupled"}
        Meaning of the weight decay of the quantizer's parameters: ``λ‖θ‖²`` in the loss, or decoupled weight decay.
    theta_schedule : ScheduleConfig, optional
        Schedule of that weight decay; default: constant 1.
    freeze_last : FreezeConfig
        Epochs at the end in which dead-zones or bit-widths stay as they are; default: none.
    quantizer : QuantizerConfig, optional
        Default: none, a float model.
    activations : ActivationsConfig, optional
        Quantizers of the inputs of quantized layers; default: none, float activations.
    optimizer : OptimizerConfig
        Default: adamw.
    target : TargetConfig, optional
        Cost at the end of the training, to which λ is steered; default: none.
    loss_terms : list of LossTerm
        Terms added to the cross-entropy.
    """

    name: Text
    imports: Annotated[list[Text], Strict()] = field(default_factory=list)
    model: Annotated[Text, registered(MODELS)] = "resnet20"
    model_kwargs: Annotated[Kwargs, AfterValidator(checks.model_kwargs)] = field(default_factory=dict)
    pretrained: Annotated[ZeroOrOne, AfterValidator(checks.pretrained)] = False
    init_from: Annotated[Text | None, AfterValidator(checks.init_from)] = None
    init_from_strict: Flag = True
    dataset: Annotated[Text, registered(DATASETS)] = "cifar10"
    data_dir: Text | None = None
    num_classes: Annotated[Count | None, AfterValidator(checks.num_classes)] = None
    img_size: Count = 32
    augmentation: AugmentationConfig | None = None
    validation: Fraction | None = None
    epochs: Count = 300
    batch_size: Count = 512
    workers: Natural = 2
    seed: Seed = 0
    device: Annotated[Text | None, AfterValidator(checks.device)] = None
    amp: Literal["auto", "bf16"] | None = None
    deterministic: Flag = False
    recalibrate_batchnorm: Natural = 0
    channels_last: Flag = True
    use_compile: ZeroOrOne = False
    cuda_graph: Flag = False
    wandb_mode: Literal["disabled", "offline", "online"] | None = None
    wandb_project: Text = "codeq"
    tensorboard: Flag = False
    save_dir: Text | None = None
    run_dir: Text | None = None
    viz_interval: Count = 25
    checkpoint_interval: Natural = 0
    stop_degenerate: Flag = False
    degenerate_patience: Count = 5
    lr_scheduler: Scheduler = "cosine"
    lr_scheduler_kwargs: Annotated[LrSchedulerKwargs, AfterValidator(checks.lr_scheduler_kwargs)] = field(
        default_factory=LrSchedulerKwargs
    )
    lr_schedule_unit: Literal["epoch", "step"] = "epoch"
    ema: Fraction | None = None
    label_smoothing: Annotated[float, Strict(), Field(ge=0, lt=1)] = 0.0
    distillation: DistillationConfig | None = None
    theta_regularizer: Literal["l2", "decoupled"] = "decoupled"
    theta_schedule: Annotated[ScheduleConfig | None, from_callable(SCHEDULES)] = None
    freeze_last: Annotated[FreezeConfig, AfterValidator(checks.freeze_last)] = field(default_factory=FreezeConfig)
    quantizer: Annotated[QuantizerConfig | None, BeforeValidator(checks.with_default_exclusions)] = None
    activations: ActivationsConfig | None = None
    optimizer: Annotated[OptimizerConfig, AfterValidator(optimizer_checks.optimizer)] = field(
        default_factory=OptimizerConfig
    )
    target: Annotated[TargetConfig | None, AfterValidator(checks.target)] = None
    loss_terms: Annotated[
        list[Annotated[LossTerm, from_callable(LOSSES)]], Strict(), AfterValidator(checks.loss_terms)
    ] = field(default_factory=list)
