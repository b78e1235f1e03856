"""Parts of a study file: names, keys, ranges to draw from, and the executor."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Strict, ValidationInfo

from codeq.common.errors import CodeqError
from codeq.common.paths import LONGEST_NAME
from codeq.config.serialize import Part
from codeq.config.values import Count, Flag, Fraction, Natural, Text

# Set by the sweep itself, a different value for each member.
RESERVED = frozenset({"name", "run_dir", "save_dir", "resume"})
NAME = re.compile(r"[^\W_][\w.+-]*")
SAVING_TIME = 120  # seconds between Slurm's warning and the time limit
SHORTEST_TIME = 5  # minutes: Slurm may warn a minute early, and a member needs some to begin
SLURM_ONLY = ("partition", "account", "qos", "constraint", "time", "memory_gb", "gpus_per_run")


def _check_name(value: str) -> str:
    if not NAME.fullmatch(value) or len(value) > 80:
        raise CodeqError(
            "must be at most 80 letters, digits and characters of _ . + -, beginning with a letter or digit"
        )
    if len(value.encode()) > LONGEST_NAME:
        raise CodeqError(f"must be at most {LONGEST_NAME} bytes, of which a letter can be several")
    return value


Name = Annotated[Text, AfterValidator(_check_name)]


def _check_number(value: Any) -> Any:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise CodeqError("must be a finite number")
    return value


Number = Annotated[Any, BeforeValidator(_check_number)]


def _above_low(high: Any, info: ValidationInfo) -> Any:
    low = info.data.get("low")
    if low is not None and not high > low:
        raise CodeqError(f"must be above low={low!r}")
    return high


def _has_logarithm(log: bool, info: ValidationInfo) -> bool:
    if log and info.data.get("low", 1) <= 0:
        raise CodeqError(f"a logarithmic range must begin above 0, not at low={info.data['low']!r}")
    return log


@dataclass(frozen=True, kw_only=True)
class Range(Part):
    """A range of values to draw from.

    Parameters
    ----------
    low, high : int or float
        Bounds, both included. Two integers draw integers.
    log : bool
        Whether the logarithm is distributed evenly instead of the value.
    """

    low: Number
    high: Annotated[Number, AfterValidator(_above_low)]
    log: Annotated[Flag, AfterValidator(_has_logarithm)] = False

    @property
    def whole(self) -> bool:
        """Whether the values are integers."""
        return type(self.low) is type(self.high) is int


def check_keys(content: dict[str, Any]) -> dict[str, Any]:
    """Refuse keys that the sweep sets itself."""
    for key in content:
        if key.split(".")[0] in RESERVED:
            raise CodeqError(f"{key!r} is set by the sweep, for each member separately")
    return content


Keys = Annotated[dict[Text, Any], Strict(), AfterValidator(check_keys)]


def _check_ranges(ranges: dict[str, Range]) -> dict[str, Range]:
    if not ranges:
        raise CodeqError("must have at least one range")
    return ranges


Ranges = Annotated[dict[Text, Range], Strict(), AfterValidator(check_keys), AfterValidator(_check_ranges)]


@dataclass(frozen=True, kw_only=True)
class Sample(Part):
    """Random members: each draws a value of every range.

    Parameters
    ----------
    n : int
        How many are drawn.
    ranges : dict of str to Range
        By dotted key.
    seed : int
        Of the draws. A larger `n` keeps the earlier ones.
    """

    n: Count
    ranges: Ranges
    seed: Natural = 0


def _same_images(ranges: dict[str, Range]) -> dict[str, Range]:
    for key in ("seed", "validation"):
        if key in ranges:
            raise CodeqError(f"{key!r} chooses the validation images, which must be the same in all trials")
    return ranges


def _one_constraint(constraint: dict[str, float]) -> dict[str, float]:
    if len(constraint) > 1:
        raise CodeqError("must have one entry: the other figure is the objective")
    return constraint


@dataclass(frozen=True, kw_only=True)
class Search(Part):
    """Search for good values by Optuna, whose trials are the members of the study.

    Parameters
    ----------
    ranges : dict of str to Range
        By dotted key.
    trials : int
        How many members are tried. A larger number continues the search.
    constraint : dict
        Either ``relative_bops``, at most this: accuracy is maximized; or ``accuracy``, at least this: relative BOPs are
        minimized; fractions. Default: both are objectives.
    prune_after : int, optional
        Epochs after which a trial is stopped when it is worse than the median of the finished ones, see
        `codeq.studies.pruning.Pruning`. Default: none is stopped.
    seed : int
        Of the search.
    """

    ranges: Annotated[Ranges, AfterValidator(_same_images)]
    trials: Count
    constraint: Annotated[
        dict[Literal["accuracy", "relative_bops"], Fraction], Strict(), AfterValidator(_one_constraint)
    ] = field(default_factory=dict)  # fmt: skip
    prune_after: Count | None = None
    seed: Natural = 0


def _only_slurm(value: Any, info: ValidationInfo) -> Any:
    executor = info.data.get("name")
    if value is not None and executor not in ("slurm", None):
        raise CodeqError(f"only the executor slurm takes it, not {executor}")
    return value


SlurmText = Annotated[Text | None, AfterValidator(_only_slurm)]


def _minutes(value: Any) -> Any:
    """Return a time limit of Slurm in minutes: a number of them, or text as ``HH:MM:SS`` or ``D-HH:MM:SS``."""
    if value is None:
        return None
    minutes = value if type(value) is int and value >= 1 else _clock_minutes(value)
    if minutes < SHORTEST_TIME:
        raise CodeqError(
            f"must be at least {SHORTEST_TIME} minutes: a member saves its state {SAVING_TIME // 60} minutes before "
            "the limit, and its job goes back into the queue"
        )
    return minutes


def _clock_minutes(value: Any) -> int:
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", value) if isinstance(value, str) else None
    if not found:
        raise CodeqError("must be minutes, 'HH:MM:SS' or 'D-HH:MM:SS'")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return max(1, (days * 24 + hours) * 60 + minutes + (seconds > 0))


@dataclass(frozen=True, kw_only=True)
class Executor(Part):
    """The engine that runs the members.

    Parameters
    ----------
    name : {"local", "slurm", "submitit-local"}
        joblib on this machine, submitit on a Slurm cluster, or submitit's executor on this machine.
    workers : int, optional
        Members at a time. Default: one for each GPU, at least one; on Slurm as many as the cluster gives.
    via : {"direct", "papermill"}, optional
        ``codeq train``, or an executed notebook for each member. Default: papermill if the base is a notebook.
    cpus_per_run : int, optional
        Threads of a member. Default: the cores of this machine divided by `workers`, at most ``OMP_NUM_THREADS`` where
        that is set; on Slurm 1.
    partition, account, qos, constraint : str, optional
        Of Slurm.
    time : int or str, optional
        Slurm's time limit, in minutes or as ``HH:MM:SS``. Default: a day.
    memory_gb, gpus_per_run : int, optional
        What a member gets on Slurm.
    """

    name: Literal["local", "slurm", "submitit-local"] = "local"
    workers: Count | None = None
    via: Literal["direct", "papermill"] | None = None
    cpus_per_run: Count | None = None
    partition: SlurmText = None
    account: SlurmText = None
    qos: SlurmText = None
    constraint: SlurmText = None
    time: Annotated[Any, BeforeValidator(_minutes), AfterValidator(_only_slurm)] = None
    memory_gb: Annotated[Count | None, AfterValidator(_only_slurm)] = None
    gpus_per_run: Annotated[Natural | None, AfterValidator(_only_slurm)] = None
