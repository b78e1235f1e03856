"""Operations of models besides layers: writes in place, views, hooks, weights in functional form, odd forwards."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from types import MethodType
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import each
from networks import shaken
from torch import nn
from torchvision import models

from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.flow import channel_flow
from codeq.graph.call_recording import record_calls
from codeq.graph.channels import coupled_groups, null_channels
from codeq.graph.ops import PerChannel
from codeq.graph.tracing import trace
from codeq.metrics import dense_stats, exact_stats, ledger, measure, nonzero_kernels, storage_bytes
from codeq.quantizer.attach import attach_weight_quantizers
from codeq.sparsity import coupled_group_lasso

SIZE = (3, 4, 4)


class Branches(nn.Module):
    """Two convolutions of the input, what `join` makes of their results, and a convolution of that."""

    def __init__(self, join: Callable) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(3, 4, 1, bias=False) for _ in range(2))
        self.c = nn.Conv2d(4, 2, 1, bias=False)
        self.join = join

    def forward(self, x):
        return self.c(self.join(self.a(x), self.b(x)))


def nulls_of(model: nn.Module, size=SIZE) -> dict[str, list[int]]:
    graph = trace(model, size)
    nonzero = {op.layer: nonzero_kernels(model.get_submodule(op.layer).weight) for op in graph.layers}
    return {name: np.flatnonzero(null_in).tolist() for name, (null_in, _) in null_channels(graph, nonzero).items()}


def zero_inputs(model: nn.Module, layer: str, size=SIZE) -> list[int]:
    """Look which input channels of a layer are zero for all inputs."""
    seen = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        copied = copy.deepcopy(model)
        copied(torch.rand(8, *size) - 0.5)
    handle.remove()
    return np.flatnonzero((seen[0].movedim(1, 0).flatten(1) == 0).all(1)).tolist()


EDGES = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.double)


def iadd(h, y):
    h += y
    return h


def into_slice(h, y):
    h[:, :2].add_(y[:, :2])
    return h


def set_channel(h, y):
    h[:, 0] = y[:, 0]
    return h


def through_chunk(h, y):
    first, _second = h.chunk(2, dim=1)
    first.add_(y[:, :2])
    return h


def base_after_view(h, y):
    view = h[:, :2]
    h.add_(y)
    return torch.cat([view, h[:, 2:]], 1)


def through_data(h, y):
    h.data.add_(y)
    return h


def into_out(h, y):
    torch.add(h, y, out=h)
    return h


def inplace_activation(h, y):
    kept = h
    F.relu(h.add_(y), inplace=True)
    return kept


WRITES = {
    "add_": lambda h, y: (h.add_(y), h)[1],
    "iadd": iadd,
    "slice": into_slice,
    "setitem": set_channel,
    "chunk": through_chunk,
    "base": base_after_view,
    "data": through_data,
    "out": into_out,
    "relu": inplace_activation,
    "copy_": lambda h, y: h.copy_(y),
    "fill_": lambda h, _: h.fill_(0.5),
    "index_add_": lambda h, y: h.index_add_(1, torch.arange(4), y),
    "masked_fill_": lambda h, _: h.masked_fill_(torch.tensor([True, False, False, False]).view(4, 1, 1), 1.0),
    "narrow": lambda h, y: (h.narrow(1, 0, 1).copy_(y[:, :1]), h)[1],
    "unbind": lambda h, _: (h.unbind(1)[0].add_(1), h)[1],
    "transposed": lambda h, y: (h.transpose(1, 2).add_(y.transpose(1, 2)), h)[1],
    "foreach": lambda h, y: (torch.ops.aten.add_(h, y), h)[1],
    "zero_": lambda h, y: (y.zero_(), h.add_(y))[1],
}


@each("name", WRITES)
def test_what_is_written_in_place_is_followed_or_unknown(name):
    torch.manual_seed(0)
    model = Branches(WRITES[name]).eval()
    with torch.no_grad():
        model.a.weight[:2] = 0  # what is written to channel 0 alone brings it back to life
        model.b.weight[1] = 0
    followed, seen = nulls_of(model)["c"], zero_inputs(model, "c")
    assert set(followed) <= set(seen)  # never null although alive
    assert followed == seen or trace(model, SIZE).unknown
    report = compact(model.double(), torch.randn(3, *SIZE, dtype=torch.double))
    assert report.proof.relative_error <= 1e-10


def test_a_sum_in_place_is_the_sum():
    model = Branches(WRITES["add_"])
    nn.init.zeros_(model.a.weight[:1])
    graph = trace(model, SIZE)
    assert not graph.unknown
    assert graph.trusted
    groups = coupled_groups(graph)
    assert groups.members(int(groups.writers["a"][0])) == ([("a", 0), ("b", 0)], [("c", 0)])


def test_several_tensors_overwritten_at_once_are_refused_by_place():
    model = nn.Sequential(
        OrderedDict(first=nn.Conv2d(3, 4, 1), then=Branches(lambda h, y: torch._foreach_add_([h, y], 1)[0]))
    )
    model.then.a = model.then.b = nn.Conv2d(4, 4, 1)
    with pytest.raises(CodeqError, match="then calls _foreach_add_"):
        trace(model, SIZE)


def revived(_module, _args, output):
    return output + 1


@pytest.mark.parametrize("kind", ["forward", "pre", "global", "call", "patched", "kwargs"])
def test_hooks_and_overridden_calls_are_followed(kind, request):
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 1, bias=False), c=nn.Conv2d(4, 2, 1, bias=False))).eval()
    nn.init.zeros_(model.a.weight[:1])
    if kind == "forward":
        model.a.register_forward_hook(revived)
    elif kind == "kwargs":
        model.a.register_forward_hook(lambda _module, _args, _kwargs, output: output + 1, with_kwargs=True)
    elif kind == "pre":
        model.c.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    elif kind == "global":
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, _, output: output + 1 if isinstance(module, nn.Conv2d) else None
        )
        request.addfinalizer(handle.remove)
    elif kind == "call":

        class Calls(nn.Conv2d):
            def __call__(self, x):
                return super().__call__(x) + 1

        model.a.__class__ = Calls
    else:
        model.a.forward = MethodType(lambda self, x: F.conv2d(x, self.weight) + 1, model.a)
    graph = trace(model, SIZE)
    assert nulls_of(model)["c"] == []
    assert any(isinstance(op, PerChannel) and not op.keeps_zero for op in graph.ops)
    assert [op.layer for op in graph.layers] == ["a", "c"]


def test_a_closure_around_the_model_is_refused_by_the_parameter_it_uses():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    model[1].register_forward_hook(
        lambda _, args, output: output + F.conv2d(args[0], model[0].weight[:, :1].expand(4, 4, 1, 1))
    )
    with pytest.raises(CodeqError, match=r"'0.weight' through a closure"):
        trace(model, SIZE)


def test_a_hook_that_only_scales_keeps_the_null_channel_and_one_that_looks_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 1))
    nn.init.zeros_(model[0].weight[:1])
    seen = []
    model[0].register_forward_hook(lambda _module, _args, output: seen.append(output.abs().mean()))
    assert nulls_of(model)["1"] == [0]
    assert not trace(model, SIZE).unknown


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.conv.weight, self.conv.bias, stride=2, padding=1))
        return F.linear(x.mean((2, 3)), self.fc.weight)


def test_layers_in_functional_form_count_as_those_layers():
    model = Functional().double().eval()
    nn.init.zeros_(model.conv.weight[:1])
    assert [(s.name, s.macs) for s in dense_stats(measure(model, SIZE)).layers] == [("conv", 27 * 4 * 4), ("fc", 20)]
    assert [call.macs for call in channel_flow(model, SIZE).layers] == [27 * 3 * 4, 15]
    report = compact(model, torch.randn(2, *SIZE, dtype=torch.double))
    assert report.proof.compacted_macs == 27 * 3 * 4 + 15


class Derived(nn.Module):
    """Uses the weights of its layer in another way than the layer does."""

    def __init__(self, use: Callable) -> None:
        super().__init__()
        self.fc, self.use = nn.Linear(4, 4), use

    def forward(self, x):
        return self.use(x, self.fc.weight)


@pytest.mark.parametrize(
    "use",
    [
        lambda x, w: x @ w.T,
        lambda x, w: F.linear(x, w * 2),
        lambda x, w: torch.einsum("ni,oi->no", x, w),
        lambda x, w: (x[:, None] * w).sum(2),
    ],
)
def test_layers_whose_weights_are_used_elsewhere_are_refused_by_name(use):
    model = Derived(use)
    graph = trace(model, (4,))
    assert (graph.uncounted, graph.trusted) == (("fc",), False)
    with pytest.raises(CodeqError, match="layer 'fc' cannot be counted"):
        measure(model, (4,))


class Beside(Derived):
    def forward(self, x):
        return self.use(self.fc(x), self.fc.weight)


@pytest.mark.parametrize(
    "use",
    [
        lambda y, w: y + w.new_zeros(len(y), 4),
        lambda y, w: y * w.new_tensor(2.0),
        lambda y, w: y + w.new_empty(4).fill_(1.0),
        lambda y, w: y * torch.ones_like(w).mean(),
        lambda y, w: y.to(w) + torch.arange(4).type_as(w),
        lambda y, w: y.to(w.dtype).view(-1, w.shape[0]),
    ],
)
def test_a_layer_whose_weight_is_read_for_its_type_or_shape_alone_is_counted(use):
    assert trace(Beside(use), (4,)).problems == ()
    assert dense_stats(measure(Beside(use), (4,))).total_macs == 16


def test_a_product_with_numbers_of_the_type_of_a_weight_is_no_use_of_the_weight():
    graph = trace(Beside(lambda y, w: y @ w.new_ones(4, 4)), (4,))
    assert graph.problems == ("call_method matmul multiplies by fixed numbers outside of a layer: not counted",)


def test_a_weight_returned_in_a_penalty_is_noted_and_its_layer_counted():
    records = measure(Beside(lambda y, w: (y, w.norm())), (4,))
    assert ([record.name for record in records], dense_stats(records).total_macs) == (["fc"], 16)
    assert records.notes[:1] == ("fc.weight is used outside of a layer, by others: not counted",)


def test_a_transformer_layer_counts_all_its_products():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    counted = {s.name: s.macs for s in dense_stats(measure(layer, (5, 8))).layers}
    tokens = 5
    assert counted == {
        "self_attn.in_proj_weight": tokens * 8 * 24, "self_attn.out_proj": tokens * 64,
        "linear1": tokens * 8 * 16, "linear2": tokens * 16 * 8,
    }  # fmt: skip
    assert sum(call.macs for call in channel_flow(layer, (5, 8)).layers) == sum(counted.values())


def test_torchvisions_vit_counts_all_its_products():
    model = models.VisionTransformer(image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16)
    total = dense_stats(measure(model)).total_macs
    assert total == 4 * 3 * 256 * 8 + 5 * (8 * 24 + 64 + 2 * 8 * 16) + 8 * 1000


def test_recurrent_layers_make_the_graph_untrusted():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.rnn(x)[0][:, -1])

    graph = trace(Recurrent(), (5, 4))
    assert graph.problems == ("rnn.weight_ih_l0 (GRU) is not counted",)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


def test_tied_weights_are_stored_once_and_die_together():
    model = Tied()
    graph = trace(model, (4,))
    assert graph.ties == (("a", "b"),)
    assert storage_bytes(model).float32 == 4 * (16 + 16)
    assert dense_stats(measure(model, (4,))).total_macs == 3 * 16  # every use costs
    groups = coupled_groups(graph)
    assert groups.count == 0  # the input of `a` is the input of the network, and its slices are those of `b`
    model.b.weight = nn.Parameter(model.a.weight.detach().clone())
    assert trace(model, (4,)).ties == ()
    assert coupled_groups(trace(model, (4,))).count == 8


def test_the_coupled_loss_counts_a_tied_weight_once():
    class Twins(nn.Module):
        """Two branches of one weight, read by one layer each."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(4))
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.c(F.relu(self.a(x))) + self.d(F.relu(self.b(x)))

    model = Twins()
    expected = sum(
        (
            model.a.weight[i].square().sum() + model.c.weight[:, i].square().sum() + model.d.weight[:, i].square().sum()
        ).sqrt()
        for i in range(3)
    )
    assert coupled_group_lasso(model, classifier=True, input_size=SIZE)(model).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_a_layer_called_twice_couples_both_of_its_results():
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.c(self.a(F.relu(self.a(self.stem(x)))))

    groups = coupled_groups(trace(Reused(), (4,)))
    assert groups.members(int(groups.writers["stem"][1])) == ([("stem", 1), ("a", 1)], [("a", 1), ("c", 1)])


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


