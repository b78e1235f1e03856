"""Engines that run the members of a study: joblib on this machine, submitit there or on a Slurm cluster.

Each member is a separate process below the one that watches it, so that SIGKILL or lack of memory ends that member
alone. The watchers only wait: on this machine threads are enough for them.
"""

from __future__ import annotations

import dataclasses
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codeq.common.errors import CodeqError
from codeq.runs.checkpoints import last_step
from codeq.studies.attempts import file_system_time
from codeq.studies.files import HIDDEN, stop_file
from codeq.studies.parts import SAVING_TIME
from codeq.studies.states import read_state
from codeq.studies.watching import Task, Watcher, may_begin

if TYPE_CHECKING:
    import submitit

    from codeq.studies.study import Executor

DAY = 24 * 60  # minutes
MOST_IDLE = 3  # times in a row that a job goes back without a new checkpoint of its member
MANY = 1000  # times that a job may reach its time limit and go back into the queue
LOOK_EVERY = 2.0  # seconds between two looks at a cluster's jobs
MOST_READ = 5  # errors of a cluster's jobs: submitit takes up to 15 s for each, and those of one array are alike


@dataclass
class Engine:
    """Everything about one start of a study that its engine needs.

    Parameters
    ----------
    executor : Executor
        Settings from the study file.
    tasks : list of Task
        Members to run.
    workers : int
        Members at a time.
    slots : list of dict
        Environment variables of each of the `workers` places, such as the GPU to use.
    token : str
        Of this start, see `codeq.studies.files.stop_file`.
    """

    executor: Executor
    tasks: list[Task]
    workers: int
    slots: Sequence[dict[str, str]]
    token: str
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free: queue.Queue[dict[str, str]] = queue.Queue()
        for slot in self.slots:
            self._free.put(slot)

    def stop(self) -> None:
        """Ask all members of this start, wherever they run, to save their state and stop."""
        if self.tasks:
            self._stop_file.parent.mkdir(parents=True, exist_ok=True)
            self._stop_file.touch()

    @property
    def _stop_file(self) -> Path:
        return stop_file(self.tasks[0].study, self.token)

    def run(self) -> None:
        """Run all members and return when all have ended; errors outside of members are in `problems`."""
        if not self.tasks:
            return
        try:
            if self.executor.name == "slurm":
                self._run_on_cluster()
            else:
                self._run_here(self._watch if self.executor.name == "local" else self._submit_here)
        except Exception as error:  # a separate thread: nothing else would report it
            self.problems.append(f"{type(error).__name__}: {error}")
        finally:
            self._stop_file.unlink(missing_ok=True)

    def _run_here(self, function: Callable[[Task], None]) -> None:
        from joblib import Parallel, delayed  # a second to import

        calls = (delayed(self._in_slot)(function, task) for task in self.tasks)
        Parallel(n_jobs=self.workers, backend="threading", batch_size=1, pre_dispatch=self.workers)(calls)

    def _in_slot(self, function: Callable[[Task], None], task: Task) -> None:
        slot = self._free.get()
        try:
            if not self._stop_file.exists():
                function(dataclasses.replace(task, environment={**task.environment, **slot}))
        except Exception as error:  # a full disk, for example, must not stop the other members
            self.problems.append(f"{task.member}: {type(error).__name__}: {error}")
        finally:
            self._free.put(slot)

    def _watch(self, task: Task) -> None:
        Watcher(task, self._stop_file.exists).run()

    def _submit_here(self, task: Task) -> None:
        job = self._submitit("local").submit(Job(self.token), task)
        while not job.done():
            time.sleep(0.2)
        self._wait_until_saved(task)
        self._note_failure(job, task)

    def _wait_until_saved(self, task: Task) -> None:
        """Wait for a member that outlives its job: Ctrl-C in a terminal ends submitit's processes at once."""
        deadline = time.monotonic() + SAVING_TIME
        while self._stop_file.exists() and time.monotonic() < deadline:
            if read_state(task.study, task.member, file_system_time(task.study / HIDDEN)).state != "running":
                return
            time.sleep(0.2)

    def _run_on_cluster(self) -> None:
        executor = self._submitit("slurm")
        with executor.batch():
            jobs = [executor.submit(Job(self.token), task) for task in self.tasks]
        waiting, cancelled = list(zip(self.tasks, jobs, strict=True)), False
        while waiting:
            time.sleep(LOOK_EVERY)
            now, stop, still = file_system_time(self.tasks[0].study / HIDDEN), self._stop_file.exists(), []
            for task, job in waiting:
                ended = job.done()  # before the state is read, which is then what the job has left
                found = read_state(task.study, task.member, now)
                running, queued = found.state == "running", may_begin(task, found) and not stop
                if stop and not cancelled and not running and not ended:
                    job.cancel()
                if (running or queued) and not ended:
                    still.append((task, job))
                elif (running or queued) and not stop and len(self.problems) < MOST_READ:
                    self._note_failure(job, task)
            waiting, cancelled = still, stop

    def _submitit(self, cluster: str) -> submitit.AutoExecutor:
        import submitit

        wish, threads = self.executor, int(self.tasks[0].environment["OMP_NUM_THREADS"])
        folder = self.tasks[0].study / HIDDEN / "jobs" / "%j"
        limits = {f"{cluster}_max_num_timeout": MANY}
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **limits)
        except RuntimeError as error:
            raise CodeqError(f"executor slurm: {error}") from error
        settings: dict[str, Any] = {"timeout_min": wish.time or DAY, "cpus_per_task": threads}
        if cluster == "local":
            settings["timeout_min"] = 365 * DAY
        else:
            settings |= {"name": f"codeq-{self.tasks[0].study.name}", "gpus_per_node": wish.gpus_per_run}
            settings |= {
                "mem_gb": wish.memory_gb,
                "slurm_signal_delay_s": SAVING_TIME,
                "slurm_additional_parameters": {"requeue": True},
            }
            settings |= {f"slurm_{key}": getattr(wish, key) for key in ("partition", "account", "qos", "constraint")}
            settings |= {"slurm_array_parallelism": self.workers}
        executor.update_parameters(**{key: value for key, value in settings.items() if value is not None})
        return executor

    def _note_failure(self, job: Any, task: Task) -> None:
        """Keep the message of a job that failed before or beside its member."""
        if (error := job.exception()) is not None:
            text, *_ = str(error).split("\nYou can check full logs with ")  # where submitit names its files
            lines = [line for line in text.splitlines() if line.strip("- ")]  # without the rules that it draws
            self.problems.append(f"{task.member}: {lines[-1].strip()}")


