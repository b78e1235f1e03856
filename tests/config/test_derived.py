"""Names, exclusions and class counts that follow from other settings."""

import torch
from cases import each

from codeq.config import ExperimentConfig
from codeq.config.derived import default_exclude_layers, default_name, forget_derived
from codeq.models import MODELS
from codeq.models.cifar_resnet import CifarResNet
from codeq.quantizer import QUANTIZERS, UniformSymmetric


def test_stem_and_classifier_stay_float_in_cifar_resnets():
    for model, build in MODELS.items():
        with torch.device("meta"):
            expected = ["conv1", "bn", "linear"] if isinstance(build(), CifarResNet) else []
        assert default_exclude_layers(model) == expected, model


@each(
    ("settings", "name"),
    [
        ({}, "resnet20_baseline_e300_lr0.001"),
        ({"quantizer": {"name": "deadzone"}}, "resnet20_deadzone8b_e300_lr0.001"),
        ({"quantizer": {"name": "deadzone", "kwargs": {"max_bits": 6}}}, "resnet20_deadzone6b_e300_lr0.001"),
        (
            {"quantizer": {"name": "deadzone", "kwargs": {"fixed_bit_val": 5, "learnable_bit": False}}},
            "resnet20_deadzone5b_e300_lr0.001",
        ),
        ({"quantizer": {"name": "uniform", "kwargs": {"bitwidth": 3}}}, "resnet20_uniform3b_e300_lr0.001"),
        (
            {"model": "mlp", "epochs": 7, "optimizer": {"param_groups": {"base": {"lr": 3e-4}}}},
            "mlp_baseline_e7_lr0.0003",
        ),
    ],
)
def test_default_name(settings, name):
    config = ExperimentConfig.from_dict(settings)
    assert config.name == default_name(config.to_dict()) == name


def test_default_name_of_a_quantizer_without_known_bits(monkeypatch):
    class Mine(UniformSymmetric):
        def __init__(self) -> None:
            super().__init__(4)

    monkeypatch.setitem(QUANTIZERS, "mine", Mine)
    assert ExperimentConfig.from_dict({"quantizer": {"name": "mine"}}).name == "resnet20_mine_e300_lr0.001"


def test_what_is_derived_is_forgotten_and_nothing_else():
    derived = ExperimentConfig.from_dict({"quantizer": {"name": "deadzone"}}).to_dict()
    kept = forget_derived(derived)
    assert derived.keys() - kept.keys() == {"name", "num_classes"}
    assert derived["quantizer"].keys() - kept["quantizer"].keys() == {"exclude_layers"}

    given = ExperimentConfig("mine", dataset="imagefolder", num_classes=7, exclude_layers=["linear"]).to_dict()
    assert forget_derived(given) == given
