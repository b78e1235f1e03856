import contextlib

import pytest
import torch
from torch import nn

from codeq.attach import attach_weight_quantizers
from codeq.errors import CodeqError
from codeq.models import MODELS, resnet20
from codeq.tracing import Concat, Gather, Layer, PerChannel, Sum, Unknown, evaluation_mode, trace


def kinds(model: nn.Module, size=(3, 8, 8)) -> list[str]:
    return [type(op).__name__ for op in trace(model, size).ops]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_traced_without_unknown_operations(name):
    graph = trace(MODELS[name]())
    assert not graph.unknown
    assert graph.ops[0].channels == 3
    assert graph.ops[-1].channels == 10


def test_resnet20_is_what_it_is_made_of():
    graph = trace(resnet20())
    count = {kind: sum(isinstance(op, kind) for op in graph.ops) for kind in (Layer, Sum, Gather, Unknown)}
    assert count == {Layer: 20, Sum: 9, Gather: 5, Unknown: 0}  # two shortcuts slice and pad, one flatten
    assert [op.layer for op in graph.layers][:2] == ["conv1", "layer1.0.conv1"]
    assert graph.layers[-1].layer == "linear"
    assert [op.spatial for op in graph.layers if op.layer in ("conv1", "layer2.0.conv1", "linear")] == [
        (32, 32),
        (16, 16),
        (1, 1),
    ]


def test_an_unchanged_model_is_traced_once_and_a_changed_one_again():
    model = resnet20()
    first = trace(model)
    assert trace(model) is first
    assert trace(model, (3, 64, 64)) is not first
    model.linear = nn.Linear(64, 7)
    assert trace(model).layers[-1].channels == 7


def test_attaching_quantizers_changes_nothing_in_the_graph():
    model = resnet20()
    before = [(type(op), op.name, op.channels) for op in trace(model).ops]
    attach_weight_quantizers(model, [], "deadzone", {})
    assert [(type(op), op.name, op.channels) for op in trace(model).ops] == before


class Decides(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Decides(), "Decides cannot be traced"),
        (nn.Sequential(nn.Linear(5, 2)), r"\(3, 8, 8\)"),
        (nn.Sequential(nn.Conv2d(4, 2, 1)), "cannot be traced"),
    ],
)
def test_a_model_that_cannot_be_traced_is_a_clear_error(model, message):
    with pytest.raises(CodeqError, match=message):
        trace(model, (3, 8, 8))


def test_every_module_gets_its_own_mode_back_even_after_an_error():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout())
    model[1].eval()
    trace(model, (3, 8, 8))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    with contextlib.suppress(RuntimeError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, True, False, True]


def test_tracing_leaves_batchnorm_statistics_alone():
    model = resnet20()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    trace(model)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.conv(x))


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: x + x, Sum),
        (lambda x: x + x[:, :1], Unknown),
        (lambda x: x * 2, Unknown),
        (lambda x: torch.cat([x, x], 1), Concat),
        (lambda x: torch.cat([x, x], dim=2), Unknown),
        (lambda x: x[:, 1:3], Gather),
        (lambda x: x[0], Unknown),
        (lambda x: x.flatten(1), Gather),
        (lambda x: x.view(x.size(0), -1), Gather),
        (lambda x: x.reshape(1, 2, 2, 8, 8), Unknown),
        (lambda x: x.mean((2, 3)), PerChannel),
        (lambda x: x.mean(1), Unknown),
        (lambda x: torch.nn.functional.pad(x, (1, 1, 1, 1)), Gather),
        (lambda x: torch.nn.functional.pad(x, (1, 1, 1, 1), value=1.0), Unknown),
        (lambda x: torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"), Unknown),
        (torch.nn.functional.gelu, PerChannel),
        (lambda x: torch.softmax(x, 1), Unknown),
        (lambda x: torch.chunk(x, 2, 1)[0], Unknown),
    ],
)
def test_a_call_is_understood_or_said_to_be_unknown(function, kind):
    last = trace(Calls(function), (3, 8, 8)).ops[-2]
    assert isinstance(last, kind)


def test_layers_that_codeq_cannot_follow_are_unknown():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(x)

    (unknown,) = trace(Sequence(), (3, 8, 8)).unknown
    assert unknown.call == "call_module fc"
