import copy
from types import SimpleNamespace

import pytest
import torch
from cases import each
from torch import nn

from codeq import MODELS, ExperimentConfig
from codeq.common.errors import CodeqError
from codeq.models import build_model

X = torch.zeros(2, 3, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kwargs", "parameters"),
    [
        ("timm:resnet10t", {}, 4_928_000),
        ("timm:vit_tiny_patch16_224", {"patch_size": 8}, 5_000_000),
        ("torchvision:squeezenet1_1", {}, 727_626),
    ],
)
def test_networks_of_the_libraries(name, kwargs, parameters):
    assert ExperimentConfig("x", model=name, model_kwargs=kwargs, num_classes=10, dataset="digits").model == name
    model = build_model(name, 10, kwargs, img_size=32)
    assert model.eval()(X).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.15)


@each(
    ("name", "kwargs", "message"),
    [
        ("timm:resnet10", {}, r"'timm:resnet10' is unknown to timm\. Did you mean timm:resnet10t"),
        ("timm:hf-hub:someone/evil", {}, "unknown to timm"),
        ("torchvision:squeezenet", {}, "Did you mean torchvision:squeezenet1_"),
        ("torchvision:squeezenet1_1", {"weights": "DEFAULT"}, "weights: .* are given by init_from"),
        ("timm:resnet10t", {"checkpoint_path": "x.pth"}, "checkpoint_path: .* are given by init_from"),
        ("resnet21", {}, r"Did you mean 'resnet\d\d'"),
        ("nowhere:build", {}, "nowhere has not been imported"),
    ],
)
def test_what_is_no_network_is_refused(name, kwargs, message):
    with pytest.raises(CodeqError, match=message):
        MODELS[name](num_classes=10, **kwargs)


def _failing(num_classes=10, depth=1):
    raise ValueError(f"depth {depth} of {num_classes}")


@each(
    ("name", "factory", "message"),
    [
        ("failing", _failing, r"model 'failing' with .*'depth': 7.* cannot be built: ValueError: depth 7 of 10"),
        (
            "nothing",
            lambda **_: None,
            r"model 'nothing' .*: the factory returned a NoneType, must be a torch",
        ),
        ("torchvision:resnet18", None, r"'torchvision:resnet18' .* cannot be built: TypeError: .*'depth'"),
    ],
)
def test_a_factory_that_fails_is_an_error_in_its_arguments(name, factory, message):
    if factory:
        MODELS[name] = factory
    try:
        with pytest.raises(CodeqError, match=message):
            build_model(name, 10, {"depth": 7})
    finally:
        if factory:
            del MODELS[name]


def _around(backbone):
    return lambda num_classes: nn.Sequential(backbone, nn.Linear(4, num_classes))


@each(
    "factory",
    [
        lambda net: lambda **_: net,
        lambda net: _around(net[0]),
    ],
)
def test_a_factory_that_returns_parameters_of_an_earlier_network_is_refused(monkeypatch, factory):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 10))
    monkeypatch.setitem(MODELS, "existing", factory(net))
    settings = ExperimentConfig("x", exclude_layers=["1"]).quantizer
    build_model("existing", 10, {}, quantizer=settings).requires_grad_(False)  # as a teacher
    with pytest.raises(CodeqError, match=r"model 'existing' .* had returned before: build a new one"):
        build_model("existing", 10, {})


def test_a_factory_may_copy_a_network_and_share_what_does_not_train(monkeypatch):
    net, frozen = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 10)), nn.BatchNorm1d(4).requires_grad_(False)
    monkeypatch.setitem(MODELS, "copied", lambda **_: copy.deepcopy(net))
    monkeypatch.setitem(MODELS, "around", _around(frozen))
    for name in ("copied", "around"):
        assert not set(build_model(name, 10, {})[1].parameters()) & set(build_model(name, 10, {})[1].parameters())


def test_a_network_without_weights_before_its_first_forward_is_refused_for_its_layer(monkeypatch):
    monkeypatch.setitem(MODELS, "lazy", lambda **_: nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()))
    quantizer = SimpleNamespace(name="deadzone", kwargs={}, exclude_layers=[])
    with pytest.raises(CodeqError, match=r"layer '0' \(LazyConv2d\) has no weights before its first forward pass"):
        build_model("lazy", 10, {}, quantizer=quantizer)


def test_a_network_that_was_made_in_inference_mode_is_refused(monkeypatch):
    with torch.inference_mode():
        net = nn.Linear(4, 10)
    monkeypatch.setitem(MODELS, "existing", lambda **_: net)
    with pytest.raises(CodeqError, match=r"model 'existing' .* made in torch\.inference_mode"):
        build_model("existing", 10, {})
