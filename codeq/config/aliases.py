"""Short forms: flat names for values inside nested parts, by which Python code sets and reads them."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from codeq.common.errors import CodeqError
from codeq.config.serialize import put
from codeq.schedules import constant

T = TypeVar("T")

# Each name with the keys of a file that it stands for.
ALIASES = {
    "lr": "optimizer.param_groups.base.lr",
    "weight_decay": "optimizer.param_groups.base.weight_decay",
    "lr_dz": "optimizer.param_groups.dz.lr",
    "weight_decay_dz": "optimizer.param_groups.dz.weight_decay",
    "lr_bit": "optimizer.param_groups.bit.lr",
    "weight_decay_bit": "optimizer.param_groups.bit.weight_decay",
    "quantizer_kwargs": "quantizer.kwargs",
    "exclude_layers": "quantizer.exclude_layers",
    "num_workers": "workers",
    "output_dir": "save_dir",
    "sparsity_fn": "loss_terms",
    "sparsity_schedule": "loss_terms.0.schedule",
}

PAPER_QUANTIZER = {
    "max_bits": 8,
    "init_bit_logit": 3.0,
    "init_deadzone_logit": 3.0,
    "learnable_bit": True,
    "learnable_deadzone": True,
}


class Alias(Generic[T]):
    """An attribute that reads the value its name in `ALIASES` stands for; `None` inside a part that is `None`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.steps = ALIASES[name].split(".")

    def __get__(self, config: Any, owner: type) -> T:
        value = config
        for step in self.steps:
            value = None if value is None else getattr(value, step)
        return value


def expand(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Turn the arguments of `ExperimentConfig` into the keys of a file.

    Parameters
    ----------
    settings : dict
        Plain values under names of either kind; a short form that is `None` counts as not given.

    Returns
    -------
    tuple
        Keys and values as in a file, and a line for each contradiction.

    Examples
    --------
    >>> content, problems = expand({"lr": 0.1, "num_workers": 4, "workers": 2, "quantizer": None})
    >>> content["optimizer"], problems
    ({'param_groups': {'base': {'lr': 0.1}}}, ['num_workers=4: workers is given too: give only one of them'])
    """
    short = {name: settings.pop(name) for name in ALIASES if name in settings}
    short = {name: value for name, value in short.items() if value is not None}
    content = {"theta_regularizer": "l2"} | settings
    if isinstance(content.get("quantizer"), str):
        content["quantizer"] = {"name": content["quantizer"]}
    elif "quantizer" not in content:
        content["quantizer"] = {"name": "deadzone"}
        short = {"quantizer_kwargs": dict(PAPER_QUANTIZER)} | short

    problems = []
    function, schedule = short.pop("sparsity_fn", None), short.pop("sparsity_schedule", None)
    if function is not None:
        term = {"name": function} if isinstance(function, str) else {"function": function}
        short["sparsity_fn"] = [term if schedule is None else {**term, "schedule": schedule}]
    elif schedule not in (None, constant()):
        problems.append(f"sparsity_schedule={schedule!r}: needs a sparsity_fn; loss_terms have schedules of their own")
    for name, value in short.items():
        try:
            put(content, ALIASES[name], value, replace=False)
        except CodeqError as error:
            problems.append(f"{name}={value!r}: {error}")
    return content, problems
