"""The networks: names that the contract fixes, costs against an outside counter, and what option A does to a tensor."""

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from codeq.errors import CodeqError
from codeq.metrics import QuantizationComparison
from codeq.models import MODELS, CifarMLP, resnet20, resnet32
from codeq.models.cifar_resnet import BasicBlock, ChannelPadShortcut

CIFAR_RESNETS = {"resnet20": 20, "resnet32": 32, "resnet44": 44, "resnet56": 56, "resnet110": 110}
BUILDS = [(name, {}) for name in MODELS] + [(name, {"shortcut": "B"}) for name in CIFAR_RESNETS]


def weight_macs(model):
    """MACs of convolutions and linear layers by fvcore, which counts one multiply-add as one."""
    analysis = FlopCountAnalysis(model.eval(), torch.zeros(1, 3, 32, 32))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_operator = analysis.by_operator()
    return by_operator["conv"] + by_operator["linear"]


@pytest.mark.parametrize(("name", "kwargs"), BUILDS)
def test_macs_are_those_of_an_outside_counter(name, kwargs):
    model = MODELS[name](**kwargs)
    comparison = QuantizationComparison()
    comparison.set_baseline(model)
    assert comparison.baseline.total_macs == weight_macs(model)


@pytest.mark.parametrize(("shortcut", "macs", "weights"), [("A", 40_551_040, 268_336), ("B", 40_813_184, 270_896)])
def test_resnet20_has_the_published_size(shortcut, macs, weights):
    model = resnet20(shortcut=shortcut)
    assert weight_macs(model) == macs
    assert sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))) == weights


@pytest.mark.parametrize(("name", "depth"), CIFAR_RESNETS.items())
def test_depth_counts_the_layers_on_the_longest_path(name, depth):
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in MODELS[name]().modules()) == depth


def test_names_of_the_submodules_are_those_of_the_contract():
    model = resnet20()
    assert [name for name, _ in model.named_children()] == ["conv1", "bn1", "layer1", "layer2", "layer3", "linear"]
    for stage in (model.layer1, model.layer2, model.layer3):
        assert [[name for name, _ in block.named_children()] for block in stage] == [
            ["conv1", "bn1", "conv2", "bn2", "shortcut"]
        ] * 3
    assert [tuple(m.weight.shape) for m in (CifarMLP().fc1, CifarMLP().fc2, CifarMLP().fc3)] == [
        (120, 3072),
        (84, 120),
        (10, 84),
    ]


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize(("name", "kwargs"), BUILDS)
def test_every_model_gives_a_logit_a_class_with_finite_gradients(name, kwargs, classes):
    if CIFAR_RESNETS.get(name, 0) > 32 and classes != 10:
        pytest.skip("the shallower ones show it")
    model = MODELS[name](num_classes=classes, **kwargs)
    logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_option_a_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4) + 1
    y = ChannelPadShortcut(2)(x).numpy()
    want = np.zeros((2, 7, 2, 2), dtype=np.float32)
    for n, c, i, j in np.ndindex(2, 3, 2, 2):
        want[n, c + 2, i, j] = x[n, c, 2 * i, 2 * j]
    np.testing.assert_array_equal(y, want)


def test_a_block_adds_its_shortcut_before_the_last_relu():
    block = BasicBlock(4, 4, 1, "A").eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), x.relu())


def test_option_b_projects_where_the_shape_changes_and_only_there():
    model = resnet32(shortcut="B")
    projected = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert projected == ["layer2.0.shortcut.0", "layer3.0.shortcut.0"]


def test_weights_start_with_the_variance_of_he_and_others():
    for name, module in resnet20().named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1), name


def test_an_unknown_shortcut_is_a_clear_error():
    with pytest.raises(CodeqError, match=r"shortcut='C': must be 'A' .* or 'B'"):
        resnet20(shortcut="C")


def test_the_same_random_state_gives_the_same_weights():
    torch.manual_seed(3)
    one = resnet20()
    torch.manual_seed(3)
    two = resnet20()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
