"""Flat aliases of nested settings, as arguments and attributes of `ExperimentConfig`."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from codeq.common.errors import CodeqError, quote
from codeq.config.serialize import put
from codeq.schedules import constant

# Each alias with the path of its setting in a file.
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


def alias(name: str) -> Any:
    """Return a property that reads the setting of an alias."""
    return property(attrgetter(ALIASES[name]), doc=f"The setting ``{ALIASES[name]}``.")


def expand(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Convert serialized arguments of `ExperimentConfig` to the content of a file and a line for each contradiction.

    An alias that is `None` counts as not given.

    Examples
    --------
    >>> content, problems = expand({"lr": 0.1, "num_workers": 4, "workers": 2, "quantizer": None})
    >>> content["optimizer"], problems
    ({'param_groups': {'base': {'lr': 0.1}}}, ['num_workers=4: workers is given too: give only one of them'])
    """
    given = {name: settings.pop(name) for name in ALIASES if name in settings}
    given = {name: value for name, value in given.items() if value is not None}
    content = {"theta_regularizer": "l2"} | settings
    if isinstance(content.get("quantizer"), str):
        content["quantizer"] = {"name": content["quantizer"]}
    elif "quantizer" not in content:
        content["quantizer"] = {"name": "deadzone"}
        given = {"quantizer_kwargs": dict(PAPER_QUANTIZER)} | given

    problems = []
    function, schedule = given.pop("sparsity_fn", None), given.pop("sparsity_schedule", None)
    if function is not None:
        term = {"name": function} if isinstance(function, str) else {"function": function}
        given["sparsity_fn"] = [term if schedule is None else {**term, "schedule": schedule}]
    elif schedule not in (None, constant()):
        problems.append(
            f"sparsity_schedule={quote(schedule)}: needs a sparsity_fn; each of loss_terms has a schedule of its own"
        )
    for name, value in given.items():
        try:
            put(content, ALIASES[name], value, replace=False)
        except CodeqError as error:
            problems.append(f"{name}={quote(value)}: {error}")
    return content, problems
