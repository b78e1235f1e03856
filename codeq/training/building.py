"""Construction of everything that takes part in a training, from a checked configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig, serialize
from codeq.data import load_dataset
from codeq.data.base import BaseDataset
from codeq.evaluator import Evaluator
from codeq.models import build_model
from codeq.optimizers import build_optimizer, is_fused, lr_factor
from codeq.training.checking import check_batches, check_outputs
from codeq.training.distillation import load_teacher
from codeq.training.distributed import Ranks
from codeq.training.guard import FiniteGuard
from codeq.training.initial_weights import load_initial_weights, read_weights
from codeq.training.objective import Objective
from codeq.training.parameter_groups import LearningRates, parameter_groups
from codeq.training.resuming import LoopState
from codeq.training.step import DirectSteps, ReplayedSteps
from codeq.training.terms import build_terms, warn_of_idle_terms

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
        On the same device.
    batches : int
        Batches of an epoch.
    evaluator : Evaluator
        Measures against the dense 32-bit version of the model.
    objective : Objective
        The loss.
    optimizer : Optimizer
        Over the three groups of parameters.
    rates : LearningRates
        Of the optimizer.
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
    batches: int
    evaluator: Evaluator
    objective: Objective
    optimizer: torch.optim.Optimizer
    rates: LearningRates
    guard: FiniteGuard
    steps: DirectSteps | ReplayedSteps
    loop: LoopState

    def coefficients(self, epoch: int, epochs: int) -> list[float]:
        """Return the coefficient of each sparsity term in an epoch."""
        return [term.coefficient(epoch, epochs) for term in self.objective.terms]


def build_training(config: ExperimentConfig, ranks: Ranks, *, initialize: bool) -> Training:
    """Build what `config` describes, and try out what only a trial can check.

    Initial weights follow from the seed alone, unless `initialize` is set and the configuration names others
    (`pretrained`, `init_from`); a training that is going to restore a checkpoint does not need them.

    Raises
    ------
    CodeqError
        For a model, data set, loss or teacher that cannot be built, initial weights that cannot be read, and parts that
        do not fit together.
    """
    torch.manual_seed(config.seed)
    source = config.init_from if initialize else None
    weights = read_weights(source) if source else None
    model, dataset = _build_model_and_data(config, ranks, config.pretrained and initialize)
    if source and weights:
        load_initial_weights(model, weights, source, config.init_from_strict, announce=ranks.first)
    evaluator = Evaluator(model, dataset.input_size)
    evaluator.evaluate(model)  # an unknown bit-width is found now, not after the first epoch
    check_outputs(model, dataset.input_size, dataset.num_classes)
    check_batches(model, dataset, config.batch_size, ranks)
    groups, theta = parameter_groups(config.optimizer.param_groups, config.theta_regularizer, model)
    objective = _build_objective(config, model, theta, dataset, ranks.device)
    optimizer = build_optimizer(config.optimizer.type, config.optimizer.kwargs, groups)
    course = serialize(config.lr_scheduler_kwargs)
    factor = partial(lr_factor, epochs=config.epochs, name=config.lr_scheduler, **course)
    forward = ranks.replicate(model)
    ranks.seed(config.seed)
    return Training(
        model=model,
        # Batches have two shapes, full and the rest of an epoch; code for any shape is slower.
        forward=torch.compile(forward, dynamic=False) if config.use_compile else forward,
        dataset=dataset,
        batches=dataset.num_train_batches(config.batch_size),
        evaluator=evaluator,
        objective=objective,
        optimizer=optimizer,
        rates=LearningRates(optimizer, config.optimizer.param_groups.base.lr, factor),
        guard=FiniteGuard(1 if ranks.device.type == "cpu" or not is_fused(optimizer) else SYNC_INTERVAL),
        steps=_build_steps(config.cuda_graph, ranks),
        loop=LoopState(objective.zero(ranks.device), torch.zeros((), device=ranks.device, dtype=torch.long)),
    )


def _build_model_and_data(config: ExperimentConfig, ranks: Ranks, pretrained: bool) -> tuple[nn.Module, BaseDataset]:
    """Build the model and load the data, each of which may download something.

    Where the number of classes is known, the model comes first: its mistakes are found before data is decoded.
    """

    def build(num_classes: int) -> nn.Module:
        model = build_model(
            config.model,
            num_classes,
            config.model_kwargs,
            img_size=config.img_size,
            quantizer=config.quantizer,
            pretrained=pretrained,
        ).to(ranks.device)
        return model.to(memory_format=torch.channels_last) if config.channels_last else model

    known = config.num_classes
    model = ranks.first_then_others(lambda: build(known)) if known else None
    dataset = ranks.first_then_others(
        lambda: load_dataset(config.dataset, config.data_dir, config.img_size, workers=config.workers)
    )
    if known not in (None, dataset.num_classes):
        raise CodeqError(f"num_classes={known}: dataset {config.dataset!r} has {dataset.num_classes}")
    if model is None:
        model = ranks.first_then_others(lambda: build(dataset.num_classes))
    return model, dataset.to(ranks.device)


def _build_objective(
    config: ExperimentConfig,
    model: nn.Module,
    theta: list[tuple[list[nn.Parameter], float]],
    dataset: BaseDataset,
    device: torch.device,
) -> Objective:
    terms = build_terms(config.loss_terms, model, dataset.input_size)
    warn_of_idle_terms(terms, config.epochs)
    settings = config.distillation
    return Objective(
        model,
        terms,
        theta,
        label_smoothing=config.label_smoothing,
        teacher=load_teacher(settings, dataset.num_classes, dataset.input_size, device) if settings else None,
        bfloat16=config.amp == "bf16",
    )


def _build_steps(cuda_graph: bool, ranks: Ranks) -> DirectSteps | ReplayedSteps:
    if not cuda_graph or ranks.device.type != "cuda":
        return DirectSteps()
    if ranks.world > 1:
        raise CodeqError(f"cuda_graph=True: must be false in a training of {ranks.world} processes")
    return ReplayedSteps()
