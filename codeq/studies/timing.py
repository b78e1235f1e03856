"""Estimate of the time that a member takes: one timed step and one evaluated batch, scaled up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from codeq.common.modes import training_modes
from codeq.config import ExperimentConfig, resolve_device
from codeq.runs.networks import build_network
from codeq.training.distillation import load_teacher
from codeq.training.memory import keep_freed_memory
from codeq.training.memory_format import to_channels_last
from codeq.training.model_and_data import load_data
from codeq.training.objective import Objective
from codeq.training.precision import choose_precision
from codeq.training.terms import build_terms

TIMED_IMAGES = 64  # largest batch of a timed step


def estimate(config: ExperimentConfig, threads: int) -> float:
    """Return the seconds that one epoch of `config` takes on this machine, from one timed step and one evaluated batch.

    Parameters
    ----------
    config : ExperimentConfig
        Valid, its data present.
    threads : int
        Of the training.
    """
    device = resolve_device(config.device)
    with training_modes(device):
        return _estimate(config, threads, device)


def _estimate(config: ExperimentConfig, threads: int, device: torch.device) -> float:
    dataset = load_data(config)
    model = build_network(config, dataset.num_classes).to(device)
    images, labels = next(dataset.train_batches(min(TIMED_IMAGES, config.batch_size), seed=config.seed, epoch=0))
    images, labels = images.to(device), labels.to(device)
    if config.channels_last:
        model, images = to_channels_last(model), images.to(memory_format=torch.channels_last)
    settings = config.distillation
    objective = Objective(
        model,
        build_terms(config.loss_terms, model, dataset.input_size),
        [],
        teacher=load_teacher(settings, dataset, device) if settings else None,
        bfloat16=choose_precision(config.amp, device) == "bf16",
    )
    coefficients = [term.factor for term in objective.terms]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        logits, _ = objective.backward(model, images, labels, coefficients)
        optimizer.step()
        objective.proximal_steps(coefficients, lr=0.0)
        logits.sum().item()  # waits for an accelerator

    def evaluation() -> None:
        with torch.no_grad():
            model(images).sum().item()

    with _threads(threads), keep_freed_memory(device.type == "cpu"):
        per_step = _fastest_of(step) * -(-len(dataset.train) // config.batch_size)
        per_image = _fastest_of(evaluation) / len(images)
    # What does not depend on the batch (sparsity terms, optimizer) is scaled, too: large batches cost less than this.
    return per_step * max(1.0, config.batch_size / len(images)) + per_image * len(dataset.test)


def _fastest_of(function: Callable[[], None], times: int = 3) -> float:
    durations = []
    for _ in range(times):  # the first one includes what happens only once
        started = time.perf_counter()
        function()
        durations.append(time.perf_counter() - started)
    return min(durations)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
