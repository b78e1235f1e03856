"""The training loop: `run_experiment(config) -> Run`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from codeq import plots
from codeq.attach import collapsed_layers
from codeq.checkpoints import save_checkpoint
from codeq.config import ExperimentConfig, resolve_device
from codeq.console import epoch_line, progress
from codeq.data import load_dataset
from codeq.errors import CodeqError
from codeq.evaluator import EvalResult, Evaluator
from codeq.memory import keep_freed_memory
from codeq.objective import Diverged, FiniteGuard, Objective, SparsityTerm, build_terms
from codeq.optimizers import build_lr_scheduler, build_optimizer
from codeq.recalibration import recalibrate_batchnorm
from codeq.runs import Run, build_model
from codeq.tracking import Tracker

logger = logging.getLogger(__name__)

GUARD_EVERY = 50  # batches between two looks at the finiteness flag on an accelerator


def run_experiment(config: ExperimentConfig) -> Run:
    """Train as `config` says, measure every epoch, and return the run.

    Everything that can be wrong with the configuration, the data or the model is found before the run's folder is made.

    Parameters
    ----------
    config : ExperimentConfig
        What to do.

    Returns
    -------
    Run
        The finished run, its files complete.

    Raises
    ------
    CodeqError
        For a mistake in the configuration or the data.
    Diverged
        If a loss is not finite; what was recorded until then stays.
    """
    device = resolve_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    build_model(config, config.num_classes or 1)  # its mistakes are found before a data set is downloaded or decoded
    dataset = load_dataset(config.dataset, config.data_dir, config.img_size)
    if config.num_classes not in (None, dataset.num_classes):
        raise CodeqError(f"num_classes={config.num_classes}: dataset {config.dataset!r} has {dataset.num_classes}")
    dataset = dataset.to(device)
    torch.manual_seed(config.seed)
    model = build_model(config, dataset.num_classes).to(device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    evaluator = Evaluator(model, dataset.input_size)
    evaluator.evaluate(model)  # a quantizer without a known bit-width is found now, not after the first epoch
    terms = build_terms(config, model, dataset.input_size)
    _warn_of_idle_terms(terms, config.epochs)
    optimizer, theta = build_optimizer(config, model)
    scheduler = build_lr_scheduler(config, optimizer)
    objective = Objective(model, terms, theta)

    run = Run.create(config)
    tracker = Tracker(run.folder)
    print(f"{config.name}: {config.model} on {dataset.name} ({len(dataset.train)} training images), {device}")
    print(f"run folder: {run.folder}", flush=True)
    forward = torch.compile(model) if config.use_compile else model
    batches = dataset.num_train_batches(config.batch_size)
    guard = FiniteGuard(objective, every=1 if device.type == "cpu" else GUARD_EVERY)
    collapsed: set[str] = set()
    started = time.perf_counter()

    with _recorded(run), _deterministic(config.deterministic):
        for epoch in range(config.epochs):
            epoch_started = time.perf_counter()
            coefficients = [term.coefficient(epoch, config.epochs) for term in terms]
            lr = float(scheduler.get_last_lr()[0])
            losses = torch.zeros(2 + len(terms), device=device)
            right = torch.zeros((), device=device, dtype=torch.long)
            model.train()
            epoch_batches = dataset.train_batches(config.batch_size, seed=config.seed, epoch=epoch)
            for batch, (x, y) in enumerate(progress(epoch_batches, batches, f"epoch {epoch + 1}/{config.epochs}")):
                if config.channels_last:
                    x = x.to(memory_format=torch.channels_last)
                optimizer.zero_grad()
                logits, parts = objective.backward(forward, x, y, coefficients)
                guard.watch(optimizer, parts, epoch, batch)
                optimizer.step()
                objective.proximal_steps(coefficients, lr)
                losses += parts * len(y)
                right += (logits.argmax(1) == y).sum()
            guard.check(epoch)
            scheduler.step()
            if config.recalibrate_batchnorm:
                again = dataset.train_batches(config.batch_size, seed=config.seed, epoch=epoch)
                recalibrate_batchnorm(model, (x for x, _ in islice(again, config.recalibrate_batchnorm)))

            result = evaluator.evaluate(model, dataset.test_batches())
            if not math.isfinite(result.test_loss or 0.0):
                raise Diverged(f"the evaluation loss is {result.test_loss} after epoch {epoch + 1}")
            losses /= len(dataset.train)
            metrics = _metrics(epoch, lr, losses.tolist(), right.item() / len(dataset.train), result)
            metrics |= _term_metrics(terms, coefficients, model)
            tracker.log_epoch(metrics, result.layers)
            state = {"model": model.state_dict(), "num_classes": dataset.num_classes}
            step, accuracy = (epoch + 1) * batches, metrics["eval/accuracy"]
            save_checkpoint(run.folder / "checkpoints", state, epoch=epoch, step=step, accuracy=accuracy)
            if (epoch + 1) % config.viz_interval == 0 or epoch + 1 == config.epochs:
                tracker.log_figure("channel_liveness", plots.channel_liveness(result.liveness))
                tracker.log_figure("sparsity_bars", plots.layer_sparsity_bars(result.layers))
            print(epoch_line(metrics, config.epochs, time.perf_counter() - epoch_started), flush=True)
            _warn_of_collapsed_scales(model, collapsed)
        tracker.log_summary(_summary(run, result, evaluator, time.perf_counter() - started))
    return run


@contextmanager
def _recorded(run: Run) -> Iterator[None]:
    """Keep the run's status truthful however the training ends."""
    try:
        yield
    except BaseException as error:
        run.set_status("diverged" if isinstance(error, Diverged) else "failed", str(error) or type(error).__name__)
        raise
    run.set_status("done")


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Let torch use deterministic algorithms alone, if wanted, for as long as the training lasts."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _metrics(epoch: int, lr: float, losses: list[float], accuracy: float, result: EvalResult) -> dict[str, Any]:
    """Return the row of one epoch, apart from the sparsity terms."""
    metrics = {
        "epoch": epoch,
        "lr": lr,
        "train/ce_loss": losses[0],
        "train/theta_loss": losses[1],
        "train/accuracy": accuracy,
        "eval/accuracy": result.test_accuracy,
        "eval/loss": result.test_loss,
        "sparsity/unstructured": result.unstructured_sparsity,
        "sparsity/structured": result.structured_sparsity,
        "quantizer/mean_bits": result.mean_bits,
        "compression/structured_bops_ratio": result.structured_bops_ratio,
        "compression/structured_mac_ratio": result.structured_mac_ratio,
        "compression/unstructured_bops_ratio": result.unstructured_bops_ratio,
        "compression/unstructured_mac_ratio": result.unstructured_mac_ratio,
    }
    for structured, unstructured in zip(result.structured_stats.layers, result.unstructured_stats.layers, strict=True):
        metrics[f"layers/{structured.name}/bitwidth"] = structured.bitwidth
        metrics[f"layers/{structured.name}/structured_pruning"] = structured.pruning_ratio
        metrics[f"layers/{structured.name}/unstructured_pruning"] = unstructured.pruning_ratio
    return metrics


