"""Construction of everything that takes part in a training, from a checked configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig
from codeq.data import hold_out
from codeq.data.base import BaseDataset
from codeq.evaluator import Evaluator
from codeq.optimizers import is_fused
from codeq.training.averaging import MovingAverage
from codeq.training.checking import check_batches, check_outputs, warn_of_blocked_gradients
from codeq.training.compiling import check_compiler
from codeq.training.distillation import load_teacher
from codeq.training.distributed import Ranks
from codeq.training.doubtful_settings import warn_of_settings
from codeq.training.guard import FiniteGuard
from codeq.training.loop_state import LoopState
from codeq.training.model_and_data import build_model_and_data
from codeq.training.objective import Objective
from codeq.training.paired_optimizer import build_optimizers
from codeq.training.parameter_groups import parameter_groups
from codeq.training.precision import Precision, warn_of_emulation
from codeq.training.rates import LearningRates, ThetaDecay, ThetaFactors, frozen_groups, rate_factor
from codeq.training.skipped_layers import reach_all
from codeq.training.sources import source_warnings, start_warning
from codeq.training.steering import Steering, build_steering, warn_of_distance
from codeq.training.step import DirectSteps, ReplayedSteps
from codeq.training.teacher_checkpoints import teaching_checkpoints
from codeq.training.terms import build_terms, check_schedules
from codeq.training.unused_parameters import unused_parameters

logger = logging.getLogger(__name__)

SYNC_INTERVAL = 50  # batches between two reads of an accelerator's flags, each of which waits for it


@dataclass(frozen=True)
class Training:
    """Components of one training.

    Parameters
    ----------
    model : Module
        With its quantizers, on its device.
    forward : callable
        `model` as training calls it: replicated, compiled.
    dataset : BaseDataset
        On the same device; without the validation images.
    validation : BaseDataset, optional
        Whose test images are the validation images.
    batches : int
        Batches of an epoch.
    evaluator : Evaluator
        Measures against the dense 32-bit version of the model.
    objective : Objective
        The loss.
    optimizer : Optimizer
        Over the three groups of parameters; a pair of optimizers if the configuration names a second one for θ.
    rates : LearningRates
        Of the optimizer.
    theta_decay : ThetaDecay, optional
        Schedule of the regularizer on θ.
    steering : Steering, optional
        Steers λ to a cost target.
    average : MovingAverage, optional
        Moving average of the model, which is evaluated and saved in its place.
    precision : {"bf16", "float32"}
        Number format of the forward pass in training.
    guard : FiniteGuard
        Stops a training that diverges.
    steps : DirectSteps or ReplayedSteps
        Runs the steps, on a GPU perhaps as replays of a CUDA graph.
    loop : LoopState
        Where the training stands.
    """

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    dataset: BaseDataset
    validation: BaseDataset | None
    batches: int
    evaluator: Evaluator
    objective: Objective
    optimizer: torch.optim.Optimizer
    rates: LearningRates
    theta_decay: ThetaDecay | None
    steering: Steering | None
    average: MovingAverage | None
    precision: Precision
    guard: FiniteGuard
    steps: DirectSteps | ReplayedSteps
    loop: LoopState

    @property
    def evaluated(self) -> nn.Module:
        """The model to evaluate and to save: the moving average, or else the trained model itself."""
        return self.average.module if self.average else self.model

    def freeze_average(self, epoch: int) -> None:
        """Give the moving average the logits that are frozen in an epoch, which it would follow for some epochs."""
        frozen = {id(parameter) for parameter in self.rates.frozen(epoch)}
        if self.average and frozen:
            self.average.copy_from(self.model, frozen)

    def coefficients(self, epoch: int, epochs: int) -> list[float]:
        """Return the coefficient of each sparsity term in an epoch, steered ones as of now."""
        factor = self.steering.terms_factor if self.steering else 1.0
        return [factor * term.coefficient(epoch, epochs) for term in self.objective.terms]


def build_training(
    config: ExperimentConfig,
    ranks: Ranks,
    precision: Precision,
    *,
    initialize: bool,
    compacted: Mapping[str, Any] | None = None,
    teachers: Sequence[Mapping[str, Any]] | None = None,
) -> Training:
    """Build what `config` describes, and try out what only a trial can check.

    Initial weights follow from the seed alone, unless `initialize` is set and the configuration names others
    (`pretrained`, `init_from`). A training that is going to restore a checkpoint does not need them; if the checkpoint
    is that of a compacted network, it is given as `compacted`, and the checkpoints that it records of its teachers as
    `teachers`.

    Raises
    ------
    CodeqError
        For a model, data set, loss or teacher that cannot be built, initial weights that cannot be read, and parts that
        do not fit together.
    """
    warn_of_emulation(precision, ranks.device)
    torch.manual_seed(config.seed)
    if initialize and ranks.first:
        for reason in source_warnings(config):
            logger.warning("%s", reason)
    model, whole = build_model_and_data(config, ranks, initialize, compacted)
    if initialize and ranks.first and (reason := start_warning(config, whole)):
        logger.warning("%s", reason)
    dataset, validation = hold_out(whole, config.validation, config.seed) if config.validation else (whole, None)
    evaluator = Evaluator(model, dataset.input_size)
    trial = evaluator.evaluate(model)  # an unknown bit-width is found now, not after the first epoch
    for note in trial.left_out:
        logger.warning("%s", note)
    warn_of_blocked_gradients(model)
    check_outputs(model, dataset.input_size, dataset.num_classes)
    check_batches(model, dataset, validation, config.batch_size, ranks)
    groups, theta = parameter_groups(config.optimizer.param_groups, config.theta_regularizer, model)
    objective = _build_objective(config, model, theta, dataset, ranks, precision, teachers)
    optimizer = build_optimizers(config.optimizer, groups)
    batches = dataset.num_train_batches(config.batch_size)
    forward = _build_forward(model, ranks, config.use_compile, dataset.input_size)
    keep_zeros = any(term.step == "proximal" for term in config.loss_terms)
    average = MovingAverage(model, config.ema, keep_zeros) if config.ema else None
    theta_factors = ThetaFactors(optimizer, objective, model)
    evaluated = average.module if average else model
    steering = build_steering(config, evaluated, evaluator, theta_factors, batches) if config.target else None
    if steering and initialize:
        steering.check_start()
        if ranks.first:
            warn_of_distance(config, evaluated, evaluator, batches)
    steps = _build_steps(config.cuda_graph, ranks)
    steps.use_settings(optimizer)  # also before a checkpoint is restored, see `restore_optimizer`
    ranks.seed(config.seed)
    return Training(
        model=model,
        forward=forward,
        dataset=dataset.to(ranks.device),
        validation=validation.to(ranks.device) if validation else None,
        batches=batches,
        evaluator=evaluator,
        objective=objective,
        optimizer=optimizer,
        rates=_build_rates(config, optimizer, model, batches),
        theta_decay=_build_theta_decay(config, theta_factors),
        steering=steering,
        average=average,
        precision=precision,
        guard=_build_guard(ranks, optimizer, steps),
        steps=steps,
        loop=LoopState(objective.zero(ranks.device), torch.zeros((), device=ranks.device, dtype=torch.long)),
    )


def _build_forward(
    model: nn.Module, ranks: Ranks, use_compile: bool, input_size: tuple[int, int, int]
) -> Callable[[Tensor], Tensor]:
    unused = unused_parameters(model, input_size) if ranks.world > 1 else []
    forward: Callable[[Tensor], Tensor] = ranks.replicate(model, unused)
    if use_compile:
        check_compiler(ranks.device)
        # Batches have two shapes, full and the rest of an epoch; code for any shape is slower.
        forward = torch.compile(forward, dynamic=False)
    if ranks.world == 1:
        return forward
    left_out = {id(parameter) for parameter in unused}
    return reach_all(forward, [p for p in model.parameters() if p.requires_grad and id(p) not in left_out])


def _build_rates(
    config: ExperimentConfig, optimizer: torch.optim.Optimizer, model: nn.Module, batches: int
) -> LearningRates:
    base = config.optimizer.param_groups.base.lr
    warn_of_settings(config, batches)
    return LearningRates(optimizer, base, rate_factor(config, batches), frozen_groups(config, optimizer, model))


def _build_theta_decay(config: ExperimentConfig, factors: ThetaFactors) -> ThetaDecay | None:
    if config.theta_schedule is None:
        return None
    decay = ThetaDecay(factors, config.theta_schedule.build())
    decay.check(config.epochs)
    return decay


def check_target(config: ExperimentConfig, model: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Check that a training of `config` from the weights of `model` can be steered to its target.

    Raises
    ------
    CodeqError
        If the target is not below the figure of `model`, if the figure cannot fall to it, or if no λ lowers the figure.
    """
    groups, theta = parameter_groups(config.optimizer.param_groups, config.theta_regularizer, model)
    factors = ThetaFactors(build_optimizers(config.optimizer, groups), Objective(model, [], theta), model)
    build_steering(config, model, Evaluator(model, input_size), factors, batches=1).check_start()


