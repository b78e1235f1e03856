"""The training loop: `run_experiment(config) -> Run`."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from itertools import islice

import torch
from torch import nn

from codeq import plots
from codeq.common.console import epoch_line, progress_bar
from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig, resolve_device, serialize
from codeq.data import load_dataset
from codeq.evaluator import Evaluator
from codeq.models import build_model
from codeq.optimizers import build_optimizer, is_fused, lr_factor
from codeq.runs import Run
from codeq.runs.sinks import check_tensorboard, open_sinks, resolve_wandb_mode
from codeq.runs.tracking import Tracker
from codeq.training.distillation import load_teacher
from codeq.training.distributed import Ranks, joined, own_device
from codeq.training.execution import deterministic, training_forward
from codeq.training.interruption import Interruption, Preempted
from codeq.training.memory import keep_freed_memory
from codeq.training.objective import Diverged, FiniteGuard, Objective, build_terms, parameter_groups
from codeq.training.recalibration import recalibrate_batchnorm
from codeq.training.reporting import (
    epoch_metrics,
    run_summary,
    term_metrics,
    warn_of_collapsed_scales,
    warn_of_idle_terms,
)
from codeq.training.resuming import Memory, Progress, check_resumable, find_resumable, sole_writer

logger = logging.getLogger(__name__)

LOOK_EVERY = 50  # batches between two looks at an accelerator's flags; each makes it wait


def run_experiment(config: ExperimentConfig, resume: str | os.PathLike[str] | None = None) -> Run:
    """Train as `config` says, measure every epoch, and return the run.

    Everything that can be wrong with the configuration, the data or the model is found before the run's folder is made.
    Under `torchrun` several processes train together.

    Parameters
    ----------
    config : ExperimentConfig
        What to do.
    resume : path, optional
        An interrupted run's folder or one of its checkpoints, to go on from there with the same `config`.

    Returns
    -------
    Run
        The finished run, its files complete.

    Raises
    ------
    CodeqError
        For a mistake in the configuration or the data, and for a run that cannot go on.
    Preempted
        After SIGTERM or SIGUSR1, when the state is saved.
    Diverged
        If a loss is not finite; what was recorded until then stays.
    """
    device = own_device(resolve_device(config.device))
    if device.type == "cpu":
        keep_freed_memory()
    with joined(device) as ranks:
        return _Training(config, resume, device, ranks).run()


class _Training:
    """One training in this process: everything is made and checked in the constructor, `run` does the work."""

    def __init__(
        self, config: ExperimentConfig, resume: str | os.PathLike[str] | None, device: torch.device, ranks: Ranks
    ) -> None:
        self.config, self.device, self.ranks = config, device, ranks
        resumed, self.checkpoint = find_resumable(resume) if resume else (None, "last")
        if resumed:
            check_resumable(resumed, config)
        self.wandb_mode = resolve_wandb_mode(config.wandb_mode) if ranks.first else "disabled"
        if config.tensorboard:
            check_tensorboard()
        _model(config, config.num_classes or 1, pretrained=False)  # mistakes are found before data is decoded
        dataset = load_dataset(config.dataset, config.data_dir, config.img_size, workers=config.workers)
        if config.num_classes not in (None, dataset.num_classes):
            raise CodeqError(f"num_classes={config.num_classes}: dataset {config.dataset!r} has {dataset.num_classes}")
        self.dataset = dataset.to(device)
        self.batches = dataset.num_train_batches(config.batch_size)
        torch.manual_seed(config.seed)
        model = _model(config, dataset.num_classes, pretrained=config.pretrained and resumed is None).to(device)
        self.model = model.to(memory_format=torch.channels_last) if config.channels_last else model
        self.evaluator = Evaluator(model, dataset.input_size)
        self.evaluator.evaluate(model)  # a quantizer without a known bit-width is found now, not after the first epoch
        self.terms = build_terms(config, model, dataset.input_size)
        warn_of_idle_terms(self.terms, config.epochs)
        groups, theta = parameter_groups(config, model)
        self.optimizer = build_optimizer(config.optimizer.type, config.optimizer.kwargs, groups)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        teacher = load_teacher(config, dataset.num_classes, dataset.input_size, device)
        self.objective = Objective(model, self.terms, theta, config.label_smoothing, teacher)
        self.progress = Progress(
            losses=torch.zeros(len(self.objective.parts), device=device),
            right=torch.zeros((), device=device, dtype=torch.long),
        )
        self.every = 1 if device.type == "cpu" or not is_fused(self.optimizer) else LOOK_EVERY
        self.guard = FiniteGuard(self.objective, self.every)
        self.resumed = resumed

    def run(self) -> Run:
        """Train all epochs that are left."""
        config, ranks, first = self.config, self.ranks, self.ranks.first
        if self.resumed and self.resumed.status == "done":
            _say(first, f"{self.resumed.folder} is done; nothing is left to resume")
            return self.resumed
        made = self.resumed or (Run.create(config) if first else None)
        run = Run(ranks.from_first(made.folder if made else None))  # type: ignore[arg-type]
        replica = ranks.replicate(self.model, self.device)
        forward = training_forward(replica, self.device, use_compile=config.use_compile, amp=config.amp == "bf16")
        with ExitStack() as stack:
            stack.enter_context(sole_writer(run) if first else nullcontext())
            interruption = stack.enter_context(Interruption())
            tracker = Tracker(run.folder)
            memory = Memory(run, tracker, self.model, self.optimizer, self.dataset.num_classes, writes=first)
            # The status is written before the services are left, which may take longer than a scheduler waits.
            with _recorded(run) if first else nullcontext(), deterministic(config.deterministic):
                self._begin(run, memory)
                stack.enter_context(self._followed(run, tracker) if first else nullcontext())
                before = self.progress.seconds - time.perf_counter()
                for epoch in range(self.progress.epoch, config.epochs):
                    if epoch != self.progress.epoch or not self.progress.batch:
                        self.progress.start_epoch(epoch)
                    started = time.perf_counter()
                    self._train_epoch(forward, memory, interruption, before)
                    metrics = self._evaluate(epoch, tracker)
                    self.progress.start_epoch(epoch + 1)
                    self.progress.seconds = before + time.perf_counter()
                    memory.save(self.progress, step=(epoch + 1) * self.batches, accuracy=metrics["eval/accuracy"])
                    _say(first, epoch_line(metrics, config.epochs, time.perf_counter() - started))
                    if epoch + 1 < config.epochs and self._is_asked(interruption):
                        raise _preempted(interruption, run)
                if first:
                    result = self.evaluator.evaluate(self.model)
                    baseline = self.evaluator.comparison.baseline
                    tracker.log_summary(run_summary(run.history, config.name, result, baseline, self.progress.seconds))
        return run

    def _begin(self, run: Run, memory: Memory) -> None:
        """Go back to the checkpoint of a resumed run, or make the first one of a new run."""
        first = self.ranks.first
        size = f"{len(self.dataset.train)} training images"
        world = f", {self.ranks.world} processes" if self.ranks.world > 1 else ""
        _say(first, f"{self.config.name}: {self.config.model} on {self.dataset.name} ({size}), {self.device}{world}")
        _say(first, f"run folder: {run.folder}")
        if self.resumed and (run.folder / "checkpoints" / "manifest.json").exists():
            memory.restore(self.progress, self.checkpoint)
            place = f"epoch {self.progress.epoch + 1}, batch {self.progress.batch + 1}"
            _say(first, f"resuming at {place}")
        else:
            memory.save(self.progress, step=0, accuracy=None)

    @contextmanager
    def _followed(self, run: Run, tracker: Tracker) -> Iterator[None]:
        """Let the services that the configuration names follow the run."""
        config = self.config
        tracker.sinks = sinks = open_sinks(
            run.folder,
            project=config.wandb_project,
            name=config.name,
            config=config.to_dict(),
            environment=run.environment,
            wandb_mode=self.wandb_mode,
            tensorboard=config.tensorboard,
            first_epoch=self.progress.epoch,
        )
        finished = False
        try:
            yield
            finished = True
        finally:
            for sink in sinks:
                sink.close(0 if finished else 1)

    def _train_epoch(self, forward: nn.Module, memory: Memory, interruption: Interruption, before: float) -> None:
        """Train from the batch that is due to the end of the epoch."""
        config, progress, ranks = self.config, self.progress, self.ranks
        epoch = progress.epoch
        coefficients = [term.coefficient(epoch, config.epochs) for term in self.terms]
        lr = self._set_rates(epoch)
        self.model.train()
        title = f"epoch {epoch + 1}/{config.epochs}"
        with closing(
            self.dataset.train_batches(
                config.batch_size,
                seed=config.seed,
                epoch=epoch,
                start=progress.batch,
                rank=ranks.rank,
                world=ranks.world,
            )
        ) as todo:
            bar = progress_bar(todo, self.batches, progress.batch, title, ranks.first)
            for batch, (x, y) in enumerate(bar, progress.batch):
                if config.channels_last:
                    x = x.to(memory_format=torch.channels_last)
                size = min(config.batch_size, len(self.dataset.train) - batch * config.batch_size)
                self.optimizer.zero_grad()
                weight = ranks.world * len(y) / size
                logits, parts = self.objective.backward(forward, x, y, coefficients, weight)
                parts = ranks.mean(parts)
                self.guard.watch(self.optimizer, parts, epoch, batch)
                self.optimizer.step()
                self.objective.proximal_steps(coefficients, lr)
                progress.losses += parts * size
                progress.right += (logits.argmax(1) == y).sum()
                progress.batch = batch + 1
                if progress.batch < self.batches:
                    self._save_if_due(memory, interruption, before)
        self.guard.check(epoch)

    def _save_if_due(self, memory: Memory, interruption: Interruption, before: float) -> None:
        """Make a checkpoint in the middle of an epoch if it is time for one, or if this process is asked to stop."""
        progress, interval = self.progress, self.config.checkpoint_interval
        asked = progress.batch % self.every == 0 and self._is_asked(interruption)
        if asked or (interval and progress.batch % interval == 0):
            self.guard.check(progress.epoch)
            progress.seconds = before + time.perf_counter()
            self._gather(progress)
            memory.save(progress, step=progress.epoch * self.batches + progress.batch, accuracy=None)
        if asked:
            raise _preempted(interruption, memory.run)

    def _set_rates(self, epoch: int) -> float:
        """Set the learning rates of an epoch and return that of the weights."""
        course = serialize(self.config.lr_scheduler_kwargs)
        factor = lr_factor(epoch, self.config.epochs, self.config.lr_scheduler, **course)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        return self.rates[0] * factor

    def _evaluate(self, epoch: int, tracker: Tracker) -> dict[str, float]:
        """Measure the model after an epoch and record it."""
        config, ranks, progress = self.config, self.ranks, self.progress
        if config.recalibrate_batchnorm:
            with closing(self.dataset.train_batches(config.batch_size, seed=config.seed, epoch=epoch)) as again:
                recalibrate_batchnorm(self.model, (x for x, _ in islice(again, config.recalibrate_batchnorm)))
        loader = self.dataset.test_batches(rank=ranks.rank, world=ranks.world)
        result = self.evaluator.evaluate(self.model, loader, total=ranks.sum)
        if not math.isfinite(result.test_loss or 0.0):
            raise Diverged(f"the evaluation loss is {result.test_loss} after epoch {epoch + 1}")
        right = ranks.sum(progress.right.clone()).item() / len(self.dataset.train)
        losses = dict(zip(self.objective.parts, (progress.losses / len(self.dataset.train)).tolist(), strict=True))
        if self.objective.teacher is None:
            del losses["distillation"]
        coefficients = [term.coefficient(epoch, config.epochs) for term in self.terms]
        metrics = epoch_metrics(epoch, self._set_rates(epoch), losses, right, result)
        metrics |= term_metrics(self.terms, coefficients, self.model)
        if ranks.first:
            tracker.log_epoch(metrics, result.layers)
            if (epoch + 1) % config.viz_interval == 0 or epoch + 1 == config.epochs:
                tracker.log_figure("channel_liveness", plots.channel_liveness(result.liveness), epoch)
                tracker.log_figure("sparsity_bars", plots.layer_sparsity_bars(result.layers), epoch)
            warn_of_collapsed_scales(self.model, progress.collapsed)
        return metrics

    def _is_asked(self, interruption: Interruption) -> bool:
        """Return whether any of the processes was asked to stop; all of them get the same answer."""
        if self.ranks.world == 1:
            return bool(interruption.received)
        return self.ranks.sum(torch.tensor(float(bool(interruption.received)), device=self.device)).item() > 0

    def _gather(self, progress: Progress) -> None:
        """Move what all processes counted to the first one, which alone writes it and reads it back."""
        if self.ranks.world > 1:
            total = self.ranks.sum(progress.right.clone())
            progress.right = total if self.ranks.first else torch.zeros_like(total)


def _model(config: ExperimentConfig, num_classes: int, pretrained: bool) -> nn.Module:
    return build_model(
        config.model,
        num_classes,
        config.model_kwargs,
        img_size=config.img_size,
        quantizer=config.quantizer,
        pretrained=pretrained,
    )


def _say(first: bool, line: str) -> None:
    if first:
        print(line, flush=True)


def _preempted(interruption: Interruption, run: Run) -> Preempted:
    why = f"asked to stop by {interruption.received or 'another process'}"
    return Preempted(f"{why}; the state is saved, go on with: codeq train --resume {run.folder}")


@contextmanager
def _recorded(run: Run) -> Iterator[None]:
    """Keep the run's status truthful however the training ends."""
    run.set_status("running")
    try:
        yield
    except BaseException as error:
        kinds = {Diverged: "diverged", Preempted: "preempted"}
        status = next((status for kind, status in kinds.items() if isinstance(error, kind)), "failed")
        try:
            run.set_status(status, str(error) or type(error).__name__)  # type: ignore[arg-type]
        except OSError as disk:  # a full disk must not hide what happened
            logger.warning("status.json cannot be written: %s", disk)
        raise
    run.set_status("done")
