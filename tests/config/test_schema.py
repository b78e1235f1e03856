"""Types and ranges of every field, and what the parts build."""

import dataclasses
import re
from dataclasses import fields

import pytest
import torch
from cases import each
from torch import nn

from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig
from codeq.config.parts import LossTerm, ScheduleConfig
from codeq.config.schema import ExperimentSchema
from codeq.config.serialize import Part, keys
from codeq.schedules import linear_warmup
from codeq.sparsity import l1_kernel_sparsity

COUNTS = ["degenerate_patience", "img_size", "epochs", "batch_size", "viz_interval", "num_classes"]
NATURALS = ["workers", "seed", "recalibrate_batchnorm", "checkpoint_interval", "lr_scheduler_kwargs.warmup"]
NATURALS += ["freeze_last.dz", "freeze_last.bit", "augmentation.cutout"]
FLAGS = ["stop_degenerate", "deterministic", "channels_last", "tensorboard", "init_from_strict"]
TEXTS = ["name", "model", "init_from", "dataset", "data_dir", "device", "wandb_project", "save_dir", "run_dir"]
CHOICES = ["lr_scheduler", "lr_schedule_unit", "theta_regularizer"]
MAPPINGS = ["model_kwargs", "quantizer", "optimizer", "lr_scheduler_kwargs", "distillation"]

WRONG = {
    **{key: ["8", 8.0, True, [8], 0, -1] for key in COUNTS},
    **{key: ["8", 8.0, True, None, -1] for key in NATURALS},
    **{key: ["true", "no", 0, 1, None] for key in FLAGS},
    **{key: [3, True, ["x"], ""] for key in TEXTS},
    **{key: ["", "other", None, 1] for key in CHOICES},
    **{key: [3, "text", ["list"], True] for key in MAPPINGS},
    "use_compile": [2, -1, 1.0, "1", None],
    "cuda_graph": [1, "yes", None],
    "imports": [2, "my_parts.py", [3]],
    "pretrained": [2, "yes", None],
    "amp": ["fp16", True, 1, ""],
    "wandb_mode": ["on", True, 1, ""],
    "label_smoothing": [-0.1, 1, "0.1", True, None],
    "validation": [0, 1, 0.0, -0.1, "0.1", True],
    "target": [3, "relative_bops", []],
    "target.relative_bops": [0, 1, -0.1, "0.1", True],
    "target.structured_macs": [0, 1, -0.1, "0.1", True],
    "target.bytes": [0, 1, -0.1, "0.1", True],
    "target.mean_bits": [1.9, 32, "4", True],
    "target.reach": [0, 1, "0.5", True, None],
    "target.proportional": [0, -1, "1", None],
    "target.integral": [-1, "1", None],
    "ema": [0, 1, 0.0, 1.0, -0.5, "0.9", True],
    "theta_schedule": [3, "constant", []],
    "augmentation": [3, "cutout", []],
    "augmentation.randaugment": [-1, 15, 1.5, "2", True, None],
    "augmentation.magnitude": [-1, 31, 1.5, "9", True, None],
    "freeze_last": [3, "bit", [], None],
    "optimizer.theta": [3, "adamw", []],
    "optimizer.theta.type": ["adamx", None, 1],
    "optimizer.theta.kwargs": [3, [], "x", None],
    "optimizer.param_groups.base.nesterov": ["yes", 1, 0],
    "optimizer.param_groups.base.decay_norms_and_biases": ["no", 0, 1, None],
    "lr_scheduler_kwargs.step_size": [0, 1.5, "3"],
    "lr_scheduler_kwargs.gamma": [0, 1.1, "0.1", True, None],
    "distillation.teacher": [3, "", None, [], ["a", 3], ["a", ""]],
    "distillation.alpha": [0, 1.1, "0.5", None],
    "distillation.temperature": [0, -1, "4", None, float("inf")],
    "optimizer.kwargs": [3, [], "x", None],
    "loss_terms": [3, "text", {"name": "group_lasso"}, None, ["group_lasso"], [None]],
    "optimizer.type": ["adamx", None, 1],
    "optimizer.param_groups": [3, [], None],
    "optimizer.param_groups.base": [3, [], None],
    "optimizer.param_groups.dz": [3, []],
    "optimizer.param_groups.bit": [3, []],
    **{
        f"optimizer.param_groups.{group}.{key}": wrong
        for group in ("base", "dz", "bit")
        for key, wrong in {
            "lr": [0, -1, "1e-3", True, None, float("nan"), float("inf")],
            "weight_decay": [-1, "0", False, None, float("nan"), float("inf")],
            "momentum": [-0.1, 1, "0.9", True],
        }.items()
    },
    "activations": [3, "lsq", []],
    "activations.bits": [1, 17, "8", 8.0, True, None],
    "activations.method": ["lsqq", None, 1],
    "activations.symmetric": ["no", 0, 1, None],
    "activations.per": ["channel", None, 1],
    "activations.residual": ["both", None, 1, True],
    "quantizer.name": [3, None, "", []],
    "quantizer.kwargs": [3, None, [], "max_bits"],
    "quantizer.exclude_layers": ["bn", None, {"bn"}, {"bn": 1}, [3], [""], [["bn"]]],
    "loss_terms.0.name": [3, None, ""],
    "loss_terms.0.lambda": [-1, "1", True, None, float("nan"), float("inf")],
    "loss_terms.0.kwargs": [3, None, [], "x"],
    "loss_terms.0.schedule": [3, None, "constant", []],
    "loss_terms.0.schedule.name": [3, None, ""],
    "loss_terms.0.schedule.kwargs": [3, None, []],
    "loss_terms.0.step": ["", "prox", None, 1],
    "loss_terms.0.detach_quantizer": ["no", 0, 1, None],
}

