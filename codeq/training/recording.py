"""Recording of a training: run folder, status, console, tables, figures, services and checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from codeq import plots
from codeq.common.console import epoch_line, say
from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig
from codeq.evaluator import EvalResult
from codeq.plots.glyphs import unknown_characters, warn_of_unknown
from codeq.plots.style import default_style
from codeq.quantizer.attach import split_param_groups
from codeq.runs import Run
from codeq.runs.sinks import open_sinks
from codeq.runs.sinks.wandb_mode import WandbMode
from codeq.runs.status import Status
from codeq.runs.tracking import Tracker
from codeq.training.building import Training
from codeq.training.degeneration import Degenerate, chance_accuracy, find_signs, is_constant
from codeq.training.distributed import Ranks
from codeq.training.guard import Diverged
from codeq.training.interruption import Interruption, Preempted
from codeq.training.reporting import run_summary, warn_of_collapsed_scales, warn_of_notes
from codeq.training.resuming import Resumed, TrainingState, resuming_command, sole_writer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


# Exceptions that end a training with a status of its own.
ENDINGS: dict[type[BaseException], Status] = {
    Diverged: "diverged",
    Degenerate: "degenerate",
    Preempted: "preempted",
    KeyboardInterrupt: "preempted",  # a second Ctrl-C: what a checkpoint holds can be resumed
}


class Recorder:
    """Writes the results of a training as they come; on other ranks than the first, nothing but their random states.

    Parameters
    ----------
    config : ExperimentConfig
        The experiment.
    training : Training
        What takes part.
    state : TrainingState
        Saves checkpoints.
    interruption : Interruption
        Signals received.
    command : str
        Resumes the run, see `resuming_command`.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        training: Training,
        state: TrainingState,
        interruption: Interruption,
        command: str,
    ) -> None:
        self.config = config
        self.training = training
        self.state = state
        self.interruption = interruption
        self._command = command
        self._seconds = 0.0  # at the end of the last epoch that was recorded
        self._reported: set[str] = set()
        self._unknown: set[str] = set()  # characters that the font of the figures does not have

    @property
    def run(self) -> Run:
        """The run that is recorded."""
        return self.state.run

    def record_steering(self, row: dict[str, float]) -> None:
        """Append an update of λ to its table."""
        if self.state.ranks.first:
            self.state.tracker.log_steering(row)

    def record_epoch(self, epoch: int, metrics: dict[str, Any], result: EvalResult) -> None:
        """Append an epoch to the tables, draw the figures that are due, and save a checkpoint."""
        epochs, loop = self.config.epochs, self.training.loop
        if self.state.ranks.first:
            self.state.tracker.log_epoch(metrics, result.layers)
            if (epoch + 1) % self.config.viz_interval == 0 or epoch + 1 == epochs:
                self._draw("channel_liveness", lambda: plots.channel_liveness(result.liveness), result, epoch)
                self._draw("sparsity_bars", lambda: plots.layer_sparsity_bars(result.layers), result, epoch)
                if target := self.config.target:
                    self._draw(
                        "target_course",
                        lambda: plots.target_course(self.run.steering, target.figure, target.value),
                        result,
                        epoch,
                    )
            warn_of_collapsed_scales(self.training.model, loop.collapsed)
        loop.start_epoch(epoch + 1)
        self.state.save(step=(epoch + 1) * self.training.batches, accuracy=metrics["eval/accuracy"])
        before, self._seconds = self._seconds, loop.stopwatch.seconds
        self._say(epoch_line(metrics, epochs, self._seconds - before))
        self._report_degeneration(result)
        if epoch + 1 < epochs and self._must_stop():
            raise self._preemption()

    def save_inside_epoch(self) -> None:
        """Save a checkpoint after a batch if one is due or a signal came, and stop for the signal.

        After the last batch only a signal makes one due: that of the epoch follows, but its evaluation may take longer
        than a scheduler waits.
        """
        training, interval = self.training, self.config.checkpoint_interval
        loop = training.loop
        last = loop.batch == training.batches
        stop = (last or loop.batch % training.guard.sync_interval == 0) and self._must_stop()
        if stop or (interval and not last and loop.batch % interval == 0):
            training.guard.check_weights(training.model, loop.epoch)
            step = loop.epoch * training.batches + loop.batch
            self.state.save(step=step, accuracy=None, before_evaluation=last)
        if stop:
            raise self._preemption()

    def _report_degeneration(self, result: EvalResult) -> None:
        """Warn of signs of degeneration that are new, and stop the training for a fatal one if that is wanted."""
        training, ranks = self.training, self.state.ranks
        reason = ""
        if ranks.first:
            labels = (training.validation or training.dataset).test.labels
            signs = find_signs(
                self.run.history,
                result.layers,
                chance_accuracy(labels),
                self.config.degenerate_patience,
                learned_bits=bool(split_param_groups(training.model)[2]),
                constant=lambda: is_constant(training.evaluated, training.dataset.input_size),
            )
            for sign in signs:
                if sign.name not in self._reported:
                    logger.warning("%s", sign.text)
            self._reported = {sign.name for sign in signs}
            reason = next((sign.text for sign in signs if sign.fatal), "")
        if self.config.stop_degenerate and (reason := ranks.from_first(reason)):
            raise Degenerate(reason)

    def record_summary(self) -> None:
        """Write the summary of the finished training."""
        if self.state.ranks.first:
            result = self.training.evaluator.evaluate(self.training.evaluated)
            baseline, seconds = self.training.evaluator.comparison.baseline, self.training.loop.stopwatch.seconds
            summary = run_summary(self.run.history, self.config.name, result, baseline, seconds)
            steering = self.training.steering
            self.state.tracker.log_summary(summary | (steering.summary() if steering else {}))

    def announce(self) -> None:
        """Log what is trained on which data and device."""
        config, ranks = self.config, self.state.ranks
        size = f"{len(self.training.dataset.train)} training images"
        bf16 = ", bf16" if self.training.precision == "bf16" else ""
        world = f", {ranks.world} processes" if ranks.world > 1 else ""
        self._say(
            f"{config.name}: {config.model} on {self.training.dataset.name} ({size}), {ranks.device}{world}{bf16}"
        )
        self._say(f"run folder: {self.run.folder}")
        warn_of_notes(self.training.evaluator.comparison.baseline.notes)

    def resume(self, checkpoint: str) -> None:
        """Restore a checkpoint of the run."""
        loop = self.training.loop
        self.state.restore(checkpoint)
        place = f"batch {loop.batch + 1}" if loop.batch < self.training.batches else "evaluation"
        self._say(f"resuming at epoch {loop.epoch + 1}, {place}")
        self._seconds = loop.stopwatch.seconds

    def compare_environments(self) -> None:
        """Record and say what differs from the versions, hardware and device that the run was trained with before."""
        training, ranks = self.training, self.state.ranks
        if not ranks.first:
            return
        if changes := self.run.record_resumption(training.precision, ranks.device, training.loop.epoch):
            say(f"resumed in another environment: {', '.join(changes)}")

    def begin(self) -> None:
        """Save the first checkpoint of a run."""
        self.state.save(step=0, accuracy=None)
        self._seconds = self.training.loop.stopwatch.seconds

    def _draw(self, name: str, draw: Callable[[], Figure], result: EvalResult, epoch: int) -> None:
        try:
            figure = plots.footnote(draw(), result.notes)
            self.state.tracker.log_figure(name, figure, epoch)
            with default_style():
                unknown = unknown_characters(figure)
            warn_of_unknown(unknown - self._unknown)
            self._unknown |= unknown
        except Exception as error:  # whatever matplotlib, its settings or a full disk cause: a figure is no result
            logger.warning("figure %s cannot be drawn: %s: %s", name, type(error).__name__, str(error)[:200])

    def _say(self, line: str) -> None:
        if self.state.ranks.first:
            say(line)

    def _must_stop(self) -> bool:
        return self.state.ranks.any(bool(self.interruption.received))

    def _preemption(self) -> Preempted:
        return self.interruption.preemption(self._command)


