"""Flat names that stand for values in nested parts."""

import inspect

import pytest
from cases import each

from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig
from codeq.config.aliases import ALIASES, PAPER_QUANTIZER, expand
from codeq.quantizer import DeadZoneQuantizer
from codeq.schedules import constant, linear_warmup

VALUES = {
    "lr": 0.5,
    "weight_decay": 0.25,
    "lr_dz": 0.03,
    "weight_decay_dz": 2.5,
    "lr_bit": 0.04,
    "weight_decay_bit": 0.0,
    "quantizer_kwargs": {"max_bits": 4},
    "exclude_layers": ["conv1"],
    "num_workers": 0,
    "output_dir": "elsewhere",
}


def _nested(path, value):
    for step in reversed(path.split(".")):
        value = {step: value}
    return value


@each("name", VALUES)
def test_sets_and_reads_the_value_at_its_path(name):
    config = ExperimentConfig("x", **{name: VALUES[name]})
    content = config.to_dict()
    for step in ALIASES[name].split("."):
        content = content[step]
    assert getattr(config, name) == content == VALUES[name]
    default = ExperimentConfig("x")
    others = VALUES.keys() - {name}
    assert all(getattr(config, other) == getattr(default, other) for other in others)


@each("name", VALUES)
@each("same", [True, False])
def test_a_value_given_in_both_ways_is_an_error(name, same):
    path = ALIASES[name]
    nested = _nested(path, VALUES[name] if same else getattr(ExperimentConfig("x"), name))
    if "quantizer" in nested:
        nested["quantizer"]["name"] = "deadzone"
    with pytest.raises(CodeqError, match=f"^ExperimentConfig: {name}=.*: {path} is given too: give only one of them"):
        ExperimentConfig("x", **{name: VALUES[name]}, **nested)


def test_a_short_form_beside_other_nested_values_is_none():
    config = ExperimentConfig("x", lr_dz=0.1, optimizer={"type": "sgd", "param_groups": {"base": {"lr": 0.2}}})
    assert (config.lr, config.lr_dz, config.lr_bit, config.optimizer.type) == (0.2, 0.1, 1e-3, "sgd")
    config = ExperimentConfig("x", quantizer="uniform", quantizer_kwargs={"bitwidth": 4})
    assert (config.quantizer.name, config.quantizer_kwargs) == ("uniform", {"bitwidth": 4})


@pytest.mark.parametrize("name", ["quantizer_kwargs", "exclude_layers"])
def test_a_float_model_has_no_quantizer_to_set(name):
    with pytest.raises(CodeqError, match=f"{name}=.*: quantizer is None, so nothing in it can be set"):
        ExperimentConfig("x", quantizer=None, **{name: VALUES[name]})
    assert getattr(ExperimentConfig("x", quantizer=None), name) is None


def test_none_counts_as_not_given():
    assert ExperimentConfig("x", **dict.fromkeys(ALIASES)) == ExperimentConfig("x")


def test_a_schedule_needs_a_loss():
    with pytest.raises(CodeqError, match=r"sparsity_schedule=linear_warmup\(delay=1, ramp=1\): needs a sparsity_fn"):
        ExperimentConfig("x", sparsity_schedule=linear_warmup(1, 1))
    assert ExperimentConfig("x", sparsity_schedule=constant()) == ExperimentConfig("x")


def test_sparsity_fn_and_loss_terms_exclude_each_other():
    with pytest.raises(CodeqError, match=r"sparsity_fn=.*loss_terms is given too"):
        ExperimentConfig("x", sparsity_fn="group_lasso", loss_terms=[])


def test_paper_quantizer_is_a_part_of_the_constructor_of_its_class():
    parameters = inspect.signature(DeadZoneQuantizer).parameters
    assert PAPER_QUANTIZER.items() <= {name: p.default for name, p in parameters.items()}.items()


def test_expand_reports_every_contradiction():
    settings = {"lr": 1.0, "optimizer": {"param_groups": {"base": {"lr": 1.0}}}, "num_workers": 1, "workers": 1}
    assert len(expand(settings)[1]) == 2
