import pytest
import torch
from cases import each
from networks import Function, RunningMaximum
from torch import nn

from codeq import attach_weight_quantizers, named_quantizers, toggle_quantization
from codeq.common.errors import CodeqError
from codeq.data import load_dataset
from codeq.training.checking import check_batches, check_outputs, warn_of_blocked_gradients
from codeq.training.distributed import Ranks
from codeq.training.execution import deterministic

SIZE = (3, 32, 32)


def head(*layers):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), *layers, nn.Linear(8, 10))


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("synthetic")  # 512 images


@pytest.mark.parametrize(
    ("batch_size", "world", "legal"),
    [
        (511, 1, False), (510, 1, True), (512, 1, True), (1, 1, False), (2, 1, True), (600, 1, True),
        (510, 2, False), (508, 2, True), (3, 2, False), (509, 2, False), (64, 2, True),
    ],
)  # fmt: skip
def test_a_batch_of_one_image_under_batchnorm_is_found(dataset, batch_size, world, legal):
    model = head(nn.BatchNorm1d(8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for rank in range(world):
        ranks = Ranks(rank, world)
        if legal:
            check_batches(model, dataset, None, batch_size, ranks)
        else:
            shared = " shared by 2 processes" if world > 1 else ""
            with pytest.raises(CodeqError, match=rf"batch_size={batch_size}: of 512 training images{shared}, a batch"):
                check_batches(model, dataset, None, batch_size, ranks)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["no norm", "layer norm", "convolution"])
def test_a_batch_of_one_image_is_no_mistake_where_a_channel_has_more_values(dataset, name):
    convolutions = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 10)
    models = {"no norm": head(), "layer norm": head(nn.LayerNorm(8)), "convolution": nn.Sequential(*convolutions)}
    check_batches(models[name], dataset, None, 511, Ranks())


def test_fewer_images_than_processes_are_found(dataset):
    with pytest.raises(CodeqError, match="fewer than 2 processes can share"):
        check_batches(head(), dataset, None, 511, Ranks(1, 2))


