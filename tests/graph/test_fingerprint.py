"""Networks to be traced again: whatever the graph depends on may change between two calls."""

import gc
import sys
import weakref
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType, ModuleType, SimpleNamespace

import numpy as np
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
TERM = 1
BASE = 0
HIDDEN = 1
INSIDE = 1

MODULE = ModuleType("settings of a project")
MODULE.factor = 1


class Defaults:
    added = 0


@dataclass(slots=True)
class Slots:
    power: int = 1


def shifted(x):
    return x * MODULE.factor + SHIFT + Defaults.added


class Scaler:
    """An object whose class reads such an object."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return x * (self.factor + SCALER.factor)


SCALER = Scaler(1)


def cut_at(x, *, size=4):
    return x[:, :size]


class Base(nn.Module):
    def scaled(self, x):
        return x + BASE

    def forward(self, x):
        return x + sum(TERM * part for part in (x, x))


class Model(Base):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.options, self.function = nn.Conv2d(3, 4, 1), nn.ReLU(), {"twice": [False]}, F.relu
        self.fc = nn.Linear(4, 4)
        self.register_buffer("order", torch.arange(4))
        self.slots, self.queue = Slots(), deque([1])
        self.keep, self.shape, self.picks = np.int64(4), (np.int64(2), np.float32(2)), slice(0, 4)
        self.order_of_parts, self.method, self.codes = range(4), torch.Tensor.relu, bytearray(b"ab")
        self.cut_at = cut_at

    def scaled(self, x):
        x = super().scaled(x)
        return shifted(x) * self.SCALED_BY + SETTINGS.offset[0] + self.LIMITS.low

    SCALED_BY = 1
    LIMITS = SimpleNamespace(low=0)

    @torch.no_grad()
    def hidden(self, x):
        return SCALER(self.inside(x)) * HIDDEN

    def inside(self, x):
        return x * INSIDE

    @property
    def divisor(self):
        return DIVISOR

    def forward(self, x):
        x = self.hidden(super().forward(self.scaled(self.function(self.act(self.conv(x)))))) / self.divisor
        x = self.fc(x.mean((2, 3)) * SCALE)
        return self.fc(x) if self.options["twice"][0] else x


def replaced(name):
    def change(_model):
        globals()[name] += 1

    return change


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
    "global": replaced("SCALE"),
    "global object in a method": lambda _: SETTINGS.offset.__setitem__(0, SETTINGS.offset[0] + 1),
    "global of a helper": replaced("SHIFT"),
    "global of a property": replaced("DIVISOR"),
    "global in a generator of a base": replaced("TERM"),
    "global in a method of a base": replaced("BASE"),
    "global in a decorated method": replaced("HIDDEN"),
    "global in a method that a decorated one calls": replaced("INSIDE"),
    "object that a class of objects reads": lambda _: setattr(SCALER, "factor", SCALER.factor + 1),
    "object of the class": lambda m: setattr(m.LIMITS, "low", m.LIMITS.low + 1),
    "default by keyword": lambda m: setattr(m, "cut_at", FunctionType(cut_at.__code__, globals())),
    "number of NumPy": lambda m: setattr(m, "keep", np.int64(3)),
    "numbers of NumPy": lambda m: setattr(m, "shape", (np.int64(2), np.float32(3))),
    "slice": lambda m: setattr(m, "picks", slice(0, 2)),
    "range": lambda m: setattr(m, "order_of_parts", range(3)),
    "method of a type in C": lambda m: setattr(m, "method", torch.Tensor.sigmoid),
    "bytes": lambda m: m.codes.__setitem__(0, 0),
    "attribute of a module": lambda _: setattr(MODULE, "factor", MODULE.factor + 1),
    "attribute of another class": lambda _: setattr(Defaults, "added", Defaults.added + 1),
    "slot": lambda m: setattr(m.slots, "power", 2),
    "queue": lambda m: m.queue.append(2),
    "attribute of the class": change_class,
    "values of an index": lambda m: m.order.copy_(m.order.flip(0)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name, monkeypatch):
    for name_of_global in ("SCALE", "SHIFT", "DIVISOR", "TERM", "BASE", "HIDDEN", "INSIDE"):
        monkeypatch.setitem(globals(), name_of_global, 1)
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


class Strided(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, stride=SCALE)


def test_figures_follow_a_global_of_a_layer_with_a_quantizer(monkeypatch):
    model = nn.Sequential(Strided(3, 4, 1))
    attach_weight_quantizers(model, [], "deadzone", {})
    assert dense_stats(measure(model, (3, 8, 8))).total_macs == 12 * 64
    monkeypatch.setitem(globals(), "SCALE", 2)
    assert dense_stats(measure(model, (3, 8, 8))).total_macs == 12 * 16


class Keeping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.keep = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), 4

    def forward(self, x):
        return self.b(self.a(x)[:, :, : self.keep])


def test_figures_follow_numbers_of_numpy():
    model = Keeping()
    found = []
    for model.keep in np.arange(1, 4):
        found.append(dense_stats(measure(model, (3, 8, 8))).total_macs - 12 * 64)
    assert found == [8 * 8 * keep for keep in (1, 2, 3)]


HELPERS = """
import os
STRIDE, CONFIG = 1, {"stride": 1}

