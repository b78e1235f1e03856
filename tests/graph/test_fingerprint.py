"""Networks to be traced again: whatever the graph depends on may change between two calls."""

from collections import deque
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from codeq.graph.fingerprint import fingerprint
from codeq.graph.tracing import trace
from codeq.metrics import dense_stats, measure, structured_stats
from codeq.quantizer.attach import attach_weight_quantizers

SCALE = 1
SETTINGS = SimpleNamespace(offset=[0])
SHIFT = 0
DIVISOR = 1


MODULE = ModuleType("settings of a project")
MODULE.factor = 1


class Defaults:
    added = 0


@dataclass(slots=True)
class Slots:
    power: int = 1


def shifted(x):
    return x * MODULE.factor + SHIFT + Defaults.added


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.options, self.function = nn.Conv2d(3, 4, 1), nn.ReLU(), {"twice": [False]}, F.relu
        self.fc = nn.Linear(4, 4)
        self.register_buffer("order", torch.arange(4))
        self.slots, self.queue = Slots(), deque([1])

    def scaled(self, x):
        return shifted(x) * self.SCALED_BY + SETTINGS.offset[0]

    SCALED_BY = 1

    @property
    def divisor(self):
        return DIVISOR

    def forward(self, x):
        x = self.scaled(self.function(self.act(self.conv(x)))) / self.divisor
        x = self.fc(x.mean((2, 3)) * SCALE)
        return self.fc(x) if self.options["twice"][0] else x


def change_global(_model):
    globals()["SCALE"] = 2


def change_global_of_a_helper(_model):
    globals()["SHIFT"] = 2


def change_global_of_a_property(_model):
    globals()["DIVISOR"] = 2


def change_class(model):
    type(model).SCALED_BY += 1


CHANGES = {
    "stride": lambda m: setattr(m.conv, "stride", (2, 2)),
    "module": lambda m: setattr(m, "act", nn.Sigmoid()),
    "layer": lambda m: setattr(m, "conv", nn.Conv2d(3, 4, 1, stride=2)),
    "option": lambda m: m.options["twice"].__setitem__(0, True),
    "function": lambda m: setattr(m, "function", torch.sigmoid),
    "hook": lambda m: m.act.register_forward_hook(lambda _module, _args, output: output + 1),
    "pre-hook": lambda m: m.fc.register_forward_pre_hook(lambda _module, args: (args[0] + 1,)),
    "forward": lambda m: setattr(m.act, "forward", torch.sigmoid),
    "tie": lambda m: setattr(m, "other", m.fc) or setattr(m.fc, "weight", nn.Parameter(m.fc.weight.detach()[:3])),
    "global": change_global,
    "global object in a method": lambda _: SETTINGS.offset.__setitem__(0, SETTINGS.offset[0] + 1),
    "global of a helper": change_global_of_a_helper,
    "global of a property": change_global_of_a_property,
    "attribute of a module": lambda _: setattr(MODULE, "factor", MODULE.factor + 1),
    "attribute of another class": lambda _: setattr(Defaults, "added", Defaults.added + 1),
    "slot": lambda m: setattr(m.slots, "power", 2),
    "queue": lambda m: m.queue.append(2),
    "attribute of the class": change_class,
    "values of an index": lambda m: m.order.copy_(m.order.flip(0)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name, monkeypatch):
    for name_of_global, value in (("SCALE", 1), ("SHIFT", 0), ("DIVISOR", 1)):
        monkeypatch.setitem(globals(), name_of_global, value)
    model = Model()
    before = fingerprint(model)
    assert fingerprint(model) == before
    CHANGES[name](model)
    assert fingerprint(model) != before


def test_figures_follow_a_change_of_stride_and_a_replaced_module():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    assert dense_stats(measure(model, (3, 8, 8))).total_macs == 12 * 64
    model[0].stride = (2, 2)
    assert dense_stats(measure(model, (3, 8, 8))).total_macs == 12 * 16
    model[0] = nn.Conv2d(3, 4, 1, stride=4)
    assert dense_stats(measure(model, (3, 8, 8))).total_macs == 12 * 4


def test_figures_follow_other_indices():
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 8, 1)
            self.register_buffer("picks", torch.tensor([0, 1]))

        def forward(self, x):
            return self.b(self.a(x).index_select(1, self.picks))

    model = Picks()
    with torch.no_grad():
        model.a.weight[:2] = 0
        model.a.bias[:2] = 0
    dead = structured_stats(measure(model, (3, 4, 4))).total_macs
    model.picks.copy_(torch.tensor([2, 3]))
    assert structured_stats(measure(model, (3, 4, 4))).total_macs == dead + 2 * 8 * 16


def test_weights_quantizer_switches_and_modes_do_not_matter():
    model = Model()
    attach_weight_quantizers(model, [], "deadzone", {})
    before, graph = fingerprint(model), trace(model, (3, 4, 4))
    nn.init.zeros_(model.conv.parametrizations.weight.original)
    model.eval()
    model(torch.rand(1, 3, 4, 4))
    assert fingerprint(model) == before
    assert trace(model, (3, 4, 4)) is graph
