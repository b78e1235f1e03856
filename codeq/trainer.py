"""The training loop: `run_experiment(config) -> Run`."""

from __future__ import annotations

import math
import os
from contextlib import closing
from functools import partial
from itertools import islice

import torch
from torch.nn.utils import parametrize

from codeq.common.console import say
from codeq.common.errors import CodeqError
from codeq.common.imports import requested_imports
from codeq.common.main_script import check_not_repeated
from codeq.common.modes import training_modes
from codeq.common.progress import counted, progress_bar
from codeq.config import ExperimentConfig, resolve_device
from codeq.evaluator import EvalResult
from codeq.runs import Run
from codeq.runs.sinks import check_tensorboard, resolve_wandb_mode
from codeq.runs.sinks.wandb_mode import WandbMode
from codeq.training.batchnorm import recalibrate_batchnorm
from codeq.training.building import Training, build_training
from codeq.training.compiling import compiled
from codeq.training.distributed import Ranks, joined
from codeq.training.execution import deterministic
from codeq.training.guard import Diverged
from codeq.training.memory import keep_freed_memory
from codeq.training.objective import LossParts
from codeq.training.precision import choose_precision
from codeq.training.recording import Recorder, recording
from codeq.training.reporting import activation_metrics, epoch_metrics, term_metrics
from codeq.training.resuming import Resumed, check_resumable, find_resumable


def run_experiment(config: ExperimentConfig, resume: str | os.PathLike[str] | None = None) -> Run:
    """Train as `config` says, evaluate every epoch, and return the finished run.

    Mistakes in the configuration, the data or the model are found before the run's folder is made. Gradients are on and
    autocast is off, whatever the caller has set. Under `torchrun`, or in a process group that exists, several processes
    train together.

    Parameters
    ----------
    config : ExperimentConfig
        The experiment.
    resume : path, optional
        An interrupted run (its folder, ``latest``, or a part of its name) or one of its checkpoints, to resume with the
        same `config`.

    Raises
    ------
    CodeqError
        For a mistake in the configuration or the data, and for a run that cannot be resumed.
    Preempted
        After Ctrl-C (■ in Jupyter), SIGTERM or SIGUSR1, when the state is saved; a second Ctrl-C interrupts at once.
    Diverged
        If a loss is not finite; what was recorded until then stays.
    """
    check_not_repeated("train")
    config = config.recording_imports(requested_imports())
    device = resolve_device(config.device)
    with (
        training_modes(device),
        joined(device) as ranks,
        keep_freed_memory(device.type == "cpu"),
        deterministic(config.deterministic),
    ):
        resumed, wandb_mode = check(config, resume, ranks)
        if resumed and resumed.run.status == "done":
            return resumed.run
        # A resumed run keeps its number format, also on a machine for which `amp: auto` would choose another one.
        recorded = resumed.run.environment.get("precision") if resumed else None
        precision = ranks.from_first(recorded or choose_precision(config.amp, device))
        initialize = not (resumed and resumed.has_checkpoint)
        compacted = resumed.compacted() if resumed else None
        teachers = resumed.teachers() if resumed and config.distillation else None
        training = build_training(
            config, ranks, precision, initialize=initialize, compacted=compacted, teachers=teachers
        )
        with recording(config, training, resumed, ranks, wandb_mode) as recorder, compiled(config.use_compile):
            for epoch in range(training.loop.epoch, config.epochs):
                train_epoch(config, training, ranks, recorder)
                result = evaluate(config, training, ranks)
                recorder.record_epoch(epoch, measurements(config, training, ranks, result), result)
            recorder.record_summary()
        return recorder.run


def check(
    config: ExperimentConfig, resume: str | os.PathLike[str] | None, ranks: Ranks
) -> tuple[Resumed | None, WandbMode]:
    """Check what needs no model: the run to resume, and the services; what needs one is checked as it is built.

    Returns
    -------
    tuple
        The run to resume, if any, and the mode of W&B.
    """
    wandb_mode = resolve_wandb_mode(config.wandb_mode, config.wandb_project) if ranks.first else "disabled"
    if config.tensorboard:
        check_tensorboard()
    resumed = find_resumable(resume) if resume else None
    if resumed:
        check_resumable(resumed, config)
        if resumed.run.status == "done" and resumed.checkpoint != "last":
            raise CodeqError(
                f"{resumed.run.folder} is done, so it is not resumed from {resumed.checkpoint}; a new training can "
                f"start there: init_from: {resumed.path}"
            )
        if resumed.run.status == "done" and ranks.first:
            say(f"{resumed.run.folder} is done; nothing is left to resume")
    return resumed, wandb_mode


def train_epoch(config: ExperimentConfig, training: Training, ranks: Ranks, recorder: Recorder) -> None:
    """Train from the batch that is due to the end of the epoch."""
    loop = training.loop
    coefficients = training.coefficients(loop.epoch, config.epochs)
    if training.theta_decay:
        training.theta_decay.apply(loop.epoch, config.epochs)
    training.steps.use_settings(training.optimizer)
    training.freeze_average(loop.epoch)
    training.model.train()
    batches = training.dataset.train_batches(
        config.batch_size,
        seed=config.seed,
        epoch=loop.epoch,
        start=loop.batch,
        rank=ranks.rank,
        world=ranks.world,
    )
    title = f"epoch {loop.epoch + 1}/{config.epochs}"
    with closing(batches):
        for x, y in progress_bar(batches, training.batches, loop.batch, title, ranks.first):
            training.rates.apply(loop.epoch, loop.batch)
            if steer(training, ranks, recorder):
                coefficients = training.coefficients(loop.epoch, config.epochs)
            train_step(config, training, ranks, x, y, coefficients)
            if training.average:
                training.average.update_parameters(training.model)
            recorder.save_inside_epoch()
    training.guard.check_weights(training.model, loop.epoch)


