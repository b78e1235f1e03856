"""Channel flow against what random inputs and gradients really show."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import each
from networks import MixedLayers, shaken, shuffled
from torch import nn

from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.flow import channel_flow
from codeq.models import resnet20
from codeq.quantizer.attach import attach_weight_quantizers
from codeq.quantizer.layers import named_layers


def observed(model: nn.Module, size: tuple[int, ...], draws: int = 4) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the outputs of each layer that vary with the input, and those that the result depends on, by gradient."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = []
    for name, layer in named_layers(model):

        def hook(module, inputs, output, name=name):
            output.retain_grad()
            seen.setdefault(name, []).append(output)

        handles.append(layer.register_forward_hook(hook))
    x = torch.randn(draws, *size, dtype=torch.float64, requires_grad=True)
    y = model(x)
    (y * torch.randn_like(y)).sum().backward()
    for handle in handles:
        handle.remove()
    found = {}
    for name, (output,) in seen.items():
        axis = 1 if output.ndim == 4 else output.ndim - 1
        rest = tuple(a for a in range(output.ndim) if a != axis)
        varies = (output - output[:1]).abs().amax(rest) > 1e-12
        gradient = output.grad if output.grad is not None else torch.zeros_like(output)
        found[name] = varies.numpy(), (gradient.abs().amax(rest) > 0).numpy()
    return found


class Mixed(MixedLayers):
    """Squeeze-and-excite, grouped and depthwise convolution, channel shuffle, chunk, cat, padding and a dead block."""

    def forward(self, x):
        x = F.celu(self.bn(self.stem(x)))
        x = x + F.silu(self.depthwise(x))
        x = x * torch.sigmoid(self.excite(F.celu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        a, b = shuffled(self.grouped(x)).chunk(2, dim=1)
        x = torch.cat([F.avg_pool2d(self.up(a), 2), F.celu(self.side(b))], 1)
        return self.fc(F.adaptive_avg_pool2d(x, 4).flatten(1))


def zero_filters(model: nn.Module, share: float, seed: int) -> None:
    """Zero random filters, and random input slices of every layer."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            w = module.weight.data
            w[torch.rand(len(w), generator=generator) < share] = 0
            w[:, torch.rand(w.shape[1], generator=generator) < share / 2] = 0


@each("seed", range(6))
@each("make", [Mixed, resnet20])
def test_agrees_with_what_inputs_and_gradients_show(make, seed):
    torch.manual_seed(seed)
    model = shaken(make(), seed)
    zero_filters(model, 0.3, seed)
    size = (3, 8, 8)
    flow = channel_flow(model, size)
    assert not flow.unknown
    seen = observed(copy.deepcopy(model), size, draws=16)
    for call in flow.layers:
        varies, read = seen[call.name]
        # A ReLU that no draw opens hides what is alive: what was seen must be found, and with CELU also the converse.
        assert not (varies & ~call.live_out).any(), call.name
        assert not (varies & read & ~call.kept_out).any(), call.name
        if make is Mixed:
            assert call.live_out.tolist() == varies.tolist(), call.name
            assert call.kept_out.tolist() == (varies & read).tolist(), call.name


def test_a_constant_is_known_by_value_and_a_padded_convolution_makes_it_a_map():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 1, 1)
    )
    shaken(net)
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].weight[0] = 1
        net[3].weight[1, 0] = 0
        net[1].bias[1] = 5.0
        b, mean, var = net[0].bias[1].item(), net[1].running_mean[1].item(), net[1].running_var[1].item()
    flow = channel_flow(net, (1, 4, 4))
    assert flow.kinds("0") == ["live", "constant"]
    assert flow.kinds("3") == ["live", "fixed"]
    normed = next(step for step in flow.steps if step.node.target == "1").result
    expected = 5.0 + (b - mean) / (var + 1e-5) ** 0.5
    assert normed.data[1].unique().tolist() == pytest.approx([expected], abs=1e-12)


