"""Deep copies of a quantized model and their original do not affect each other."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from cases import each
from torch import nn
from torch.nn.utils import parametrize

from codeq.common.errors import CodeqError
from codeq.graph.baking import baked_copy
from codeq.quantizer.attach import (
    attach_weight_quantizers,
    detach_weight_quantizers,
    named_quantizers,
    toggle_quantization,
)
from codeq.quantizer.layers import latent_weight

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def quantized():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    attach_weight_quantizers(model, [], "deadzone", {"max_bits": 3})
    return model


def is_plain(model):
    return [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear]


@each("order", list(itertools.permutations(range(3))))
def test_original_copy_and_copy_of_the_copy_are_detached_in_any_order(order):
    model = quantized()
    before = model(X)
    family = [model, copy.deepcopy(model)]
    family.append(copy.deepcopy(family[1]))
    for step, index in enumerate(order, 1):
        detach_weight_quantizers(family[index])
        assert is_plain(family[index])
        for other in family:
            assert torch.equal(other(X), before)
        assert sum(len(list(named_quantizers(other))) for other in family) == 2 * (3 - step)


def test_a_layer_copied_alone_is_independent_too():
    model = quantized()
    layer, before = copy.deepcopy(model[0]), model(X)
    detach_weight_quantizers(layer)
    assert torch.equal(layer(X), model[0](X))
    assert torch.equal(model(X), before)


def test_inside_a_cache_a_copy_reads_its_own_weights():
    model = quantized()
    other = copy.deepcopy(model)
    with torch.no_grad():
        latent_weight(other[0]).zero_()
    with parametrize.cached():
        assert model[0].weight.abs().sum() > 0
        assert other[0].weight.abs().sum() == 0


def test_toggling_and_training_a_copy_leave_the_original_alone():
    model = quantized()
    before, other = model(X), copy.deepcopy(model)
    toggle_quantization(other, False)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert torch.equal(model(X), before)
    assert not torch.equal(other(X), before)


def test_quantizers_can_be_attached_to_a_copy_after_detaching_it():
    model = quantized()
    other, before = copy.deepcopy(model), model(X)
    with pytest.raises(CodeqError, match="already has a weight quantizer"):
        attach_weight_quantizers(other, [], "deadzone", {})
    detach_weight_quantizers(other)
    attach_weight_quantizers(other, ["0"], "uniform", {"bitwidth": 2})
    assert len(other[2].weight.unique()) <= 3
    detach_weight_quantizers(model)
    assert torch.equal(model(X), before)
    assert [name for name, _ in named_quantizers(other)] == ["2"]


def test_the_state_of_a_copy_loads_into_the_original_and_back():
    model = quantized()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.7)
    file = io.BytesIO()
    torch.save(other.state_dict(), file)
    file.seek(0)
    assert list(other.state_dict()) == list(model.state_dict())
    model.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(model(X), other(X))


def test_a_detached_model_pickles():
    model = copy.deepcopy(quantized())
    before = model(X)
    detach_weight_quantizers(model)
    assert torch.equal(pickle.loads(pickle.dumps(model))(X), before)


def test_other_parametrizations_of_a_copied_layer_survive_detaching():
    model = quantized()
    parametrize.register_parametrization(model[0], "bias", nn.Tanh())
    other = copy.deepcopy(model)
    before = model(X)
    detach_weight_quantizers(other)
    assert parametrize.is_parametrized(other[0], "bias")
    assert torch.equal(other(X), before)
    assert torch.equal(model(X), before)


class OwnCopy(nn.Linear):
    """A layer that says itself how it is copied."""

    copies = 0

    def __deepcopy__(self, memo):
        twin = self.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        OwnCopy.copies += 1
        return twin


def test_a_layers_own_way_of_copying_is_used():
    model = nn.Sequential(OwnCopy(4, 2))
    attach_weight_quantizers(model, [], "deadzone", {"max_bits": 2})
    before, other = model(X), copy.deepcopy(copy.deepcopy(model))
    assert OwnCopy.copies == 2
    detach_weight_quantizers(other)
    assert type(other[0]) is OwnCopy
    assert torch.equal(other(X), before)
    assert torch.equal(model(X), before)


def test_copies_with_plain_weights_have_their_own_also_where_weights_are_cached():
    with torch.no_grad(), parametrize.cached():
        for _ in range(40):  # modules of later copies lie where those of earlier ones were
            model = quantized()
            assert torch.equal(baked_copy(model)[0].weight, model[0].parametrizations.weight())
            del model
