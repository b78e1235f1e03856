"""The proof refuses what it cannot compare: values, shapes, types and labels that only seem to agree."""

import copy
from collections import namedtuple
from math import inf, nan

import pytest
import torch
from cases import each
from torch import nn

from codeq.common.errors import CodeqError
from codeq.compaction import compact, prove
from codeq.compaction.proof import _count_flipped
from codeq.flow.precision import DoublePrecision
from codeq.quantizer.calibration import calibrate


class Returns(nn.Module):
    """A model with one weight that returns what a function makes of its input."""

    def __init__(self, function, weight=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([weight]))
        self.function = function

    def forward(self, x):
        return self.function(x * self.scale)


def proof_of(first, second, batch=None):
    return prove(Returns(first), Returns(second), [torch.arange(6.0).reshape(3, 2) if batch is None else batch])


def same(x):
    return x


SIDES = [(True, False), (False, True), (True, True)]


@each("value", [nan, inf, -inf])
@each("sides", SIDES)
def test_outputs_that_are_not_finite_are_never_equal(value, sides):
    def spoilt(x):
        return torch.where(x == 4, torch.full_like(x, value), x)

    with pytest.raises(CodeqError, match="not finite"):
        proof_of(*(spoilt if spoil else same for spoil in sides))


def test_a_later_output_and_a_later_batch_are_looked_at_too():
    def second_output(x):
        return x, (x / 0 if x.max() > 9 else x)

    batches = [torch.ones(1, 2), torch.full((1, 2), 10.0)]
    with pytest.raises(CodeqError, match="output 1 of the first model is not finite"):
        prove(Returns(second_output), Returns(second_output), batches)


@each("other", [
    lambda x: x[:, :1], lambda x: x[:, 0], lambda x: x[0], lambda x: x.sum(), lambda x: x[None], lambda x: x.long(),
])  # fmt: skip
def test_shapes_and_types_that_differ_are_never_equal(other):
    for pair in ((same, other), (other, same)):
        with pytest.raises(CodeqError, match="they are not equal"):
            proof_of(*pair)


def test_a_missing_output_is_never_equal():
    with pytest.raises(CodeqError, match="2 and 1 tensors"):
        proof_of(lambda x: (x, x), same)


@pytest.mark.parametrize("nothing", [lambda _: None, lambda x: x[:, :0], lambda _: {}])
def test_no_numbers_prove_nothing(nothing):
    with pytest.raises(CodeqError, match="no numbers"):
        proof_of(nothing, nothing)


def test_batches_without_images_do_not_count():
    net, empty = nn.Linear(2, 2), torch.empty(0, 2)
    assert prove(net, copy.deepcopy(net), [empty, torch.ones(3, 2)]).inputs == 3
    with pytest.raises(CodeqError, match="no batches with inputs"):
        prove(net, copy.deepcopy(net), [empty])


def test_outputs_in_tuples_and_named_tuples_of_any_size():
    Pair = namedtuple("Pair", "scores empty")
    proof = proof_of(lambda x: Pair(x, x[:, :0]), lambda x: Pair(x + 1, x[:, :0]))
    assert (proof.max_error, proof.relative_error, proof.flipped) == (1.0, 0.2, 0)


def test_integer_outputs_are_compared_without_wrapping_or_rounding():
    big = 2**60
    assert proof_of(lambda x: x.long() + big, lambda x: x.long() + big + 1).max_error == 1.0
    assert proof_of(lambda x: x.to(torch.uint8), lambda x: (x + 1).to(torch.uint8)).max_error == 1.0
    classes = proof_of(lambda x: x.argmax(1), lambda x: x.argmin(1))
    assert (classes.max_error, classes.flipped) == (1.0, 3)
    assert proof_of(lambda x: x > 2, lambda x: x > 3).max_error == 1.0


def test_complex_outputs():
    assert proof_of(lambda x: torch.complex(x, x), lambda x: torch.complex(x, x + 2)).max_error == 2.0


def test_a_model_that_overwrites_its_input_does_not_change_the_other_ones():
    class Overwrites(Returns):
        def forward(self, x):
            return x.mul_(2) * self.scale

    proof = prove(Overwrites(same), Returns(lambda x: 2 * x), [torch.ones(1, 2)])
    assert proof.max_error == 0


def test_weights_shared_through_a_view_are_the_same_weights():
    net = nn.Linear(2, 2)
    view = copy.deepcopy(net)
    view.weight = nn.Parameter(net.weight.detach()[:])
    with pytest.raises(CodeqError, match="share weights"):
        prove(net, view, [torch.ones(1, 2)])


X = torch.arange(6.0).reshape(3, 2)
LABELS = {
    "column": torch.tensor([[1], [1], [0]]), "row": torch.tensor([[1, 1, 0]]),
    "one-hot": torch.eye(2)[[1, 1, 0]].long(), "float": torch.tensor([1.0, 1.0, 0.0]),
    "too few": torch.tensor([1, 1]), "list": [1, 1, 0], "scalar": torch.tensor(1),
}  # fmt: skip


@each("labels", LABELS.values())
def test_labels_that_are_not_class_numbers(labels):
    with pytest.raises(CodeqError, match="labels are"):
        proof_of(same, lambda x: x + 0, (X, labels))