def _build_objective(
    config: ExperimentConfig,
    model: nn.Module,
    theta: list[tuple[list[nn.Parameter], float]],
    dataset: BaseDataset,
    ranks: Ranks,
    precision: Precision,
    recorded: Sequence[Mapping[str, Any]] | None,
) -> Objective:
    terms = build_terms(config.loss_terms, model, dataset.input_size)
    check_schedules(terms, config.epochs, model)
    teacher = None
    if settings := config.distillation:
        # The same in all processes, also where the teacher is being trained.
        checkpoints = ranks.on_first(lambda: teaching_checkpoints(settings, recorded))
        teacher = load_teacher(settings, dataset, ranks.device, checkpoints)
    return Objective(
        model,
        terms,
        theta,
        label_smoothing=config.label_smoothing,
        teacher=teacher,
        bfloat16=precision == "bf16",
    )


def _build_steps(cuda_graph: bool, ranks: Ranks) -> DirectSteps | ReplayedSteps:
    if not cuda_graph or ranks.device.type != "cuda":
        return DirectSteps()
    if ranks.world > 1:
        raise CodeqError(f"cuda_graph=True: must be false in a training of {ranks.world} processes")
    return ReplayedSteps(ranks.device)


def _build_guard(ranks: Ranks, optimizer: torch.optim.Optimizer, steps: DirectSteps | ReplayedSteps) -> FiniteGuard:
    # An optimizer that is not fused spoils the weights in the batch that follows. Where steps are replayed, that is
    # found up to an interval later, but before they are saved: nothing can be read while a step is recorded.
    each = not isinstance(steps, ReplayedSteps) and not is_fused(optimizer)
    return FiniteGuard(1 if ranks.device.type == "cpu" or each else SYNC_INTERVAL)