def test_borders_live_reads_a_constant_as_a_live_channel():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        net[0].weight[1] = 0
        net[1].weight[0, 0] = 0  # filter 0 sees only the constant
    by_map, live = (channel_flow(net, (1, 4, 4), borders) for borders in ("map", "live"))
    assert (by_map.kinds("1"), live.kinds("1")) == (["fixed", "live"], ["live", "live"])
    assert [call.macs for call in by_map.layers] == [16, 16 * 9, 16]
    assert [call.macs for call in live.layers] == [16, 16 * 9 * 4, 16 * 2]
    assert net[0].bias[1] != 0


def test_a_filter_dead_inside_a_block_leaves_the_stream_alive():
    model = shaken(resnet20())
    with torch.no_grad():
        model.layer1[0].conv2.weight[5] = 0
    layers = {call.name: call for call in channel_flow(model).layers}
    assert not layers["layer1.0.conv2"].kept_out[5]
    assert layers["layer1.1.conv1"].kept_in.all()
    assert layers["conv1"].kept_out.all()


def test_what_nobody_reads_leaves_all_the_way_up():
    net = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(3)))
    with torch.no_grad():
        for conv in net:
            conv.weight.fill_(1.0)
        net[1].weight[0, 1] = 0
        net[2].weight[:, 1] = 0  # so filter 1 of the second layer is not read, nor is filter 1 of the first
    assert [call.macs for call in channel_flow(net, (2, 1, 1)).layers] == [2, 1, 2]


def test_multiplying_by_a_fixed_zero_is_fixed():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 1)
            self.gate = nn.Parameter(torch.tensor([1.0, 0.0, 2.0]).view(3, 1, 1))

        def forward(self, x):
            return self.last(self.conv(x) * self.gate)

    conv, last = channel_flow(Gate(), (1, 2, 2)).layers
    assert conv.kept_out.tolist() == last.kept_in.tolist() == [True, False, True]


def test_batchnorm_that_scales_by_zero_gives_its_shift_whatever_comes_in():
    net = shaken(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1)))
    nn.init.zeros_(net[1].weight[:1])
    flow = channel_flow(net, (1, 4, 4))
    assert flow.kinds("0") == ["unread", "live"]
    normed = next(step for step in flow.steps if step.node.target == "1").result
    assert torch.equal(normed.data[0], net[1].bias[0].expand(4, 4))


def test_a_pooled_channel_depends_on_all_of_it():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)

        def forward(self, x):
            return self.last(F.avg_pool2d(F.pad(self.conv(x), (1, 1, 1, 1)), 3))

    assert all(call.kept_in.all() and call.kept_out.all() for call in channel_flow(Padded(), (1, 4, 4)).layers)


def test_windows_folded_into_the_batch_are_not_followed_but_counted():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            n = x.shape[0]
            return self.fc(x.reshape(n * 2, 2, 4)).reshape(n, 4, 3)

    flow = channel_flow(Windows(), (4, 4))
    assert flow.unknown == ["reshape", "fc (Linear)", "reshape"]
    assert flow.layers[0].macs == 4 * 4 * 3


def test_channels_of_images_folded_into_the_batch_are_live_or_not_read():
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 2, 1), nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(self.conv(x.flatten(0, 1)).mean((2, 3)).view(len(x), -1, 2).mean(1))

    net = Frames()
    assert channel_flow(net, (5, 3, 4, 4)).kinds("conv") == ["live", "live"]
    nn.init.zeros_(net.fc.weight)
    assert channel_flow(net, (5, 3, 4, 4)).kinds("conv") == ["unread", "unread"]


class Recurrent(nn.Module):
    """A layer that reads zeros in its first call, channels of which nobody reads in the second one."""

    def __init__(self):
        super().__init__()
        self.cell, self.write, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 3, 1), nn.Linear(2, 2)

    def forward(self, x):
        first = self.cell(torch.zeros_like(x))
        second = self.cell(self.write(x) + first[:, :3])
        return self.fc(second[:, 1:3].mean((2, 3)))


def test_a_channel_is_live_if_it_is_in_any_call():
    net = Recurrent()
    with torch.no_grad():
        net.cell.weight[2] = 0
    assert channel_flow(net, (3, 4, 4)).kinds("cell") == ["unread", "live", "constant", "unread"]


