"""Batches that a user's loader may give, at each function that takes one."""

import numpy as np
import pytest
import torch
from cases import each
from torch import nn

from codeq import Evaluator, attach_activation_quantizers, calibrate
from codeq.analysis.activations import activation_levels
from codeq.analysis.sensitivity import sensitivity
from codeq.common.errors import CodeqError
from codeq.compaction import cut_channels, prove

INPUT = (1, 4, 4)
X, Y = torch.rand(2, *INPUT), torch.tensor([0, 1])
TAKES = r"must be inputs or \(inputs, labels\), Tensors"
UNKNOWN = {
    "is a value of type dict": {"pixel_values": X, "labels": Y},
    "is a value of type ndarray": X.numpy(),
    "is a value of type str": "abc",
    "begins with a value of type ndarray": (X.numpy(), Y.numpy()),
    "begins with a value of type list": ([X], [Y]),
    "is a value of type tuple": (),
}


@each(
    ("batches", "message"),
    [
        (None, "batches=None: must be a list of batches or a loader"),
        (3, "batches=3: must be"),
        (X, r"one tensor, float32 \[2, 1, 4, 4\]: must be a list of batches"),
        ((X, Y), r"one batch of float32 \[2, 1, 4, 4\] and labels int64 \[2\]: must be a list, \[\(inputs, labels\)\]"),
        ([X, Y.int()], "one batch of"),
    ],
)
def test_what_is_no_list_of_batches_is_refused(batches, message):
    calls = [lambda: calibrate(quantized(), batches), lambda: prove(network(), network(), batches)]
    if batches is not None:  # no loader: costs alone
        calls.append(lambda: Evaluator(network(), INPUT).evaluate(network(), batches))
    for call in calls:
        with pytest.raises(CodeqError, match=message):
            call()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def quantized():
    net = network()
    attach_activation_quantizers(net, X)
    return net


ENTRIES = {
    "evaluate": lambda batch: Evaluator(network(), INPUT).evaluate(network(), [batch]),
    "calibrate": lambda batch: calibrate(quantized(), [batch]),
    "prove": lambda batch: prove(network(), network(), [batch]),
    "cut": lambda batch: cut_channels(network(), [batch], 0.5, INPUT),
}
each_entry = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES.keys())


@each_entry
@pytest.mark.parametrize(("found", "batch"), UNKNOWN.items(), ids=UNKNOWN.keys())
def test_other_things_than_tensors_are_named(entry, found, batch):
    with pytest.raises(CodeqError, match=rf"{found}: {TAKES}"):
        entry(batch)


@each_entry
def test_pairs_of_tensors_are_taken(entry):
    entry((X, Y))
    entry([X, Y, ["a name", "another"]])


@pytest.mark.parametrize("entry", ["evaluate", "cut"])
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, r"has no labels: must be \(inputs, labels\), Tensors"),
        ((X, np.array([0, 1])), "has labels of type ndarray"),
        ((X, [0, 1]), "has labels of type list"),
        ((X, torch.tensor([0, 2])), "1 of 2 labels are none of the 2 classes of the model"),
        ((X, torch.tensor([-1, 1])), "1 of 2 labels are none of the 2 classes of the model"),
    ],
)
def test_labels_are_class_numbers_where_they_are_needed(entry, batch, message):
    with pytest.raises(CodeqError, match=message):
        ENTRIES[entry](batch)


@each_entry
def test_floats_of_numpy_are_taken(entry):
    entry((torch.from_numpy(X.numpy().astype(np.float64)), Y))


def test_scans_take_floats_of_numpy():
    net = quantized()
    calibrate(net, [X])
    wide, narrow = ([(x, Y)] for x in (X.double(), X))
    assert activation_levels(net.eval(), wide).keys() == activation_levels(net, narrow).keys()
    scans = [sensitivity(network(), batches, bits=[4], dead_zones=[0.5], layers=["0"]) for batches in (wide, narrow)]
    assert scans[0].equals(scans[1])


def test_the_format_of_inputs_changes_no_accuracy():
    net = network()
    evaluator = Evaluator(net, INPUT)
    assert evaluator.accuracy(net, [(X.double(), Y)]) == evaluator.accuracy(net, [(X, Y)])
    wide = network().double()
    assert evaluator.accuracy(wide, [(X, Y)]) == evaluator.accuracy(wide, [(X.double(), Y)])