def with_default(x, fc, mask=None):
    return fc(x) if mask is None else fc(x * mask)


def in_autocast(x, fc):
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        return fc(x.mean(-1)).float()


FORWARDS = {
    "autocast": in_autocast,
    "named tuple": lambda x, fc: fc(x.max(-1).values),
    "default": lambda x, fc: with_default(x.mean(-1), fc),
    "float": lambda x, fc: fc(x.mean(-1).float()),
    "to": lambda x, fc: fc(x.mean(-1).to(torch.float32)),
    "bfloat16 and back": lambda x, fc: fc(x.mean(-1).to(torch.bfloat16).to(x.dtype)),
    "squeeze": lambda x, fc: fc(x.mean(-1, keepdim=True).squeeze()),
    "tuple": lambda x, fc: (fc(x.mean(-1)), x),
    "dict": lambda x, fc: {"logits": fc(x.mean(-1)), "extra": [x]},
    "returned tuple": lambda x, fc: Pair(fc(x.mean(-1)), x),
    "shape": lambda x, fc: fc(x[..., 0]) if x.shape[1] == 4 else x,
    "isinstance": lambda x, fc: fc(x.mean(-1)) if isinstance(x, torch.Tensor) else x,
    "scalar": lambda x, fc: fc(x.mean(-1) * np.float32(2.0) / 3),
    "length": lambda x, fc: fc(x.sum(-1) / x.shape[-1]),
    "unpacked": lambda x, fc: fc(next(iter(x.permute(2, 0, 1)))),
    "constant": lambda x, fc: fc(x.mean(-1) + torch.ones(4)),
    "batch of zeros": lambda x, fc: fc(x.mean(-1) + torch.zeros(len(x), 4)),
    "topk": lambda x, fc: fc(x.topk(2).values.sum(-1)),
    "mask": lambda x, fc: fc((x * (x > 0).float()).mean(-1)),
    "where": lambda x, fc: fc(torch.where(x > 0, x, -x).mean(-1)),
    "star": lambda x, fc: fc(sum(x.unbind(-1))),
    "attribute": lambda x, fc: fc(x.mT[:, 0]),
    "reversed": lambda x, fc: fc(1 - x.mean(-1)),
    "power": lambda x, fc: fc(2 ** x.mean(-1)),
}