def test_unknown_operations_are_listed_with_their_place_and_keep_channels_live():
    class Sorting(nn.Module):
        def forward(self, x):
            return torch.sort(x, dim=1).values

    net = nn.Sequential(nn.Conv2d(1, 4, 1), Sorting(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net[0].weight[1] = 0
    flow = channel_flow(net, (1, 4, 4))
    assert flow.unknown[0] == "sort in 1"
    assert [call.kept_out.sum() for call in flow.layers] == [3, 2]
    assert flow.layers[1].kept_in.all()


def test_elements_looked_up_by_an_index_that_depends_on_the_input_are_live():
    class LooksUp(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            x = self.conv(x).mean((2, 3))
            return self.last(torch.index_select(x, 1, x.sum(0).argsort().flip(0)))

    model = LooksUp()
    nn.init.zeros_(model.conv.weight[:3])
    flow = channel_flow(model, (1, 2, 2))
    assert "index_select" in flow.unknown
    assert flow.layers[1].kept_in.all()


def test_a_subclass_with_a_forward_of_its_own_is_kept_whole():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean(), self.bias)

    net = nn.Sequential(Standardized(1, 2, 1), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        net[0].weight[0] = 0
    flow = channel_flow(net, (1, 2, 2))
    assert flow.unknown == ["0 (Standardized)"]
    assert [call.macs for call in flow.layers] == [8, 8]


def test_later_readers_of_a_tensor_overwritten_in_place_read_the_new_one():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            x = self.a(x)
            y = F.relu(x, inplace=True)
            return self.b(y) + x

    net = Overwrites().double()
    with torch.no_grad():
        net.a.weight.zero_()
        net.a.bias.fill_(-1.0)
    result = channel_flow(net, (1, 2, 2)).steps[-1].result
    assert torch.allclose(result.data, net(torch.zeros(1, 1, 2, 2, dtype=torch.float64))[0])


def test_the_model_is_left_as_it_is():
    model = resnet20().train()
    attach_weight_quantizers(model, [], "deadzone", {})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.rand(2, 3, 32, 32)
    for _ in range(2):
        channel_flow(model)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(x).shape == (2, 10)


def test_quantized_weights_count_not_the_latent_ones():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1))
    attach_weight_quantizers(net, ["1"], "deadzone", {"init_deadzone_logit": 0.5})
    with torch.no_grad():
        net[0].parametrizations.weight.original[0] = 1e-3
        net[0].parametrizations.weight.original[1] = 1.0
    assert channel_flow(net, (1, 2, 2)).kinds("0") == ["constant", "live"]


def test_whole_streams_keep_a_dead_filter_as_long_as_its_channel_lives():
    model = shaken(resnet20())
    with torch.no_grad():
        model.layer1[0].conv2.weight[5] = 0
        model.layer1[1].conv1.weight[:, 7] = 0  # one reader of a channel that others read
        model.layer1[2].conv1.weight[3] = 0  # dead inside its block
    layers = {call.name: call for call in channel_flow(model, streams="whole").layers}
    assert layers["layer1.0.conv2"].kept_out.all()
    assert layers["layer1.1.conv1"].kept_in.all()
    assert np.flatnonzero(~layers["layer1.2.conv1"].kept_out).tolist() == [3]
    assert np.flatnonzero(~layers["layer1.2.conv2"].kept_in).tolist() == [3]


def test_whole_streams_hold_what_batchnorm_scales_by_zero_and_let_dead_channels_go():
    model = shaken(resnet20())
    with torch.no_grad():
        model.layer3[0].conv2.weight[40] = 0
        model.layer3[0].bn2.weight[40] = 0
        for block in model.layer3:  # channel 50 of the last stage is written here alone
            block.conv2.weight[50] = 0
    layers = {call.name: call for call in channel_flow(model, streams="whole").layers}
    assert all(np.flatnonzero(~layers[f"layer3.{i}.conv2"].kept_out).tolist() == [50] for i in range(3))
    assert np.flatnonzero(~layers["linear"].kept_in).tolist() == [50]


@pytest.mark.parametrize("seed", range(3))
def test_channel_counts_are_rounded_up(seed):
    model = shaken(resnet20(), seed)
    zero_filters(model, 0.5, seed)
    exact = {call.name: call for call in channel_flow(model, streams="whole").layers}
    for call in channel_flow(model, streams="whole", multiple_of=8).layers:
        for kept, least in ((call.kept_in, exact[call.name].kept_in), (call.kept_out, exact[call.name].kept_out)):
            assert kept.sum() % 8 == 0 or kept.all()
            assert not (least & ~kept).any()
    assert channel_flow(model, streams="whole", multiple_of=8).layers[1].macs < 16 * 16 * 9 * 32 * 32


@each(
    ("call", "message"),
    [
        (lambda: channel_flow(nn.Linear(3, 2), (3,), borders="maps"), "borders='maps'"),
        (lambda: channel_flow(nn.Linear(3, 2), (3,), streams="all"), "streams='all'"),
        (lambda: channel_flow(nn.Linear(3, 2), (3,), streams="whole", multiple_of=0), "multiple_of=0"),
        (lambda: channel_flow(nn.Linear(3, 2), (3,), multiple_of=8), "requires streams='whole'"),
        (lambda: channel_flow(nn.Conv2d(3, 2, 3), (1, 8, 8)), "cannot be traced"),
        (lambda: channel_flow(nn.Linear(3, 2), (3,)).kinds("x"), "layer 'x'"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(CodeqError, match=message):
        call()


class Attends(nn.Module):
    """Two heads of three channels on four tokens, projected from one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(5, 18), nn.Linear(6, 2)

    def forward(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, 6))


def test_a_value_that_differs_between_tokens_does_not_pass_attention_as_a_constant():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.qk, self.out = nn.Linear(2, 2), nn.Linear(2, 2)
            self.position = nn.Parameter(torch.arange(6.0).reshape(1, 1, 3, 2))

        def forward(self, x):
            q = self.qk(x)[:, None]
            return self.out(F.scaled_dot_product_attention(q, q, self.position.expand(x.shape[0], 1, 3, 2)))

    assert all(call.kept_out.all() for call in channel_flow(Positions(), (3, 2)).layers)


def test_attention_follows_heads_and_the_channels_of_values():
    torch.manual_seed(0)
    model = Attends().double()
    with torch.no_grad():
        model.qkv.weight[12 + 1] = 0  # channel 1 of the values of head 0 is its bias
        model.proj.weight[:, 3:] = 0  # nobody reads head 1: queries 3-5, keys 9-11 and values 15-17
    flow = channel_flow(model, (4, 5))
    assert not flow.unknown
    qkv, proj = flow.layers
    assert np.flatnonzero(~qkv.kept_out).tolist() == [3, 4, 5, 9, 10, 11, 13, 15, 16, 17]
    assert proj.kept_in.tolist() == [True, False, True, False, False, False]
    varies, read = observed(model, (4, 5))["qkv"]
    assert qkv.kept_out.tolist() == (varies & read).tolist()


@each(
    ("after", "named"),
    [
        ([nn.Conv2d(8, 4, 1)], ()),
        ([nn.Conv2d(8, 4, 1, groups=2)], ("0",)),
        ([nn.ConvTranspose2d(8, 4, 2)], ("0",)),
        ([nn.ChannelShuffle(2), nn.Conv2d(8, 4, 1)], ("0",)),
    ],
)
def test_whole_streams_name_layers_whose_dead_filters_are_in_no_group(after, named):
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ReLU(), *after).eval()
    nn.init.zeros_(model[0].weight[:3])
    report = compact(model, torch.rand(2, 3, 4, 4), streams="whole")
    assert len(report.kept["0"][1]) == (8 if named else 5)
    assert [note for note in report.notes if "in no coupled group" in note] == [
        f"streams=whole keeps dead filters in no coupled group: {name}" for name in named
    ]
    assert channel_flow(model, (3, 4, 4), streams="whole").ungrouped == named
    assert channel_flow(model, (3, 4, 4)).ungrouped == ()
