"""Configuration and weights of a training that continues from the settings of a `WhatIf` widget."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codeq.analysis.network import input_size_of
from codeq.analysis.requantize import Requantizer, Setting, bit_logit
from codeq.common.atomic import write_atomically
from codeq.common.errors import CodeqError
from codeq.common.paths import project_home, resolve, short_path, write_new_file, write_numbered_file, writing
from codeq.compaction.structure import describe
from codeq.config import ExperimentConfig
from codeq.config.target import TargetConfig
from codeq.config.yaml import dump_yaml
from codeq.evaluator import Evaluator
from codeq.metrics.budget import cost_figure
from codeq.quantizer import DeadZoneQuantizer
from codeq.quantizer.attach import named_quantizers
from codeq.runs import Run

# The gradient of tanh|θ| vanishes at large |θ| and is undefined at 0: logits there would hardly train.
MIN_LOGIT, MAX_LOGIT = 0.01, 3.0
SHOWN = 200  # characters of the settings in a message


def save_start(
    run: Run,
    requantizer: Requantizer,
    dead_zone: Mapping[str, float],
    bits: Mapping[str, int],
    path: str | os.PathLike[str] | None,
) -> Path:
    """Write a configuration that continues from the weights of a run with other dead-zones and bit-widths per layer.

    The weights, with the settings of each layer, are written beside the configuration, which names them in `init_from`.
    A set dead-zone ``d / (2 R)`` is limited to 0.005 … 0.99, outside which it would hardly train. A cost target of the
    run that these settings keep already is left out.

    Parameters
    ----------
    run : Run
        The requantized run.
    requantizer : Requantizer
        With its trained weights.
    dead_zone, bits : mapping
        Changed settings, by layer.
    path : path or None
        New YAML file, relative to the project; `None` for a new file in ``outputs/what_if``.

    Raises
    ------
    CodeqError
        If the file exists or cannot be written, if the quantizer is neither the dead-zone nor the uniform one, or if
        layers differ in a bit-width that is not learned, of which a configuration has only one.
    """
    config = run.config
    settings = {
        name: Setting(dead_zone.get(name, setting.dead_zone), bits.get(name, setting.bits))
        for name, setting in requantizer.trained.items()
    }
    kwargs = _quantizer_kwargs(config, settings)
    model = _initial_network(requantizer, settings, dead_zone, bits, kwargs)
    content = io.BytesIO()
    torch.save(_content(run, config.override({"quantizer.kwargs": kwargs}), model), content)
    stem = re.sub(r"[^\w.+-]+", "-", config.name)
    folder = resolve(path).parent if path else project_home() / "outputs" / "what_if"
    # Named by its content, so that another configuration never refers to it by mistake.
    weights = folder / f"weights-{hashlib.sha256(content.getvalue()).hexdigest()[:12]}.pt"
    changes = {"quantizer.kwargs": kwargs, "init_from": short_path(weights), "init_from_strict": True}
    changes |= {"pretrained": False, "name": f"{config.name}_what_if", "run_dir": None}
    head = [f"Continues from the weights of {run.folder.name} as requantized:"]
    head += [f"  {name}: {_describe(setting)}" for name, setting in settings.items()]
    if target := _kept_target(run, requantizer.apply(dead_zone, bits)):
        changes["target"] = None
        head.append(f"Without target.{target.figure}={target.value}, which these settings keep already")
    changed = config.override(changes)
    text = "".join(f"# {line}\n" for line in head) + dump_yaml(changed.to_dict())
    if path:
        write_new_file(resolve(path), text)
    file = resolve(path) if path else write_numbered_file(folder, stem, ".yaml", text)
    try:
        with writing(weights):
            write_atomically(weights, content.getvalue())
    except CodeqError:
        file.unlink()
        raise
    return file


def _kept_target(run: Run, network: nn.Module) -> TargetConfig | None:
    """Return the target of a run if `network` keeps it already: a training that starts there is refused."""
    target = run.config.target
    if target is None:
        return None
    comparison = Evaluator(network, input_size_of(run, network)).comparison
    return target if cost_figure(target.figure, network, comparison) <= target.value else None


def _quantizer_kwargs(config: ExperimentConfig, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Return the arguments of a quantizer that can have these bit-widths."""
    assert config.quantizer is not None  # a float network cannot be requantized
    name, kwargs = config.quantizer.name, dict(config.quantizer.kwargs)
    if name not in ("uniform", "deadzone"):
        raise CodeqError(f"quantizer {name!r}: initial values are known for deadzone and uniform only")
    widths = [setting.bits for setting in settings.values()]
    if name == "deadzone" and (before := DeadZoneQuantizer(**kwargs)).learnable_bit:
        return kwargs | {"max_bits": max(before.max_bits, *widths)}
    if len(set(widths)) > 1:
        shown = ", ".join(f"{layer} {setting.bits}" for layer, setting in settings.items())
        raise CodeqError(
            f"quantizer {name!r} does not learn its bit-width, so all layers have the same, but these differ: "
            f"{shown[:SHOWN]}. Set all layers to one bit-width, or train with learnable_bit: true"
        )
    return kwargs | {"bitwidth" if name == "uniform" else "fixed_bit_val": widths[0]}


@torch.no_grad()
def _content(run: Run, config: ExperimentConfig, model: nn.Module) -> dict[str, Any]:
    """Return the content of the file of weights: a state dict, of a compacted network with its structure."""
    state, structure = model.state_dict(), describe(model)
    if structure is None:
        return state
    size = input_size_of(run, model)
    classes = model(torch.zeros(1, *size)).shape[1]
    described = {"structure": structure, "num_classes": classes, "input_size": list(size)}
    return {"model": state, **described, "config": config.to_dict()}


@torch.no_grad()
def _initial_network(
    requantizer: Requantizer,
    settings: Mapping[str, Setting],
    dead_zone: Mapping[str, float],
    bits: Mapping[str, int],
    kwargs: Mapping[str, Any],
) -> nn.Module:
    """Return the network with these settings; settings that were not changed keep their trained logits."""
    model = copy.deepcopy(requantizer.apply(dead_zone, bits))
    for name, quantizer in named_quantizers(model):
        if not isinstance(quantizer, DeadZoneQuantizer) or name not in settings:
            continue
        if name in dead_zone:
            quantizer.logit_dz.fill_(_trainable(float(quantizer.logit_dz)))
        learned = "max_bits" in kwargs and kwargs.get("learnable_bit", True)
        if learned and (name in bits or quantizer.max_bits != kwargs["max_bits"]):
            quantizer.logit_bit.fill_(_trainable(bit_logit(settings[name].bits, kwargs["max_bits"])))
    return model


def _trainable(logit: float) -> float:
    return min(max(logit, MIN_LOGIT), MAX_LOGIT)


def _describe(setting: Setting) -> str:
    zone = "" if setting.dead_zone is None else f", dead-zone {setting.dead_zone:.3f} of 2R"
    return f"{setting.bits} bits{zone}"