@torch.no_grad()
def _term_metrics(terms: list[SparsityTerm], coefficients: list[float], model: nn.Module) -> dict[str, Any]:
    """Return the value of every sparsity term on the weights as the epoch left them, and their coefficients."""
    with parametrize.cached():
        values = [float(term.loss(model)) for term in terms]
    metrics: dict[str, Any] = {"train/sparsity_loss": sum(values), "train/sparsity_coeff": sum(coefficients)}
    for term, value, coefficient in zip(terms, values, coefficients, strict=True):
        metrics |= {f"train/{term.name}": value, f"train/{term.name}_coeff": coefficient}
    return metrics


def _summary(run: Run, result: EvalResult, evaluator: Evaluator, seconds: float) -> dict[str, Any]:
    accuracies = run.history["eval/accuracy"].tolist()
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    return {
        "name": run.config.name,
        "epochs": len(accuracies),
        "accuracy_last": result.test_accuracy,
        "accuracy_best": accuracies[best],
        "best_epoch": best,
        "unstructured_sparsity": result.unstructured_sparsity,
        "structured_sparsity": result.structured_sparsity,
        "mean_bits": result.mean_bits,
        "baseline_macs": evaluator.comparison.baseline.total_macs,
        "baseline_bops": evaluator.comparison.baseline.total_bops,
        "structured_macs": result.structured_stats.total_macs,
        "structured_bops": result.structured_stats.total_bops,
        "unstructured_macs": result.unstructured_stats.total_macs,
        "unstructured_bops": result.unstructured_stats.total_bops,
        "structured_bops_ratio": result.structured_bops_ratio,
        "structured_mac_ratio": result.structured_mac_ratio,
        "unstructured_bops_ratio": result.unstructured_bops_ratio,
        "unstructured_mac_ratio": result.unstructured_mac_ratio,
        "seconds": round(seconds, 1),
    }


def _warn_of_idle_terms(terms: list[SparsityTerm], epochs: int) -> None:
    for term in terms:
        if not any(term.coefficient(epoch, epochs) for epoch in range(epochs)):
            logger.warning("sparsity term %s never acts: its coefficient is 0 in all %d epochs", term.name, epochs)


def _warn_of_collapsed_scales(model: nn.Module, known: set[str]) -> None:
    fresh = set(collapsed_layers(model)) - known
    if fresh:
        logger.warning(
            "the scale R of %s is less than half the 0.99 quantile of its non-zero weights, because most latent "
            "weights are exactly zero; the quantizer option absmax_over='nonzero' avoids that",
            ", ".join(sorted(fresh)),
        )
        known |= fresh