@contextmanager
def recording(
    config: ExperimentConfig, training: Training, resumed: Resumed | None, ranks: Ranks, wandb_mode: WandbMode
) -> Iterator[Recorder]:
    """Open the run's folder for a training, and keep its status up to date however the training ends."""
    run = ranks.on_first(lambda: resumed.run if resumed else Run.create(config, training.precision, ranks.device))
    tracker = Tracker(run.folder)
    state = TrainingState(run, tracker, training, ranks)
    command = resuming_command(run, config)
    with ExitStack() as stack:
        ranks.on_first(lambda: stack.enter_context(sole_writer(run)))
        recorder = Recorder(config, training, state, stack.enter_context(Interruption(ranks.world == 1)), command)
        recorder.announce()
        checkpoint = resumed.checkpoint if resumed and resumed.has_checkpoint else None
        if checkpoint:  # a run that is refused here keeps its status, as it keeps everything else
            recorder.resume(checkpoint)
        if resumed:
            recorder.compare_environments()
        # The status is written before the services are closed, which may take longer than a scheduler waits.
        with _truthful_status(run, command) if ranks.first else nullcontext():
            if not checkpoint:
                recorder.begin()
            if ranks.first:
                stack.enter_context(_followed(config, run, tracker, wandb_mode, training.loop.epoch))
            with ranks.together(command):
                yield recorder


@contextmanager
def _followed(
    config: ExperimentConfig, run: Run, tracker: Tracker, wandb_mode: WandbMode, first_epoch: int
) -> Iterator[None]:
    """Send everything to the configured services as well."""
    tracker.sinks = sinks = open_sinks(
        run.folder,
        project=config.wandb_project,
        name=config.name,
        config=config.to_dict(),
        environment=run.environment,
        wandb_mode=wandb_mode,
        tensorboard=config.tensorboard,
        first_epoch=first_epoch,
    )
    status = 1
    try:
        yield
        status = 0
    finally:
        for sink in sinks:
            sink.close(status)


@contextmanager
def _truthful_status(run: Run, command: str) -> Iterator[None]:
    """Write the run's status: running, then done, diverged, degenerate, preempted or failed."""
    run.set_status("running")
    try:
        yield
    except BaseException as error:
        status: Status = next((name for kind, name in ENDINGS.items() if isinstance(error, kind)), "failed")
        try:
            run.set_status(status, str(error) or type(error).__name__)
        except CodeqError as disk:  # a full one must not hide the error
            logger.warning("%s", disk)
        if isinstance(error, KeyboardInterrupt):
            say(f"stopped at once; the last checkpoint resumes with: {command}")
        raise
    run.set_status("done")