class Forward(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.first, self.fc, self.function = nn.Conv1d(2, 4, 1), nn.Linear(4, 3), function

    def forward(self, x):
        return self.function(self.first(x), self.fc)


FORWARDS |= {
    "nan": lambda x, fc: fc(x.mean(-1).masked_fill(x.mean(-1) > 1e9, float("nan"))),
    "nan by name": lambda x, fc: fc(torch.nan_to_num(x.mean(-1), nan=float("nan"))),
    "tensor of nan": lambda x, fc: fc(torch.where(x.mean(-1) > 1e9, torch.tensor(float("nan")), x.mean(-1))),
}


@each("name", FORWARDS)
def test_odd_forwards_are_followed_as_they_run(name):
    torch.manual_seed(0)
    model = Forward(FORWARDS[name])
    for dtype in (torch.double, torch.float):
        assert record_calls(model, (2, 5), dtype).problems == []
    assert "fc" in [call.name for call in channel_flow(model, (2, 5)).layers]
    assert "fc" in [op.layer for op in trace(model, (2, 5)).layers]


@each(
    ("function", "message"),
    [
        (lambda x, fc: fc(x.mean(-1)) if x.sum() > 0 else x, "depends on the input"),
        (lambda x, fc: fc(x.mean(-1) * float(x.std())), "depends on the input"),
        (lambda x, fc: fc(torch.from_numpy(x.numpy()).mean(-1)), "depends on the input"),
        (lambda x, fc: fc(x.mean(-1) * (1 / len(x))), "size of the batch"),
        (lambda x, fc: fc(x.mean(-1) if len(x) == 2 else x.amax(-1)), "another size"),
        (lambda x, fc: fc(x.mean(-1)).shape, "returns no tensor"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_its_cause(function, message):
    with pytest.raises(CodeqError, match=message):
        trace(Forward(function), (2, 5))


def test_a_model_that_keeps_a_state_is_not_trusted_and_all_of_its_channels_live():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.calls = nn.Linear(4, 4, bias=False), nn.Linear(4, 2), [0]

        def forward(self, x):
            self.calls[0] += 1
            return self.b(self.a(x) + torch.tensor(float(self.calls[0])))

    model = Counts()
    nn.init.zeros_(model.a.weight)
    with pytest.raises(CodeqError, match="depend on the size of the batch"):
        trace(model, (4,))

    class Random(Counts):
        def forward(self, x):
            return self.b(self.a(x) + torch.rand(4) * x.sum())

    model = Random()
    nn.init.zeros_(model.a.weight)
    graph = trace(model, (4,))
    assert not graph.trusted
    assert "not what the model computes: b" in [op.call for op in graph.unknown]
    assert nulls_of(model, (4,))["b"] == []
    assert coupled_groups(graph).count == 0
    with pytest.raises(CodeqError, match="compute something else than the model"):
        channel_flow(model, (4,))


def test_models_of_bfloat16_and_without_groups():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(64, 2)).to(torch.bfloat16)
    assert coupled_groups(trace(model, SIZE)).count == 4
    assert coupled_groups(trace(nn.Sequential(nn.Linear(4, 2)), (4,))).count == 0
    assert coupled_groups(trace(nn.ReLU(), (4,))).count == 0


def test_recording_leaves_the_model_and_the_random_numbers_as_they_are():
    class Changes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.scale = nn.Linear(4, 2), torch.ones(4)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            return self.fc(x * self.scale + torch.rand(()) * 0)

    model = shaken(Changes()).float()
    before, state, attributes = copy.deepcopy(model.state_dict()), torch.get_rng_state(), set(vars(model))
    trace(model, (4,))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert set(vars(model)) == attributes


def test_inputs_given_by_keyword_are_followed_like_others():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.same, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Identity(), nn.Linear(4, 2)

        def forward(self, x):
            x = F.max_pool2d(input=self.same(input=self.b(input=self.a(x))), kernel_size=2)
            x = torch.where(condition=x > 0, input=x, other=0 * x)
            return self.fc(torch.mean(input=x, dim=(2, 3)))

    net = Keywords()
    with torch.no_grad():
        net.a.weight[1], net.a.bias[1] = 0, 0
    report = compact(net, torch.randn(2, 3, 6, 6))
    assert report.kept["a"][1].tolist() == report.kept["b"][0].tolist() == [0, 2, 3]
    assert exact_stats(net, (3, 6, 6)).total_macs == report.proof.compacted_macs


def test_an_input_given_by_keyword_stays_behind_the_arguments_before_it():
    net = Branches(
        lambda a, b: torch.polygamma(n=1, input=1 + a.abs()) + torch.searchsorted(input=b, sorted_sequence=EDGES)
    )
    assert record_calls(net, SIZE).problems == []


def test_layers_behind_constants_count_also_if_the_whole_result_is_constant():
    class Generated(nn.Module):
        def __init__(self):
            super().__init__()
            self.code, self.fc = nn.Parameter(torch.ones(1, 4)), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.code.expand(len(x), -1))

    macs = ledger(Generated(), (3, 2, 2)).loc["MACs"].value
    assert (macs["structured", "all"], macs["exact", "all"]) == (8, 0)


class Computed(nn.Module):
    """A layer that multiplies its weights by a mask, or standardizes them, before it uses them."""

    def __init__(self, standardized: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 12))
        self.register_buffer("mask", torch.ones(4, 12))
        self.standardized = standardized

    def forward(self, x):
        mean, std = self.weight.mean(1, keepdim=True), self.weight.std(1, keepdim=True)
        return F.linear(x, (self.weight - mean) / std if self.standardized else self.weight * self.mask)


@each("standardized", [True, False])
def test_products_with_computed_weights_are_listed_as_not_counted(standardized):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.ReLU(), Computed(standardized))
    note = "3.weight is used outside of a layer, by linear: not counted"
    assert note in measure(net, (3, 2, 2)).notes
    assert note in exact_stats(net, (3, 2, 2)).notes
    assert note in compact(net, torch.randn(2, 3, 2, 2)).notes


