"""Held-out images that a training's starting point was trained on: accuracy on them says nothing about new images."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from codeq.common.errors import CodeqError, quote
from codeq.config import ExperimentConfig
from codeq.runs.settings import data_folder, starting_points

# Keys that decide which of its images are held out.
SPLIT = ("validation", "seed")
_KNOWS = "It knows all training images of CIFAR-10"
_PACKAGED = "the validation images were training images of the ResNet-20 of this package"


def images_seen(config: ExperimentConfig) -> str:
    """Return why held-out images of a training are not new to it, or nothing.

    The run of `init_from`, or of a teacher, may have trained on images that `config` holds out, and so may the runs
    that these started from. The ResNet-20 of this package has, if the data set is CIFAR-10. Files of weights without a
    run around them say nothing about their images.

    Parameters
    ----------
    config : ExperimentConfig
        With or without `validation`.

    Examples
    --------
    >>> images_seen(ExperimentConfig("new", validation=0.1))
    ''
    """
    if config.validation is None:
        return ""
    ours = config.to_dict()
    if _is_packaged(ours, config.dataset):
        return f"{_PACKAGED} (pretrained: true): accuracy on them is too high. {_KNOWS}: start from other weights"
    sources = [("init_from", config.init_from)]
    if config.distillation:
        sources += [("distillation.teacher", teacher) for teacher in config.distillation.teachers]
    for key, source in sources:
        # A source whose settings cannot be read says nothing; its weights are refused elsewhere.
        with suppress(CodeqError):
            for number, (_, folder, theirs) in enumerate(starting_points({"init_from": source})):
                if _is_packaged(theirs, config.dataset):
                    return (
                        f"{_PACKAGED}, from which {key}={quote(source)} started: accuracy on them is too high. "
                        f"{_KNOWS}: choose another one for {key}"
                    )
                same_split = all(theirs.get(name) == ours[name] for name in SPLIT)
                if folder and _images(theirs) == _images(ours) and not same_split:
                    earlier = f" (of {folder.name}, from which it started)" if number else ""
                    return (
                        f"the validation images were training images of {key}={quote(source)}{earlier}: accuracy on "
                        f"them is too high. Give that training the same split: validation={config.validation}, "
                        f"seed={config.seed}"
                    )
    return ""


def _is_packaged(settings: Mapping[str, Any], dataset: str) -> bool:
    """Return whether a training begins with the network of this package, and `dataset` is the one that it knows."""
    return bool(settings.get("pretrained")) and settings.get("model") == "resnet20" and dataset == "cifar10"


def _images(settings: Mapping[str, Any]) -> tuple[Any, Path]:
    """Return the data set and its folder, the default one if the settings name none."""
    return settings.get("dataset"), data_folder(settings.get("data_dir"))
