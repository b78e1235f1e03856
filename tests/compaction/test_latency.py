"""Prices of MACs and elements: the fit against known prices, the times of layers against pauses."""

import copy
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from codeq.common.errors import CodeqError
from codeq.compaction import latency
from codeq.compaction.gains import _bytes, measure_gains
from codeq.compaction.latency import measured_prices
from codeq.graph.tracing import trace
from codeq.models import resnet20

PAUSE = 0.02


class Pause(nn.Module):
    def forward(self, x):
        time.sleep(PAUSE)
        return x


def test_known_prices_are_found(monkeypatch):
    macs = {"conv1": 442_368, "layer1.0.conv1": 2_359_296, "layer3.0.conv1": 1_179_648, "layer3.2.conv2": 2_359_296}
    elements = {"conv1": 16_384, "layer1.0.conv1": 16_384, "layer3.0.conv1": 4_096, "layer3.2.conv2": 4_096}
    times = {name: 32 * (3e-12 * macs[name] + 2e-9 * elements[name] + 1e-6) for name in macs}
    monkeypatch.setattr(latency, "_layer_times", lambda *_: times)
    prices = measured_prices(resnet20(), (3, 32, 32), batch_size=32)
    assert (prices.mac, prices.element, prices.layer) == tuple(map(pytest.approx, (3e-12, 2e-9, 1e-6)))
    # A negative price would make a network faster by more work.
    times |= {name: 32 * (3e-12 * macs[name] + 2e-9 * (2e4 - elements[name])) for name in macs}
    assert measured_prices(resnet20(), (3, 32, 32), batch_size=32).element == 0


def test_transposed_convolutions_are_priced_by_the_elements_that_they_write(monkeypatch):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ConvTranspose2d(8, 4, 4, 4),
        nn.Conv2d(4, 2, 1),
        nn.ConvTranspose2d(2, 3, 2, 2),
    )
    macs = {"0": 64 * 27 * 8, "1": 64 * 16 * 8 * 4, "2": 1024 * 4 * 2, "3": 1024 * 4 * 2 * 3}
    elements = {"0": 64 * 8, "1": 1024 * 4, "2": 1024 * 2, "3": 4096 * 3}
    times = {name: 32 * (3e-12 * macs[name] + 2e-9 * elements[name] + 1e-6) for name in macs}
    monkeypatch.setattr(latency, "_layer_times", lambda *_: times)
    prices = measured_prices(net, (3, 8, 8), batch_size=32)
    assert (prices.mac, prices.element, prices.layer) == tuple(map(pytest.approx, (3e-12, 2e-9, 1e-6)))


def test_what_follows_a_layer_is_part_of_its_time():
    twice = nn.Conv2d(4, 4, 1)
    net = nn.Sequential(Pause(), nn.Conv2d(3, 4, 1), Pause(), twice, nn.ReLU(), twice, Pause(), Pause())
    times = latency._layer_times(net.eval(), torch.zeros(1, 3, 4, 4), ["1", "3", "3"])
    assert list(times) == ["1", "3"]
    assert times["1"] >= PAUSE  # what comes before the first layer belongs to none
    assert times["3"] >= 2 * PAUSE


class Functional(nn.Module):
    """A layer in functional form between others, of which one is called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x):
        x = self.a(self.a(x))
        x = F.conv2d(self.b(x), self.c.weight)
        time.sleep(PAUSE)
        return self.c(x)


def test_the_time_of_a_function_is_not_that_of_the_layer_before_it():
    net = Functional().eval()
    order = [op.weight for op in trace(net, (3, 4, 4)).weighted]
    assert order == ["a", "a", "b", "c", "c"]
    times = latency._layer_times(net, torch.zeros(1, 3, 4, 4), order)
    assert list(times) == ["a"]  # of two calls, and each starts before the next one
    assert times["a"] < PAUSE
    assert list(latency._layer_times(net, torch.zeros(1, 3, 4, 4), ["a", "a", "b", "c"])) == ["a", "b", "c"]


def test_a_layer_that_is_called_twice_starts_twice(monkeypatch):
    twice = nn.Conv2d(4, 4, 1)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), twice, twice, nn.Conv2d(4, 9, 3), nn.AvgPool2d(2), nn.Conv2d(9, 40, 3))
    counts = {"0": (768, 256, 1), "1": (2048, 512, 2), "3": (11664, 324, 1), "5": (3240, 40, 1)}
    times = {name: 4 * (3e-9 * macs + 2e-9 * n + 1e-6 * calls) for name, (macs, n, calls) in counts.items()}
    monkeypatch.setattr(latency, "_layer_times", lambda *_: times)
    prices = measured_prices(net, (3, 8, 8), batch_size=4)
    assert (prices.mac, prices.element, prices.layer) == tuple(map(pytest.approx, (3e-9, 2e-9, 1e-6)))


def test_other_work_of_the_machine_does_not_lengthen_the_times():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Pause())
    passes = iter(range(100))
    net[1].register_forward_pre_hook(lambda *_: time.sleep(0 if next(passes) % 4 == 0 else 5 * PAUSE))
    times = latency._layer_times(net.eval(), torch.zeros(1, 3, 4, 4), ["0"])
    assert PAUSE <= times["0"] < 5 * PAUSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_inputs_have_the_type_of_the_weights(dtype):
    net = nn.Sequential(nn.Conv2d(3, 4, 1)).to(dtype)
    assert measured_prices(net, (3, 4, 4), batch_size=2).mac >= 0
    assert len(measure_gains({"float": copy.deepcopy(net).float(), "other": net}, (3, 4, 4), [2])) == 2


def test_a_network_without_layers_is_refused():
    with pytest.raises(CodeqError):
        measured_prices(nn.Sequential(nn.Flatten(), nn.ReLU()), (3, 8, 8))


def test_the_model_is_left_alone():
    model = resnet20().train()
    measured_prices(model, (3, 8, 8), batch_size=2)
    assert model.training
    assert not model.conv1._forward_pre_hooks


def test_the_memory_of_a_network_is_that_of_parameters_and_buffers():
    assert _bytes(nn.Sequential(nn.Linear(3, 4, bias=False).half(), nn.BatchNorm1d(4))) == 12 * 2 + 4 * 4 * 4 + 8