BASE = {
    "name": "x",
    "quantizer": {"name": "deadzone"},
    "activations": {"bits": 4},
    "optimizer": {"type": "sgd", "theta": {"type": "sgd"}},
    "augmentation": {"cutout": 8},
    "distillation": {"teacher": "outputs/teacher"},
    "loss_terms": [{"name": "group_lasso"}],
}


def paths(content, prefix=""):
    """Every key of nested plain values, dotted."""
    entries = enumerate(content) if isinstance(content, list) else content.items()
    for key, value in entries:
        yield f"{prefix}{key}"
        if isinstance(value, dict | list):
            yield from paths(value, f"{prefix}{key}.")


def test_every_key_is_tried():
    config = ExperimentConfig.from_dict(BASE)
    existing = {path for path in paths(config.to_dict()) if not path.split(".")[-1].isdecimal()}
    assert existing <= WRONG.keys()


def test_wrong_values_are_named():
    config = ExperimentConfig.from_dict(BASE)
    for path, value in [(path, value) for path, values in WRONG.items() for value in values]:
        subjects, message = [f"{path}={value!r}: "], "accepted"
        try:
            config.override({path: value})
        except CodeqError as error:
            message = str(error)
        if isinstance(value, list) and value:
            subjects.append(f"{path}.0={value[0]!r}: ")  # the list is right, its entry is not
        lines = re.split(r"\n  |^override: ", message)
        assert any(line.startswith(tuple(subjects)) for line in lines), f"{subjects[0]}{message}"


@each(
    ("path", "value"),
    [
        ("use_compile", 1),
        ("use_compile", 0),
        ("use_compile", True),
        ("optimizer.param_groups.base.lr", 1),
        ("optimizer.param_groups.base.weight_decay", 0),
        ("optimizer.param_groups.base.momentum", 0),
        ("loss_terms.0.lambda", 0),
        ("workers", 0),
        ("quantizer", None),
        ("quantizer.exclude_layers", []),
        ("loss_terms", []),
        ("device", None),
        ("data_dir", None),
        ("lr_scheduler", "constant"),
        ("amp", "bf16"),
        ("amp", "auto"),
        ("ema", 0.999),
        ("ema", None),
        ("validation", 0.1),
        ("validation", None),
        ("lr_schedule_unit", "step"),
        ("theta_schedule", {"name": "linear_warmup", "kwargs": {"delay": 1, "ramp": 2}}),
        ("theta_schedule", None),
        ("augmentation", None),
        ("augmentation", {"randaugment": 2, "magnitude": 9, "cutout": 0}),
        ("freeze_last", {"bit": 300}),
        ("optimizer.theta", None),
        ("pretrained", 0),
        ("distillation", None),
        ("label_smoothing", 0.1),
        ("wandb_mode", None),
        ("theta_regularizer", "l2"),
        ("optimizer.param_groups.dz", None),
    ],
)
def test_legal_values(path, value):
    assert ExperimentConfig.from_dict(BASE).override({path: value})


def test_numbers_become_floats_and_zero_or_one_a_flag():
    config = ExperimentConfig.from_dict(BASE).override({"optimizer.param_groups.base.lr": 1, "use_compile": 1})
    assert type(config.lr) is float
    assert config.use_compile is True


def test_a_missing_theta_group_takes_its_defaults():
    groups = ExperimentConfig.from_dict({"optimizer": {"param_groups": {"dz": None, "bit": {"lr": 0.1}}}}).optimizer
    assert (groups.param_groups.dz.lr, groups.param_groups.dz.weight_decay) == (1e-3, 0.01)
    assert (groups.param_groups.bit.lr, groups.param_groups.bit.weight_decay) == (0.1, 0.01)
    assert groups.param_groups.base.weight_decay == 0.0


@each("part", [ExperimentSchema, *Part.__subclasses__()])
def test_parts_are_frozen_and_documented(part):
    if dataclasses.is_dataclass(part):
        assert part.__dataclass_params__.frozen
        documented = part.__doc__ or ""
        assert part.__name__ in ("OptimizerConfig", "ParamGroups") or all(f.name in documented for f in fields(part))


def test_a_schedule_builds_itself():
    schedule = ScheduleConfig(name="linear_warmup", kwargs={"delay": 2, "ramp": 2})
    assert schedule.build() == linear_warmup(2, 2)
    assert ScheduleConfig(name="own:f", function=max).build() is max


def test_a_loss_builds_itself():
    convs = nn.Sequential(nn.Conv2d(3, 4, 3))
    loss = LossTerm(name="l1_kernel_sparsity").build(convs, (3, 8, 8))
    assert torch.equal(loss(convs), l1_kernel_sparsity(convs))
    assert LossTerm(name="own:f", function=max).build(convs, (3, 8, 8)) is max


@pytest.mark.parametrize("part", [ScheduleConfig, LossTerm])
def test_an_own_callable_that_is_not_here_must_be_given_again(part):
    with pytest.raises(CodeqError, match="'own:f' is a callable of your own, which no file can store: pass it again"):
        part(name="own:f").own_function()


def test_lambda_is_a_key_and_lambda_underscore_is_not():
    assert "lambda" in keys(LossTerm)
    with pytest.raises(CodeqError, match=r"loss_terms.0.lambda_=1.0: unknown key. Did you mean 'lambda'\?"):
        ExperimentConfig("x", loss_terms=[{"name": "group_lasso", "lambda_": 1.0}])
    assert ExperimentConfig("x", loss_terms=[LossTerm(name="group_lasso", lambda_=0.5)]).loss_terms[0].lambda_ == 0.5