def steer(training: Training, ranks: Ranks, recorder: Recorder) -> bool:
    """Update λ where the training has a cost target and an update is due; return whether it did."""
    loop, steering = training.loop, training.steering
    if steering is None or not steering.is_due(loop.epoch, loop.batch):
        return False
    training.guard.check_weights(training.model, loop.epoch)
    recorder.record_steering(steering.update(loop.epoch, loop.batch, ranks))
    training.steps.use_settings(training.optimizer)
    return True


def train_step(
    config: ExperimentConfig,
    training: Training,
    ranks: Ranks,
    x: torch.Tensor,
    y: torch.Tensor,
    coefficients: list[float],
) -> None:
    """Train on one batch `x` `[B, C, H, W]`, `y` `[B]`."""
    loop = training.loop
    if config.channels_last:
        x = x.to(memory_format=torch.channels_last)
    size = min(config.batch_size, len(training.dataset.train) - loop.batch * config.batch_size)
    loop.batch_on_device.fill_(loop.batch)
    training.steps.run(partial(device_step, training, ranks, coefficients, size), x, y)
    loop.batch += 1
    training.guard.check_regularly(loop.epoch, loop.batch)


def device_step(
    training: Training, ranks: Ranks, coefficients: list[float], size: int, x: torch.Tensor, y: torch.Tensor
) -> None:
    """Compute gradients, step the optimizer and add to the sums of the epoch."""
    loop, optimizer = training.loop, training.optimizer
    optimizer.zero_grad()
    weight = ranks.world * len(y) / size
    logits, parts = training.objective.backward(training.forward, x, y, coefficients, weight)
    ranks.mean(parts.values)
    training.guard.watch(optimizer, parts, loop.epoch, loop.batch_on_device)
    training.rates.drop_gradients(loop.epoch)
    optimizer.step()
    training.objective.proximal_steps(coefficients, optimizer.param_groups[0]["lr"])  # that of the weights
    loop.losses.values.add_(parts.values * size)
    loop.num_correct.add_((logits.argmax(1) == y).sum())


def evaluate(config: ExperimentConfig, training: Training, ranks: Ranks) -> EvalResult:
    """Evaluate the model after an epoch, in every process as rank 0 will save it."""
    if config.recalibrate_batchnorm:
        batches = training.dataset.train_batches(config.batch_size, seed=config.seed, epoch=training.loop.epoch)
        # The running statistics trail the weights by some ten steps. Where quantizers and a proximal step change the
        # weights of all layers at once, that lag alone can ruin the evaluation of a network whose training batches it
        # still classifies (Wu & Johnson, arXiv 2105.07576, §3).
        number = min(config.recalibrate_batchnorm, math.ceil(len(training.dataset.train) / config.batch_size))
        with closing(batches), parametrize.cached():
            first = counted(islice(batches, number), "estimating BatchNorm", ranks.first, total=number)
            recalibrate_batchnorm(training.evaluated, first)
    ranks.share_buffers(training.model)
    if training.average:
        ranks.share_buffers(training.average.module)
    loader = (training.validation or training.dataset).test_batches(rank=ranks.rank, world=ranks.world)
    images = counted(loader, "evaluating", ranks.first)
    result = training.evaluator.evaluate(training.evaluated, images, total=ranks.sum)
    if not math.isfinite(result.test_loss or 0.0):
        raise Diverged(f"the evaluation loss is {result.test_loss} after epoch {training.loop.epoch + 1}")
    return result


def measurements(config: ExperimentConfig, training: Training, ranks: Ranks, result: EvalResult) -> dict[str, float]:
    """Return the metrics of the epoch: training means, evaluation and sparsity terms.

    Where a validation split is evaluated, the test images are measured as well, under names that select nothing.
    """
    loop, images = training.loop, len(training.dataset.train)
    num_correct = ranks.sum(loop.num_correct.clone()).item()
    losses = LossParts(loop.losses.names, loop.losses.values / images).to_dict()
    metrics = epoch_metrics(loop.epoch, training.rates.base(loop.epoch, 0), losses, num_correct / images, result)
    if training.validation:
        loader = training.dataset.test_batches(rank=ranks.rank, world=ranks.world)
        tests = counted(loader, "testing", ranks.first)
        accuracy, loss = training.evaluator.accuracy(training.evaluated, tests, total=ranks.sum)
        metrics |= {"test/accuracy": accuracy, "test/loss": loss}
    if training.theta_decay:
        metrics["train/theta_coeff"] = training.theta_decay.coefficient(loop.epoch, config.epochs)
    if training.steering:
        metrics |= training.steering.metrics(loop.epoch)
    coefficients = training.coefficients(loop.epoch, config.epochs)
    metrics |= activation_metrics(training.evaluated)
    return metrics | term_metrics(list(training.objective.terms), coefficients, training.model)