class Routed(nn.Module):
    """Sends each input, or each token, to the layer that `select` chooses."""

    def __init__(self, select: Callable) -> None:
        super().__init__()
        self.gate, self.expert, self.head, self.select = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 3), select

    def forward(self, x):
        return self.head(self.select(x, self.gate(x).argmax(-1) == 0, self.expert))


def added(x, mask, expert):
    index = mask.nonzero().squeeze(1)
    return x.index_add(0, index, expert(x[index]))


def written(x, mask, expert):
    y = x.clone()
    y[mask] = expert(x[mask])
    return y


@each(
    ("select", "size", "call"),
    [
        (added, (4,), "nonzero"),
        (written, (4,), "getitem"),
        (written, (5, 4), "getitem"),
        (lambda x, mask, expert: x + expert(x[torch.where(mask)]).sum(), (4,), "where"),
        (lambda x, mask, expert: x + expert(x.masked_select(mask[:, None]).view(-1, 4)).sum(), (4,), "masked_select"),
        (lambda x, mask, expert: x + expert(x.repeat_interleave(mask.long() + 1, 0)).sum(), (4,), "repeat_interleave"),
    ],
)
def test_layers_whose_number_of_inputs_depends_on_values_are_refused_by_name(select, size, call):
    for seed in range(4):  # the number of inputs of an expert is a matter of luck
        torch.manual_seed(seed)
        model = Routed(select)
        with pytest.raises(CodeqError, match=f"'expert' cannot be counted: the number .* depends on values, by {call}"):
            measure(model, size)
        with pytest.raises(CodeqError, match=f"sizes of tensors depend on values, by .*{call}"):
            channel_flow(model, size)


