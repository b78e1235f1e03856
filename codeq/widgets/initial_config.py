"""Configuration of a training that starts with the settings of a `WhatIf` widget."""

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

# The gradient of tanh|θ| vanishes at large |θ| and is undefined at 0: logits there would hardly train.
MIN_LOGIT, MAX_LOGIT = 0.01, 3.0


def initial_config(
    run: Run, trained: Mapping[str, Setting], dead_zone: Mapping[str, float], bits: Mapping[str, int]
) -> str:
    """Return the configuration of a run as YAML, with other initial dead-zones and bit-widths of its quantizers.

    A configuration has one initial value for all layers: the mean over layers. The setting of each layer is written as
    a comment. The training starts from new weights, not from the checkpoint.

    Parameters
    ----------
    run : Run
        The requantized run.
    trained : mapping of str to Setting
        Trained settings of its layers.
    dead_zone, bits : mapping
        Changed settings, by layer.

    Raises
    ------
    CodeqError
        If the quantizer is neither the dead-zone nor the uniform one.
    """
    config = run.config
    assert config.quantizer is not None  # a float network cannot be requantized
    settings = {
        name: Setting(dead_zone.get(name, setting.dead_zone), bits.get(name, setting.bits))
        for name, setting in trained.items()
    }
    mean_bits = round(sum(setting.bits for setting in settings.values()) / len(settings))
    if config.quantizer.name == "uniform":
        initial: dict[str, Any] = {"bitwidth": mean_bits}
    elif config.quantizer.name == "deadzone":
        initial = _initial_logits(config, settings, mean_bits)
    else:
        raise CodeqError(f"quantizer {config.quantizer.name!r}: initial values are known for deadzone and uniform only")
    kwargs = dict(config.quantizer.kwargs) | initial
    changed = config.override({"quantizer.kwargs": kwargs, "name": f"{config.name}_what_if", "run_dir": None})
    head = [
        f"Initial dead-zone and bit-width: the mean over layers of {run.folder.name} as requantized:",
        *(f"  {name}: {_describe(setting)}" for name, setting in settings.items()),
    ]
    return "".join(f"# {line}\n" for line in head) + dump_yaml(changed.to_dict())


def _initial_logits(config: ExperimentConfig, settings: Mapping[str, Setting], mean_bits: int) -> dict[str, Any]:
    zones = [setting.dead_zone for setting in settings.values() if setting.dead_zone is not None]
    before = DeadZoneQuantizer(**config.quantizer.kwargs) if config.quantizer else DeadZoneQuantizer()
    initial: dict[str, Any] = {"init_deadzone_logit": _trainable(dead_zone_logit(sum(zones) / len(zones)))}
    if not before.learnable_bit:
        return initial | {"fixed_bit_val": mean_bits}
    most = max(before.max_bits, mean_bits)
    return initial | {"max_bits": most, "init_bit_logit": _trainable(bit_logit(mean_bits, most))}


def _trainable(logit: float) -> float:
    return round(min(max(logit, MIN_LOGIT), MAX_LOGIT), 4)


def _describe(setting: Setting) -> str:
    zone = "" if setting.dead_zone is None else f", dead-zone {setting.dead_zone:.3f} of 2R"
    return f"{setting.bits} bits{zone}"


def save_new(text: str, path: str | os.PathLike[str] | None, name: str) -> Path:
    """Write `text` to the new file `path`; default a new file called `name` in ``outputs/what_if``.

    Raises
    ------
    CodeqError
        If the file exists or cannot be written.

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
