"""Weights & Biases sink: a W&B failure or delay never affects the run."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from codeq.common.atomic import write_atomically
from codeq.common.console import say
from codeq.runs.sinks.base import picture
from codeq.runs.sinks.wandb_mode import WandbMode, wandb_api_key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# Seconds. W&B enforces the first two to within a second; the third applies if it does not. With the end of the process
# all stay below 30 s.
INIT_TIMEOUT = 14
FINISH_TIMEOUT = 10
CLOSE_TIMEOUT = 26

Job = Callable[[Any], None]  # its argument is the wandb.Run


class WandbSink:
    """Sink that sends a run to W&B from a separate thread, for which training waits only briefly at the end.

    The first failure is logged as one warning and ends the recording; no method raises.

    Parameters
    ----------
    folder : Path
        The run's folder; W&B's files go to ``wandb/`` in it.
    project, name : str
        Project and name of the run on W&B.
    config, environment : mapping
        Configuration of the run, and its environment, which appears as the key ``environment``.
    mode : {"offline", "online"}
        From `resolve_wandb_mode`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = wandb_id(Path(folder))
    ...     first == wandb_id(Path(folder))
    True
    """

    def __init__(
        self,
        folder: Path,
        project: str,
        name: str,
        config: Mapping[str, Any],
        environment: Mapping[str, Any],
        mode: WandbMode,
    ) -> None:
        self.folder, self.project, self.name, self.mode = folder, project, name, mode
        self.config = {**config, "environment": dict(environment)}
        self.resumed = (folder / "wandb_id.txt").exists()
        self.id = ""
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._exit_code = 0
        self._closed = False
        self._failed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="codeq-wandb", daemon=True)
        # Otherwise W&B sends error reports about itself, even offline, and a server that does not answer delays the end
        # of the process by 12 s.
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        try:
            import wandb  # noqa: F401 - in this thread: its modules import each other, and two threads at once get half of one

            self.id = wandb_id(folder)
        except Exception as error:
            self._fail(error)
        else:
            self._thread.start()

    def log_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Send the row of one epoch."""
        row = dict(metrics)
        self._put(lambda run: run.log(row))

    def log_figure(self, name: str, figure: Figure, epoch: int) -> None:
        """Send `figure` as the image ``viz/<name>``."""
        if self._failed:
            return
        image = picture(figure)  # now, because the caller may change the figure

        def log(run: Any) -> None:
            import wandb

            run.log({f"viz/{name}": wandb.Image(image), "epoch": epoch})

        self._put(log)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Send the figures of the finished run."""
        values = dict(summary)
        self._put(lambda run: run.summary.update(values))

    def close(self, exit_code: int) -> None:
        """Upload pending data, for at most `CLOSE_TIMEOUT` seconds."""
        if self._closed:
            return
        self._closed = True
        self._exit_code = exit_code
        self._jobs.put(None)
        if self._thread.ident is None:
            return
        self._thread.join(CLOSE_TIMEOUT)
        if self._thread.is_alive():
            self._fail(TimeoutError(f"no answer for {CLOSE_TIMEOUT} s"))
            _kill_service()

    def _put(self, job: Job) -> None:
        if not (self._failed or self._closed):
            self._jobs.put(job)

    def _work(self) -> None:
        run = None
        try:
            run = self._start()
            self._introduce(run)
            for job in iter(self._jobs.get, None):
                job(run)
            run.finish(self._exit_code)
        except Exception as error:
            self._fail(error)
            if run is not None:
                with suppress(Exception):
                    run.finish(1)

    def _start(self) -> Any:
        import wandb

        settings = wandb.Settings(
            api_key=wandb_api_key() if self.mode == "online" else None,
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            finish_timeout_raises=True,
            console="off",
            quiet=True,
            silent=True,
            # Source code, diffs and the address of a private repository are not sent; `environment` has the commit.
            disable_code=True,
            disable_git=True,
            save_code=False,
            label_disable=True,
        )
        return wandb.init(
            project=self.project,
            name=self.name,
            id=self.id,
            resume="allow",
            config=self.config,
            dir=str(self.folder),
            mode=self.mode,
            reinit="create_new",  # leaves a run that the user has open in this process alone
            settings=settings,
        )

    def _introduce(self, run: Any) -> None:
        # Epochs are the axis, and no steps are passed: W&B drops rows of steps that it has already seen, as after a
        # resume from an earlier epoch.
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        if self.mode == "online":
            say(f"W&B: online, {run.url}")
        else:
            say(f"W&B: offline; to upload: wandb sync {shlex.quote(str(Path(run.dir).parent))}")
            if self.resumed:
                say(
                    f"W&B: the offline parts of this resumed run share the id {self.id}: uploading one can overwrite "
                    "another. metrics.csv has all epochs."
                )

    def _fail(self, error: Exception) -> None:
        with self._lock:  # the thread and `close` may fail at the same time
            if self._failed:
                return
            self._failed = True
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        logger.warning("W&B failed: %s. The run continues without it; its files are complete", reason)


def wandb_id(folder: Path) -> str:
    """Return the W&B id of the run in `folder` from ``wandb_id.txt``, or write a new one there."""
    path = folder / "wandb_id.txt"
    known = path.read_text().strip() if path.exists() else ""
    if known:
        return known
    fresh = secrets.token_hex(4)
    write_atomically(path, f"{fresh}\n".encode())
    return fresh


def _kill_service() -> None:
    """Kill W&B's helper process, which does not answer: otherwise the end of this process would wait for it forever."""
    with suppress(Exception):  # W&B has no public function for it
        from wandb.sdk import wandb_setup

        connection: Any = wandb_setup.singleton()._connection
        connection._cleanup()  # removes the wait at exit
        connection._proc._process.kill()
        os.environ.pop("WANDB_SERVICE", None)  # child processes would look for it