def test_a_mean_over_selected_elements_is_counted_but_not_followed():
    model = Routed(lambda x, _mask, expert: x * torch.stack([c[c > 0].mean() for c in expert(x).unbind(1)]))
    assert dense_stats(measure(model, (4,))).total_macs == 8 + 16 + 12
    with pytest.raises(CodeqError, match="sizes of tensors depend on values, by getitem"):
        exact_stats(model, (4,))


class Selected(nn.Module):
    """Reads the channels that a mask of its own selects, which does not depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.LazyConv2d(2, 1)
        self.scores = nn.Parameter(torch.tensor([1.0, -1.0, 1.0, 1.0]))

    def forward(self, x):
        return self.second(self.first(x)[:, self.scores > 0])


def test_sizes_that_depend_on_weights_alone_are_counted_and_never_taken_from_a_cache():
    model = Selected()
    model(torch.zeros(1, 3, 2, 2))
    assert dense_stats(measure(model, (3, 2, 2))).total_macs == 4 * (3 * 4 + 3 * 2)
    assert exact_stats(model, (3, 2, 2)).total_macs == 4 * (3 * 3 + 3 * 2)  # one filter is not read
    with torch.no_grad():
        model.scores[0] = -1.0
    with pytest.raises(CodeqError, match="expected input"):
        measure(model, (3, 2, 2))


def without_values(kind: str) -> nn.Module:
    if kind == "scripted":
        return torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3)))
    if kind == "scripted inside":
        return nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.ReLU()))
    if kind == "empty":
        with pytest.warns(UserWarning, match="zero-element"):
            return nn.Sequential(nn.Flatten(), nn.Linear(192, 0), nn.Linear(0, 3))
    if kind == "lazy":
        return nn.Sequential(nn.LazyConv2d(4, 3))
    if kind == "meta":
        with torch.device("meta"):
            return nn.Sequential(nn.Conv2d(3, 4, 3))
    return torch.compile(nn.Sequential(nn.Conv2d(3, 4, 3)), backend="eager")  # inductor takes seconds to import


@each(
    ("kind", "message"),
    [
        ("empty", r"layer '1' \(Linear.* has no channels"),
        ("scripted", "the network is compiled by TorchScript"),
        ("scripted inside", "module '1' is compiled by TorchScript"),
        ("lazy", "0.weight has no values before the first forward pass"),
        ("meta", "0.weight is on the meta device"),
        ("compiled", "a model compiled by torch.compile cannot be traced"),
    ],
)
def test_models_without_values_or_compiled_are_refused_by_name(kind, message):
    for use in (lambda model: measure(model, (3, 8, 8)), lambda model: compact(model, torch.randn(2, 3, 8, 8))):
        with pytest.raises(CodeqError, match=message):
            use(without_values(kind))


class Choosing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = self.conv(x)
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x + 2, (x,))


def test_functions_that_are_chosen_by_values_are_refused_for_what_they_are():
    with pytest.raises(CodeqError, match=r"takes a function that is another one in each forward pass, .* torch\.cond"):
        measure(Choosing(), SIZE)


@pytest.mark.filterwarnings("ignore:Using `torch.compile")  # beside the hooks of the flop counter
@each("part", ["module", "function"])
def test_what_is_compiled_inside_a_model_is_followed_as_it_was_written(part):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 2, 1)), nn.Flatten(), nn.Linear(8, 2))
    macs = measure(net, SIZE)[1].weight.numel() * 4
    if part == "module":
        net[1] = torch.compile(net[1], backend="eager")
    else:
        net[1][0].forward = torch.compile(F.relu, backend="eager")
    assert dense_stats(measure(net, SIZE)).layers[1].macs == macs
    report = compact(net, torch.randn(3, *SIZE))
    assert report.unknown == []


def test_quantized_layers_that_are_compiled_are_followed_in_place_and_refused_by_name_otherwise():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    net[1].compile(backend="eager")
    attach_weight_quantizers(net, [], "uniform", {"bitwidth": 4})
    assert [record.bitwidth for record in measure(net, SIZE)] == [4, 4]
    assert copy.deepcopy(net)[1]._compiled_call_impl is None  # a copy calls itself, not what was compiled
    net[1] = torch.compile(net[1], backend="eager")
    with pytest.raises(CodeqError, match=r"layer '1' has a quantizer .* compile it in place"):
        measure(net, SIZE)
