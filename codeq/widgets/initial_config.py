"""The configuration of a training that starts where a `WhatIf` was left."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codeq.analysis.requantize import Setting, bit_logit, dead_zone_logit
from codeq.common.errors import CodeqError
from codeq.common.paths import project_home, resolve, write_new_file, write_numbered_file
from codeq.config import ExperimentConfig
from codeq.config.yaml import dump_yaml
from codeq.quantizer import DeadZoneQuantizer
from codeq.runs import Run

# tanh has no slope left beyond 3, and |θ| none at 0: a logit there would hardly train.
LEAST, MOST = 0.01, 3.0


def start_config(
    run: Run, trained: Mapping[str, Setting], dead_zone: Mapping[str, float], bits: Mapping[str, int]
) -> str:
    """Return a configuration as YAML: the run's, with its quantizers starting at other dead-zones and bits.

    A configuration gives all layers one start, so it takes the mean over layers; what each layer was set to stands in
    comments. The training starts from new weights, not from the checkpoint.

    Parameters
    ----------
    run : Run
        The run that was requantized.
    trained : mapping of str to Setting
        Of its layers.
    dead_zone, bits : mapping
        For the layers set by hand.

    Raises
    ------
    CodeqError
        If the quantizer is none of codeq's own.
    """
    config = run.config
    assert config.quantizer is not None  # without quantizers there is nothing to requantize
    settings = {
        name: Setting(dead_zone.get(name, setting.dead_zone), bits.get(name, setting.bits))
        for name, setting in trained.items()
    }
    mean_bits = round(sum(setting.bits for setting in settings.values()) / len(settings))
    if config.quantizer.name == "uniform":
        starts: dict[str, Any] = {"bitwidth": mean_bits}
    elif config.quantizer.name == "deadzone":
        starts = _dead_zone_starts(config, settings, mean_bits)
    else:
        raise CodeqError(f"quantizer {config.quantizer.name!r} is none of codeq's own; its start is unknown")
    kwargs = dict(config.quantizer.kwargs) | starts
    changed = config.override({"quantizer.kwargs": kwargs, "name": f"{config.name}_what_if", "run_dir": None})
    head = [
        f"Starts where {run.folder.name} was requantized by hand: the mean over layers of",
        *(f"  {name}: {_words(setting)}" for name, setting in settings.items()),
    ]
    return "".join(f"# {line}\n" for line in head) + dump_yaml(changed.to_dict())


def _dead_zone_starts(config: ExperimentConfig, settings: Mapping[str, Setting], mean_bits: int) -> dict[str, Any]:
    zones = [setting.dead_zone for setting in settings.values() if setting.dead_zone is not None]
    before = DeadZoneQuantizer(**config.quantizer.kwargs) if config.quantizer else DeadZoneQuantizer()
    starts: dict[str, Any] = {"init_deadzone_logit": _trainable(dead_zone_logit(sum(zones) / len(zones)))}
    if not before.learnable_bit:
        return starts | {"fixed_bit_val": mean_bits}
    most = max(before.max_bits, mean_bits)
    return starts | {"max_bits": most, "init_bit_logit": _trainable(bit_logit(mean_bits, most))}


def _trainable(logit: float) -> float:
    return round(min(max(logit, LEAST), MOST), 4)


def _words(setting: Setting) -> str:
    zone = "" if setting.dead_zone is None else f", dead-zone {setting.dead_zone:.3f} of 2R"
    return f"{setting.bits} bits{zone}"


def save_new(text: str, path: str | os.PathLike[str] | None, name: str) -> Path:
    """Write `text` to the file `path`, or without one to a new file of that `name` in ``outputs/what_if``.

    Raises
    ------
    CodeqError
        If there is such a file already.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     print(save_new("model: mlp", f"{home}/mine.yaml", "any").name)
    mine.yaml
    """
    if not path:
        stem = re.sub(r"[^\w.+-]+", "-", name)
        return write_numbered_file(project_home() / "outputs" / "what_if", stem, ".yaml", text)
    write_new_file(resolve(path), text)
    return resolve(path)