class Config:
    stride = 1

class Cut:
    def __init__(self):
        self.stride = STRIDE

    def cut(self, x):
        return x[:, :, :: self.stride * STRIDE]

class Switch:
    stride = 1

    @staticmethod
    def static(x):
        return x[:, :, :: Switch.stride]

    @classmethod
    def of_class(cls, x):
        return x[:, :, :: cls.stride]

def block(x):
    return x[:, :, ::STRIDE]

def stride():
    return CONFIG["stride"]

def outer(x):
    return block(x)
"""
helpers = ModuleType("helpers_of_a_project")
exec(HELPERS, vars(helpers))
WAY = ContextVar("stride", default=1)
Switch, CUT = helpers.Switch, helpers.Cut()


class Way(nn.Module):
    outer = staticmethod(helpers.outer)

    def __init__(self):
        super().__init__()
        self.function = helpers.outer

    @property
    def stride(self):
        return helpers.Config.stride

    def forward(self, x):
        return x


def imports(_, x):
    import helpers_of_a_project

    return helpers_of_a_project.block(x)


def sets(owner, name, value=2):
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


REACHED = {
    "function of a module": (lambda _, x: helpers.block(x), sets(helpers, "STRIDE")),
    "replaced function of a module": (lambda _, x: helpers.block(x), sets(helpers, "block", lambda x: x)),
    "mapping of a module": (lambda *_: helpers.stride(), lambda m: m.setitem(helpers.CONFIG, "stride", 2)),
    "class of a module": (lambda *_: helpers.Config.stride, sets(helpers.Config, "stride")),
    "property": (lambda self, _: self.stride, sets(helpers.Config, "stride")),
    "static method": (lambda _, x: Switch.static(x), sets(helpers.Switch, "stride")),
    "class method": (lambda _, x: Switch.of_class(x), sets(helpers.Switch, "stride")),
    "context": (lambda *_: WAY.get(), lambda _: WAY.set(WAY.get() + 1)),
    "method of an object": (lambda _, x: CUT.cut(x), sets(helpers, "STRIDE")),
    "constructor": (lambda *_: helpers.Cut().stride, sets(helpers, "STRIDE")),
    "function in an attribute": (lambda self, x: self.function(x), sets(helpers, "STRIDE")),
    "function in the class": (lambda self, x: self.outer(x), sets(helpers, "STRIDE")),
    "import": (imports, sets(helpers, "STRIDE")),
    "environment": (lambda *_: helpers.os.getenv("STRIDE"), lambda m: m.setenv("STRIDE", "2")),
}


@pytest.mark.parametrize("name", REACHED)
def test_a_change_is_seen_through_what_functions_reach(name, monkeypatch):
    monkeypatch.setitem(sys.modules, helpers.__name__, helpers)
    way, change = REACHED[name]
    monkeypatch.setattr(Way, "forward", way)
    model = Way()
    before = fingerprint(model)
    assert fingerprint(model) == before
    change(monkeypatch)
    assert fingerprint(model) != before


def test_figures_follow_a_setting_of_a_helper_of_a_module(monkeypatch):
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.b(helpers.block(self.a(x)))

    model = Blocks()
    assert dense_stats(measure(model, (3, 8, 8))).total_macs == 12 * 64 + 8 * 64
    monkeypatch.setattr(helpers, "STRIDE", 2)
    assert dense_stats(measure(model, (3, 8, 8))).total_macs == 12 * 64 + 8 * 32


def test_a_fingerprint_keeps_no_model_alive():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model[0].forward = lambda x: F.conv2d(x, model[0].weight)
    kept, reference = fingerprint(model), weakref.ref(model)
    model = None
    gc.collect()
    assert kept
    assert reference() is None