class Job:
    """Function of one submitit job.

    Parameters
    ----------
    token : str
        Of the start of the study that it belongs to.
    idle : int
        Number of jobs in a row, before this one, that went back into the queue without a new checkpoint.
    """

    def __init__(self, token: str, idle: int = 0) -> None:
        self.token = token
        self.idle = idle

    def __call__(self, task: Task) -> None:
        """Watch the member of `task`."""
        self._step = last_step(task.run)
        self._watcher = Watcher(task, stop_file(task.study, self.token).exists)
        self._watcher.run()

    def checkpoint(self, task: Task) -> Any:
        """Stop the member and return what to put back into the queue; submitit calls it before a time limit.

        Raises
        ------
        CodeqError
            If several jobs in a row have saved nothing new: the next ones would not, either.
        """
        from submitit.helpers import DelayedSubmission

        self._watcher.interrupt()
        step = last_step(task.run)
        unknown = step is None and task.notebook  # it may save its state in another way
        idle = self.idle + 1 if step == self._step and not unknown else 0
        if idle >= MOST_IDLE:
            raise CodeqError(f"{idle} jobs in a row were stopped before a new checkpoint: executor.time is too short")
        return DelayedSubmission(Job(self.token, idle), task)


def thread_limits(threads: int) -> dict[str, str]:
    """Return the environment that holds a process to `threads` threads.

    Examples
    --------
    >>> thread_limits(2)["OMP_NUM_THREADS"]
    '2'
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))
