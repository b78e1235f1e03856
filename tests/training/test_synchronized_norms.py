import copy

import pytest
import torch
from cases import each
from torch import nn

from codeq.common.errors import CodeqError
from codeq.graph.tracing import trace
from codeq.training.distributed import Ranks
from codeq.training.synchronized_norms import synchronize_norms

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def outputs(net):
    """Outputs in training and in evaluation mode; one process computes them as BatchNorm does."""
    return [copy.deepcopy(net).train(mode)(X) for mode in (True, False)]


def check_same_network(net):
    expected, before = outputs(net), {name: (id(m), type(m)) for name, m in net.named_modules()}
    synchronize_norms(net)
    for output, wanted in zip(outputs(net), expected, strict=True):
        assert torch.equal(output, wanted)
    changed = [m for name, m in net.named_modules() if (id(m), type(m)) != before[name]]
    assert changed
    assert all(isinstance(m, nn.SyncBatchNorm) for m in changed)


def test_hooks_and_layers_with_two_names_stay():
    norm = nn.BatchNorm2d(4)
    norm.register_forward_hook(lambda *call: call[-1].relu())
    norm.register_forward_pre_hook(lambda _, args, kwargs: ((args[0] + 1,), kwargs), with_kwargs=True)
    check_same_network(nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Conv2d(4, 4, 1), norm, nn.Flatten()))
    assert type(norm) is nn.SyncBatchNorm


def test_the_activation_function_in_a_norm_of_timm_stays_and_is_followed():
    from timm.layers import BatchNormAct2d

    net = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4), nn.Conv2d(4, 2, 1))
    before = trace(copy.deepcopy(net), (3, 6, 6))
    check_same_network(net)
    after = trace(net, (3, 6, 6))
    assert after.problems == before.problems == ()
    assert [op.layer for op in after.layers] == ["0", "2"]
    assert after.batchnorms_after("0") == before.batchnorms_after("0") == ("1",)


class Scaled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Frozen(Scaled):
    def train(self, _mode=True):
        return super().train(False)


def replaced(norm):
    norm.forward = lambda x: x
    return norm


@each("norm", [Scaled(3), replaced(nn.BatchNorm2d(3))])
def test_a_norm_that_is_no_plain_batchnorm_is_refused_by_name(norm):
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(norm))
    with pytest.raises(CodeqError, match=rf"^1\.0 \({type(norm).__name__}\) cannot normalize by the batch of several"):
        synchronize_norms(net)
    assert type(net[0]) is nn.BatchNorm2d


def test_a_norm_that_stays_in_evaluation_mode_is_left_as_it_is():
    net = nn.Sequential(nn.BatchNorm2d(3), Frozen(3), nn.SyncBatchNorm(3))
    check_same_network(net)
    assert [type(norm) for norm in net] == [nn.SyncBatchNorm, Frozen, nn.SyncBatchNorm]


@each(("device", "kind"), [("cuda", nn.SyncBatchNorm), ("cpu", nn.BatchNorm2d)])
def test_processes_on_gpus_are_synchronized(monkeypatch, device, kind):
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", lambda model, **_: model)
    net = nn.Sequential(nn.BatchNorm2d(3))
    assert type(Ranks(0, 2, torch.device(device)).replicate(net)[0]) is kind