@pytest.mark.parametrize("scores", [lambda x: x[:, 0], lambda x: x[..., None], lambda x: x.long()])
def test_outputs_that_are_not_class_scores_have_no_accuracy(scores):
    with pytest.raises(CodeqError, match="class scores"):
        proof_of(scores, scores, (X, torch.tensor([1, 1, 0])))
    assert proof_of(scores, scores, (X,)).masked_accuracy is None


@each("dtype", [torch.uint8, torch.uint16])
def test_accuracy_counts_the_labelled_inputs(dtype):
    labels = torch.tensor([1, 1, 0], dtype=dtype)
    proof = prove(Returns(same), Returns(lambda x: -x), [(X, labels), X])
    assert (proof.masked_accuracy, proof.compacted_accuracy, proof.inputs) == (2 / 3, 1 / 3, 6)


@each("cast", [
    lambda x: x.float(), lambda x: x.half(), lambda x: x.to(torch.bfloat16), lambda x: x.to(dtype=torch.float16),
    lambda x: x.type(torch.float32), lambda x: x.type(torch.FloatTensor), lambda x: x.type("torch.HalfTensor"),
    lambda x: x * torch.full((1,), 1 / 3), lambda x: x + torch.zeros(1).fill_(1 / 3),
])  # fmt: skip
def test_precision_that_a_forward_lowers_is_kept(cast):
    x = torch.full((1, 2), 1 / 3, dtype=torch.double)
    with DoublePrecision(torch.double):
        assert cast(x).dtype == torch.double
        assert cast(x)[0, 0].item() in (1 / 3, 1 / 9, 2 / 3)
    assert torch.get_default_dtype() == torch.float32
    assert proof_of(cast, lambda x: cast(x) + 1e-9, x.float()).max_error == pytest.approx(1e-9, rel=1e-3)


def test_a_network_whose_outputs_are_not_finite_is_not_compacted():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].bias[0] = nan
    with pytest.raises(CodeqError, match="not finite"):
        compact(net, torch.ones(1, 1, 2, 2))


class Masked(nn.Module):
    """Logits of which some are set to a number that no logit has, as for classes that do not exist."""

    def __init__(self, seed: int, mask: float, noise: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.fc, self.mask, self.noise = nn.Conv2d(3, 4, 3), nn.Linear(4, 6), mask, noise

    def forward(self, x):
        y = self.fc(self.conv(x).mean((2, 3)))
        y = y + self.noise * torch.rand_like(y)
        return torch.cat([y[:, :2], torch.full_like(y[:, 2:], self.mask)], 1)


@each("mask", [-1e30, -1e10])
def test_masked_values_do_not_hide_differences_of_the_others(mask):
    x = torch.randn(16, 3, 5, 5)
    proof = prove(Masked(0, mask), Masked(1, mask), [x])
    assert proof.relative_error > 0.1
    assert proof.flipped > 0
    assert compact(Masked(0, mask), x).proof.relative_error < 1e-12
    with pytest.raises(CodeqError, match="something else than the model, which may be random"):
        compact(Masked(0, mask, noise=1.0), x)


def test_what_rounding_leaves_of_larger_values_is_no_difference():
    proof = proof_of(lambda x: x - x, lambda x: (x - x) + 1e-17, torch.ones(2, 2))
    assert proof.relative_error == 1e-17  # nothing tells the scale
    proof = proof_of(lambda x: x * 1e-17, lambda x: x * 2e-17, torch.tensor([[1.0, 1e17]]))
    assert proof.relative_error == pytest.approx(1.0)
    small = torch.tensor([[1e-17, 1.0, 2.0]])
    assert proof_of(same, lambda x: torch.cat([2 * x[:, :1], x[:, 1:]], 1), small).relative_error < 1e-16


@pytest.mark.parametrize("label", [-100, -1, 2, 255])
def test_labels_of_no_class_are_no_wrong_predictions(label):
    net = nn.Linear(2, 2)
    with pytest.raises(
        CodeqError, match="1 of 3 labels are none of the 2 classes of the model: must be integers 0 … 1"
    ):
        prove(net, copy.deepcopy(net), [(X, torch.tensor([1, label, 0]))])


def test_a_network_that_takes_no_single_image_has_costs():
    class Squeezing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.bn(self.conv(x).mean((2, 3), keepdim=True).squeeze()))

    net, x = Squeezing().eval(), torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        net.conv.weight[1] = 0
    proof = compact(net, x).proof
    assert (proof.masked_macs, proof.compacted_macs) == (16 * 27 * 4 + 4 * 2, 16 * 27 * 3 + 3 * 2)


def test_a_tensor_in_place_of_batches_is_refused():
    net = nn.Linear(2, 2)
    with pytest.raises(CodeqError, match=r"batches: one tensor, float32 \[3, 2\]: must be a list of batches"):
        prove(net, copy.deepcopy(net), torch.ones(3, 2))
    with pytest.raises(CodeqError, match="batches: one tensor"):
        calibrate(net, torch.ones(3, 2))


def test_a_row_of_integers_is_flipped_where_one_of_them_is():
    expected, found = torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([[1, 2], [3, 0], [0, 0]])
    assert _count_flipped(expected, found, 3) == 2
