"""Snapshots of objects of other packages: they raise where they are read, lead to whole packages, or compare oddly."""

import numpy as np
import pydantic
import pytest
import torch
from cases import each
from torch import nn

from codeq.graph.fingerprint import fingerprint
from codeq.graph.snapshots import Snapshots
from codeq.graph.tracing import trace


class Unfinished:
    """As the serializer of a pydantic class that is not complete yet."""

    __slots__ = ("__private", "missing")

    def __init__(self):
        self.__private = [1]

    def __getattr__(self, name):
        raise AttributeError(name) if name.startswith("__") else RuntimeError(name)

    def append(self):
        self.__private.append(2)


class Proxy:
    """As an object of a request, outside of one."""

    @property
    def __class__(self):
        raise RuntimeError

    @property
    def __dict__(self):
        raise RuntimeError


class Incomparable(int):
    def __eq__(self, other):
        raise TypeError

    def __hash__(self):
        return 0


class Settings(pydantic.BaseModel):
    width: int = 4


# In a list, since pytest looks at what is global. The masked value fills itself when its numbers are read.
OBJECTS = [np.ma.masked, Unfinished(), Proxy(), pydantic.BaseModel]


class Reading(nn.Linear):
    """Reads such objects, and keeps one."""

    def __init__(self, kept=None):
        super().__init__(4, 4)
        self.kept = kept

    def forward(self, x):
        return nn.functional.linear(x, self.weight) * len(OBJECTS)


@each("kept", [Settings(), np.ma.masked, Incomparable(1), torch.eye(3, dtype=torch.int).to_sparse()])
def test_objects_of_other_packages_stop_no_trace(kept):
    model = Reading(kept)
    assert [op.channels for op in trace(model, (4,)).weighted] == [4]
    assert [op.channels for op in trace(model, (4,)).weighted] == [4]


def append(kept):
    kept.append()


def mask(kept):
    kept[0] = np.ma.masked


def widen(kept):
    kept.width += 1


@each(("kept", "change"), [(Unfinished(), append), (np.ma.array([1, 2]), mask), (Settings(), widen)])
def test_what_they_store_is_compared(kept, change):
    model = Reading(kept)
    before = fingerprint(model)
    assert fingerprint(model) == before
    change(kept)
    assert fingerprint(model) != before


@pytest.mark.parametrize("found", [pydantic, pydantic.BaseModel, pydantic.create_model, trace])
def test_installed_packages_are_not_followed(found):
    snapshots = Snapshots()
    snapshots.value(found)
    assert snapshots.code() == []
