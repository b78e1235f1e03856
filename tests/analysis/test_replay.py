import pytest
import torch
import torch.nn.functional as F
from torch import nn

from codeq.analysis.replay import PrefixCache
from codeq.common.errors import CodeqError
from codeq.models import build_model
from codeq.quantizer.layers import named_layers


class InPlace(nn.Module):
    """Writes to earlier results before and after each layer, reads a view late, and branches on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = self.first(x)
        view = h[:, :2]
        F.relu(h, inplace=True)
        out = self.second(h)
        h += 1
        h.mul_(out.sigmoid())
        out = self.third(out)
        out += h
        return out * (2 if out.sum().item() > 0 else 3) + view.sum()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.relu(self.other(self.layer(x))))


def agree(model: nn.Module, x: torch.Tensor, every: int = 1) -> None:
    """Compare with complete passes for three values of the weights of layers in turn, to the bit."""
    model.eval().requires_grad_(False)
    for name, module in list(named_layers(model))[::every]:
        before = module.weight.clone()
        with torch.no_grad():
            plain = model(x)
            cache = PrefixCache(model, module.weight, x)
            assert torch.equal(cache.output, plain), name
            for factor in (0.5, -1.0, 0.0):
                module.weight.copy_(before * factor)
                assert torch.equal(cache.forward(), model(x)), name
            assert not torch.equal(cache.output, cache.forward()), name
            module.weight.copy_(before)


@pytest.mark.parametrize("model", [InPlace, Tied, lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)])
def test_outputs_are_those_of_complete_passes(model):
    torch.manual_seed(0)
    net = model()
    agree(net, torch.randn(3, 5, 4) if isinstance(net, nn.TransformerEncoderLayer) else torch.randn(3, 4))


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "lenet5", "mlp"])
def test_outputs_of_the_models_of_codeq_are_those_of_complete_passes(name):
    torch.manual_seed(0)
    agree(build_model(name, 10, {}, img_size=32), torch.randn(1, 3, 32, 32), every=6)


def test_what_precedes_the_weight_is_computed_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval().requires_grad_(False)
    cache = PrefixCache(net, net[1].weight, torch.randn(2, 4))
    net[0].weight.zero_()  # not read again
    assert torch.equal(cache.forward(), cache.output)


def test_beyond_the_memory_limit_operations_are_executed_again(monkeypatch):
    monkeypatch.setattr("codeq.analysis.replay.RECORDED_BYTES", 40)
    torch.manual_seed(0)
    agree(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4))


def test_a_model_that_does_not_repeat_itself_is_refused():
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.last = 0, nn.Linear(2, 2)

        def forward(self, x):
            self.calls += 1
            return self.last(x.exp() if self.calls > 1 else x.sin())

    net = Growing().requires_grad_(False)
    cache = PrefixCache(net, net.last.weight, torch.ones(1, 2))
    with pytest.raises(CodeqError, match="does not repeat its evaluation"):
        cache.forward()
