import json
import sys
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from codeq import attach_weight_quantizers, compact
from codeq.common.errors import CodeqError
from codeq.export import load_packed, load_packed_network, packed_sizes, save_packed
from codeq.export.container import deflate, inflate, join, read
from codeq.export.grids import compacted_grids, layer_grids
from codeq.graph.baking import baked_copy
from codeq.metrics import storage_bytes
from codeq.quantizer.layers import latent_weight, named_layers


class PowersOfTwo(nn.Module):
    """A quantizer of a user: codeq does not know its grid."""

    def __init__(self, bits: int = 4) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, w):
        exponent = w.abs().clamp(min=1e-12).log2().round().clamp(min=2.0 - 2**self.bits / 2, max=0)
        return torch.where(w.abs() < 0.01, torch.zeros_like(w), w.sign() * 2**exponent)

    def get_bitwidth(self):
        return torch.tensor(self.bits)


class Small(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.up = nn.ConvTranspose2d(width, width // 2, 2, stride=2, groups=2)
        self.fc = nn.Linear(width // 2, 5)

    def forward(self, x):
        y = self.bn(self.stem(x)).relu()
        y = (y + self.body(y)).relu()
        return self.fc(self.up(y).mean((2, 3)))


def random_net(seed: int, width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    net = Small(width).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.copy_(torch.randn(tensor.shape) * 0.2)
    for _, layer in named_layers(net):
        latent_weight(layer).data.mul_(0.1 + torch.rand(()))
    return net


QUANTIZERS = [
    ("deadzone", {"init_deadzone_logit": 0.5}), ("deadzone", {"granularity": "channel", "init_deadzone_logit": 1.0}),
    ("deadzone", {"grid": "affine", "init_deadzone_logit": 0.7}),
    ("uniform", {}), (PowersOfTwo, {}), (None, {}),
]  # fmt: skip


def test_weights_come_back_bit_for_bit_and_within_three_percent_of_the_ledgers_bound(tmp_path):
    file = tmp_path / "net.codeq"
    for number, (quantizer, kwargs) in enumerate(QUANTIZERS):
        for bits in range(2, 9):
            net = random_net(seed=10 * bits + number, width=24)
            if bits == 5:
                latent_weight(net.body).data.zero_()
            if quantizer is not None:
                key = {"deadzone": "fixed_bit_val", "uniform": "bitwidth"}.get(quantizer, "bits")
                fixed = {"learnable_bit": False} if quantizer == "deadzone" else {}
                attach_weight_quantizers(net, [], quantizer, {key: bits, **fixed, **kwargs})
            assert save_packed(net, file) == file.stat().st_size
            state = load_packed(file)
            for name, layer in named_layers(net):
                assert torch.equal(state[f"{name}.weight"], layer.weight)
            assert torch.equal(state["bn.running_var"], net.bn.running_var)
            if quantizer is not None:
                bound = storage_bytes(net).entropy
                codes = packed_sizes(file).codes
                assert 0.99 * bound - 8 <= codes <= 1.03 * bound + 8, (bits, quantizer)


@pytest.mark.slow
def test_the_file_rebuilds_a_compacted_network_without_its_code(tmp_path):
    file = tmp_path / "net.codeq"
    net = random_net(seed=1)
    attach_weight_quantizers(net, [], "deadzone", {"max_bits": 4, "granularity": "channel"})
    with torch.no_grad():
        latent_weight(net.stem)[::3] = 0
    x = torch.randn(4, 3, 8, 8)
    report = compact(net, x)
    grids = compacted_grids(layer_grids(net), report)
    save_packed(report.model, file, x, grids)
    rebuilt = load_packed_network(file)
    for size in (1, 3):
        x = torch.randn(size, 3, 8, 8)
        assert torch.allclose(rebuilt(x), net(x), atol=1e-5)
    stored = inflate(read(file).description, 1 << 20, "description")
    assert [entry["form"] for entry in json.loads(stored)["tensors"] if "form" in entry] == ["grid"] * 4
    with pytest.raises(CodeqError, match=r"call . of the packed network, aten\.conv"):
        rebuilt(torch.randn(1, 7, 8, 8))
    net.up = Decomposed()
    with pytest.raises(CodeqError, match=r"up: operation 'aten\..*svd.*' is outside"):
        save_packed(net, file, x)


def test_a_single_example_gives_a_network_for_any_batch_size(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()
    save_packed(net, tmp_path / "net.codeq", torch.randn(1, 3, 8, 8))
    rebuilt = load_packed_network(tmp_path / "net.codeq")
    for size in (1, 3):
        x = torch.randn(size, 3, 8, 8)
        torch.testing.assert_close(rebuilt(x), net(x))


class Overwriting(nn.Module):
    """It overwrites its input and counts its calls."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        x.mul_(2)
        return self.fc(self.conv(x.relu_()).mean((2, 3))), x[:, 0]


def test_what_a_network_overwrites_is_no_result(tmp_path):
    net, x = Overwriting().eval(), torch.randn(3, 3, 8, 8)
    save_packed(net, tmp_path / "net.codeq", x)
    rebuilt = load_packed_network(tmp_path / "net.codeq")
    given = x.clone()
    for expected in (net(x.clone()), net(x.clone())):
        torch.testing.assert_close(rebuilt(given), expected)
    assert torch.equal(given, x)
    assert load_packed(tmp_path / "net.codeq")["calls"] == 0


class Decomposed(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x, full_matrices=False)[0][:, :8]


def test_tied_weights_types_and_empty_tensors_survive(tmp_path):
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.BatchNorm1d(8))
    net[1].weight = net[0].weight
    net.register_buffer("brief", torch.randn(3).bfloat16())
    net.register_buffer("mask", torch.tensor([True, False]))
    net.register_buffer("none", torch.empty(0, 4))
    net.register_buffer("phases", torch.randn(2, 3, dtype=torch.complex64))
    net.register_buffer("odd", torch.tensor([float("nan"), -0.0, float("inf")]))
    save_packed(net, tmp_path / "net.codeq")
    state = load_packed(tmp_path / "net.codeq")
    assert state.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        assert state[name].dtype == tensor.dtype
        bits = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (state[name], tensor)]
        assert torch.equal(*bits)
    assert state["0.weight"] is state["1.weight"]
    with pytest.raises(CodeqError, match="holds weights only"):
        load_packed_network(tmp_path / "net.codeq")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    file = tmp_path_factory.mktemp("packed") / "net.codeq"
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU()).eval()
    attach_weight_quantizers(net, [], "deadzone", {"max_bits": 4})
    save_packed(net, file)
    calls = [
        {"op": "aten.permute.default", "args": [{"value": 1}, [1, 0]], "kwargs": {}},
        {"op": "aten.addmm.default", "args": [{"value": 2}, {"value": 0}, {"value": 3}], "kwargs": {}},
        {"op": "aten.relu.default", "args": [{"value": 4}], "kwargs": {}},
    ]
    structure = {"state": ["0.weight", "0.bias"], "nodes": calls, "output": [{"value": 5}]}
    sections = read(file)
    description = json.loads(inflate(sections.description, 1 << 20, "description")) | {"structure": structure}
    file.write_bytes(join(replace(sections, description=deflate(json.dumps(description).encode()))))
    x = torch.randn(3, 16)
    assert torch.allclose(load_packed_network(file)(x), net(x), atol=1e-6)
    return file


def test_damaged_and_truncated_files_are_refused(packed, tmp_path):
    data, damaged = packed.read_bytes(), tmp_path / "damaged"
    for at in range(0, len(data), 17):
        for changed in (data[:at], data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]):
            damaged.write_bytes(changed)
            with pytest.raises(CodeqError, match=r"damaged|truncated|not a packed|version"):
                load_packed(damaged)
    with pytest.raises(CodeqError, match="cannot be read"):
        load_packed(tmp_path / "missing")


def changed_tensor(**changes):
    def change(description):
        (weight,) = [entry for entry in description["tensors"] if entry["name"] == "0.weight"]
        weight |= changes

    return change


def changed_node(**changes):
    def change(description):
        description["structure"]["nodes"][0] |= changes

    return change


def repeated(description):
    description["tensors"].append(description["tensors"][0])


def nested(description):
    for _ in range(500):
        description["structure"] = [description["structure"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_tensor(shape=[1 << 39, 16]), "more than it can hold"),
        (changed_tensor(shape=[-8, 16]), "has shape"), (changed_tensor(shape=["8", 16]), "valid integer"),
        (changed_tensor(name="../../etc/passwd"), "dotted name"), (changed_tensor(name="/etc/passwd"), "dotted name"),
        (changed_tensor(name="a/../b"), "dotted name"), (changed_tensor(name="\x1b[2J"), "printable characters"),
        (changed_tensor(dtype="object"), "has type 'object'"), (changed_tensor(form="pickle"), "Input should be"),
        (changed_tensor(code="import os"), "Extra inputs"), (changed_tensor(symbols=1 << 30), "less than or equal"),
        (changed_tensor(scales=7), "7 grids for 8 channels"), (changed_tensor(groups=3), "no 3 groups"),
        (changed_tensor(form="same", same="0.bias_"), "which it cannot be"), (repeated, "occurs twice"),
        (changed_tensor(symbols=3), "tables"), (changed_tensor(form="plain"), "tables"),
        (changed_node(op="aten.from_file.default"), "outside PyTorch's core ATen set"),
        (changed_node(op="os.system"), "outside PyTorch's core ATen set"), (changed_node(op=3), "outside"),
        (changed_node(op="aten.__class__.mro"), "outside"), (changed_node(op="operator.attrgetter"), "outside"),
        (changed_node(args="rm"), "must have op"), (nested, "must have the keys state"),
        (lambda description: description.pop("tensors"), "must have the keys"),
        (lambda description: description.update(tensors={}), "valid list"),
        (lambda description: description["structure"]["state"].append("0.none"), "which the file does not hold"),
    ],
)  # fmt: skip
def test_hostile_files_with_a_right_checksum_are_refused(packed, tmp_path, change, message):
    sections = read(packed)
    description = json.loads(inflate(sections.description, 1 << 20, "description"))
    change(description)
    hostile = tmp_path / "hostile"
    hostile.write_bytes(join(replace(sections, description=deflate(json.dumps(description).encode()))))
    with pytest.raises(CodeqError, match=message) as error:
        load_packed_network(hostile)
    assert len(str(error.value)) < 700


def test_a_bomb_and_a_wrong_stream_are_refused(packed, tmp_path):
    sections, hostile = read(packed), tmp_path / "hostile"
    flipped = bytes([sections.codes[0] ^ 255]) + sections.codes[1:]
    for changes, message in (
        ({"floats": deflate(bytes(10_000_000))}, "larger than"), ({"tables": b"x"}, "damaged"),
        ({"description": deflate(b"[" * 100_000)}, "no JSON"), ({"floats": deflate(b"")}, "floats has 0 bytes"),
        ({"description": deflate(b'{"tensors": NaN}')}, "holds NaN"), ({"codes": b"1"}, "multiple of 4"),
        ({"codes": flipped}, "stream of codes"), ({"codes": b""}, "stream of codes"),
    ):  # fmt: skip
        hostile.write_bytes(join(replace(sections, **changes)))
        with pytest.raises(CodeqError, match=message):
            load_packed(hostile)


def test_what_cannot_be_packed_is_named_and_an_existing_file_stays(packed, tmp_path, monkeypatch):
    file = tmp_path / "net.codeq"
    file.write_text("mine")
    with pytest.raises(CodeqError, match=r"list: a tensor of torch\.float8_e5m2 cannot be packed"):
        save_packed(WithBuffer(torch.zeros(2).to(torch.float8_e5m2)), file)
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(CodeqError, match=r"pip install 'codeq\[export\]'"):
        save_packed(nn.Linear(2, 2), file)
    with pytest.raises(CodeqError, match=r"pip install 'codeq\[export\]'"):
        load_packed(packed)
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["net.codeq"]


class WithBuffer(nn.Module):
    def __init__(self, tensor):
        super().__init__()
        self.register_buffer("list", tensor)


def test_codes_are_the_quantizers(tmp_path):
    weights = np.array([[-0.9, -0.31, 0.1, 0.74]], dtype=np.float32)
    net = nn.Sequential(nn.Linear(4, 1, bias=False))
    net[0].weight.data = torch.from_numpy(weights)
    attach_weight_quantizers(
        net, [], "deadzone", {"fixed_bit_val": 3, "learnable_bit": False, "init_deadzone_logit": 1}
    )
    grid = layer_grids(net)["0"]
    step, shift = float(grid.step), float(grid.shift)
    expected = [np.sign(w) * np.clip(np.round(max(abs(w) - shift, 0) / step), 0, 3) for w in weights[0]]
    assert grid.codes(net[0].weight.detach()).ravel().tolist() == expected


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_a_transposed_convolution_that_lost_a_group(tmp_path, granularity):
    whole = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 2, 2, groups=4),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    ).eval()
    attach_weight_quantizers(whole, [], "deadzone", {"granularity": granularity, "max_bits": 4})
    with torch.no_grad():
        latent_weight(whole[2])[2:4] = 0
    report = compact(whole, torch.randn(2, 3, 6, 6))
    assert dict(named_layers(report.model))["2"].groups == 3
    save_packed(report.model, tmp_path / "a.codeq", None, compacted_grids(layer_grids(whole), report))
    state = load_packed(tmp_path / "a.codeq")
    assert all(torch.equal(state[name], value) for name, value in report.model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quantized_networks_of_half_precision(tmp_path, dtype):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2)).to(dtype)
    attach_weight_quantizers(net, [], "deadzone", {"max_bits": 4})
    baked = baked_copy(net)
    save_packed(baked, tmp_path / "a.codeq", None, layer_grids(net))
    state = load_packed(tmp_path / "a.codeq")
    assert all(torch.equal(state[name], value) for name, value in baked.state_dict().items())


def test_names_have_printable_characters(tmp_path):
    names = ("größe", "fc 1", "conv[0]", "3x3+1", "inception_3a/1x1")
    net = nn.Sequential(OrderedDict({name: nn.Linear(8, 8) for name in names}))
    save_packed(net, tmp_path / "net.codeq")
    assert load_packed(tmp_path / "net.codeq").keys() == net.state_dict().keys()