class Returns(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.layer, self.output = nn.Linear(3072, 10), output

    def forward(self, x):
        return self.output(self.layer(x.flatten(1)))


@each(
    ("output", "message"),
    [
        (lambda y: (y, y), "returns a tuple for one image"),
        (lambda y: {"logits": y}, "returns a dict for one image"),
        (lambda y: y[:, :7], r"returns torch.float32 \[1, 7\] for one image: .* \[1, 10\]"),
        (lambda y: y.squeeze(), r"returns torch.float32 \[10\] for one image"),
        (lambda y: y.argmax(1, keepdim=True), r"returns torch.int64 \[1, 1\]"),
    ],
)
def test_outputs_that_are_no_logits_are_found(output, message):
    with pytest.raises(CodeqError, match=message):
        check_outputs(Returns(output), SIZE, 10)


@each(
    ("model", "reason"),
    [
        (Returns(lambda y: y).double(), "RuntimeError: mat1 and mat2 must have the same dtype"),
        (Returns(lambda y: y).bfloat16(), "RuntimeError: mat1 and mat2 must have the same dtype"),
        (Returns(lambda y: y.squeeze().flatten(1)), "IndexError: Dimension out of range"),
    ],
)
def test_a_model_that_takes_no_single_image_of_float32_is_found(model, reason):
    with pytest.raises(CodeqError, match=rf"^Returns fails on inputs of float32 \[1, 3, 32, 32\]: {reason}"):
        check_outputs(model, SIZE, 10)


def test_a_model_made_in_another_default_dtype_is_found():
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(CodeqError, match="fails on inputs of float32"):
            check_outputs(Returns(lambda y: y), SIZE, 10)
    finally:
        torch.set_default_dtype(torch.float32)


def test_logits_of_any_precision_pass():
    check_outputs(Returns(lambda y: y), SIZE, 10)
    check_outputs(Returns(lambda y: y.bfloat16()), SIZE, 10)


def quantized(function):
    model = head()
    attach_weight_quantizers(model, [], Function, {"function": function})
    return model


@each(
    ("function", "blocks"),
    [
        (lambda w: (w * 8).round() / 8, True),
        (lambda w: w.detach(), True),
        (lambda w: torch.zeros_like(w, requires_grad=True) * 1, True),
        (lambda w: w + ((w * 8).round() / 8 - w).detach(), False),
        (lambda w: w - w.mean(), False),  # the gradient of whose sum is 0
        (lambda w: w * (w.abs() > w.abs().median()), False),
    ],
)
def test_quantizers_that_pass_no_gradient_are_named_before_a_training(function, blocks, caplog):
    caplog.clear()
    model, random = quantized(function), torch.get_rng_state()
    warn_of_blocked_gradients(model)
    assert ("2 layers will not train: their quantizers pass no gradient to the weights (1, 2)" in caplog.text) == blocks
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_layers_and_dead_ones_are_no_quantizers_that_block_gradients(caplog):
    frozen, off = quantized(torch.round), quantized(torch.round)
    frozen.requires_grad_(False)
    toggle_quantization(off, False)
    for kwargs in ({}, {"scale": "learned"}, {"init_deadzone_logit": 0.0}):
        dead = head()
        for parameter in dead.parameters():
            nn.init.zeros_(parameter)
        attach_weight_quantizers(dead, [], "deadzone", kwargs)
        warn_of_blocked_gradients(dead)
    for model in (frozen, off, head()):
        warn_of_blocked_gradients(model)
    assert not caplog.records


def test_the_state_of_a_quantizer_stays_when_its_gradient_is_tried(caplog):
    model = head()
    attach_weight_quantizers(model, [], RunningMaximum, {})
    before = [quantizer.largest.item() for _, quantizer in named_quantizers(model)]
    warn_of_blocked_gradients(model)
    assert [quantizer.largest.item() for _, quantizer in named_quantizers(model)] == before
    assert "will not train" in caplog.text  # it rounds


def test_logits_without_a_gradient_are_refused():
    with pytest.raises(CodeqError, match=r"^Returns returns logits without a gradient in training mode"):
        check_outputs(Returns(torch.detach), SIZE, 10)
    check_outputs(Returns(torch.detach).requires_grad_(False), SIZE, 10)  # which has an error of its own


@each(
    ("output", "warned"),
    [
        (lambda y: y.softmax(1), True),
        (lambda y: torch.zeros_like(y).softmax(1) + 0 * y, True),
        (lambda y: y.log_softmax(1), False),
        (lambda y: y.sigmoid(), False),
        (lambda y: y, False),
        (lambda y: 0 * y, False),
    ],
)
def test_probabilities_in_place_of_logits_are_warned_of(output, warned, caplog):
    caplog.clear()
    check_outputs(Returns(output), SIZE, 10)
    assert ("Returns returns probabilities" in caplog.text) == warned


class TwoHeads(nn.Module):
    """It returns the scores of a second head while it trains."""

    def __init__(self):
        super().__init__()
        self.norm, self.layer, self.drop = nn.BatchNorm1d(3072), nn.Linear(3072, 10), nn.Dropout()

    def forward(self, x):
        y = self.drop(self.layer(self.norm(x.flatten(1))))
        return (y, y) if self.training else y


class FailsInTraining(TwoHeads):
    def forward(self, x):
        return x.nonsense if self.training else super().forward(x)


def test_outputs_of_the_training_mode_are_found_as_well_and_the_trial_leaves_no_trace():
    model, random = TwoHeads(), torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CodeqError, match=r"returns a tuple for 2 images in training mode .*aux_logits"):
        check_outputs(model, SIZE, 10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    with pytest.raises(CodeqError, match=r"^FailsInTraining fails in training mode on .* \[2, .*: AttributeError"):
        check_outputs(FailsInTraining(), SIZE, 10)


class Put(torch.autograd.Function):
    """Its backward pass has no deterministic kernel."""

    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, grad):
        return torch.zeros_like(grad).put_(torch.arange(grad.numel()), grad)


def test_a_backward_pass_that_cannot_be_deterministic_is_found():
    model = Returns(Put.apply)
    check_outputs(model, SIZE, 10)
    with pytest.raises(CodeqError, match=r"set deterministic: false\. put_"), deterministic(True):
        check_outputs(model, SIZE, 10)
    for output in (lambda y: Put.backward(None, y), lambda y: Put.backward(None, y) if len(y) > 1 else y):
        with pytest.raises(CodeqError, match=r"set deterministic: false\. Returns fails .* put_"), deterministic(True):
            check_outputs(Returns(output), SIZE, 10)
    with deterministic(True):
        check_outputs(Returns(torch.clone), SIZE, 10)
        check_outputs(Returns(torch.clone).requires_grad_(False), SIZE, 10)
    assert all(parameter.grad is None for parameter in model.parameters())
