"""Integer graphs of small networks, executed by ONNX Runtime, OpenVINO and qonnx."""

import gc
import os
import signal
import sys

import numpy as np
import onnx
import pytest
import torch
from cases import each
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from codeq import attach_weight_quantizers
from codeq.common.errors import CodeqError
from codeq.export.activation_scales import ActivationScale, export_with_scales
from codeq.export.int4 import store_as_int4
from codeq.export.integer_grid import grid_error, integer_codes, integer_grid
from codeq.export.onnx_float import export_onnx, weight_nodes
from codeq.export.qdq import export_qdq
from codeq.export.qonnx_graph import export_qonnx
from codeq.export.runtimes import convert_to_openvino, run_onnx, run_openvino, run_qonnx
from codeq.graph.activations import attach_activation_quantizers
from codeq.quantizer import DeadZoneQuantizer


def affine_weights(shape, bits, seed=0):
    """Weights `scale × integer` with one scale per row, as an affine grid of `bits` has them."""
    rng = np.random.default_rng(seed)
    top = 2 ** (bits - 1) - 1
    codes = rng.integers(-top, top + 1, shape)
    codes.reshape(len(codes), -1)[:, 0] = top
    scales = rng.uniform(0.01, 0.1, len(codes)).astype(np.float32)
    return (codes * scales.reshape(-1, *[1] * (len(shape) - 1))).astype(np.float32), codes, scales


def test_affine_grids_of_two_to_eight_bits_are_found_exactly():
    for bits in range(2, 9):
        weight, codes, scales = affine_weights((6, 40), bits, seed=bits)
        found, _ = integer_grid(weight, axis=0)
        assert found == pytest.approx(scales, rel=1e-6)
        assert (integer_codes(weight, found, axis=0) == codes).all()
        assert (integer_grid(weight.T, axis=1)[0] == found).all()
    weight[2] = 0
    assert np.isfinite(integer_grid(weight, axis=0)[0]).all()
    assert (integer_grid(np.zeros((3, 4)), axis=0)[0] > 0).all()


def test_a_dead_zone_grid_takes_the_nearest_integers_and_the_error_is_that_of_a_search():
    step, shift = 0.1, 0.0437
    levels = np.array([step * k + shift for k in (1, 2, 3)])
    weight = np.concatenate([-levels, [0], levels])[None]
    scales, (largest,) = integer_grid(weight, axis=0)
    found = integer_codes(weight, scales, axis=0) * scales[:, None]
    squared = {n: sum(min((w - i * levels[-1] / n) ** 2 for i in range(n + 1)) for w in levels) for n in range(1, 65)}
    assert largest == min(squared, key=squared.get)
    assert grid_error(weight, found) == pytest.approx(np.abs(weight - found).max() / levels[-1])
    assert 0 < grid_error(weight, found) < 0.5 / 64


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Conv → Relu → Conv → Add → mean → Gemm in float ONNX, written by hand, with weights of 4 and 8 bits."""
    folder = tmp_path_factory.mktemp("onnx")
    first, second, last = (
        affine_weights(shape, bits, seed)[0]
        for seed, (shape, bits) in enumerate([((8, 3, 3, 3), 4), ((8, 8, 3, 3), 6), ((4, 8), 4)])
    )
    bias = np.linspace(-0.2, 0.3, 8).astype(np.float32)
    tensors = {"first": first, "second": second, "last": last, "bias": bias, "axes": np.array([2, 3])}
    nodes = [
        helper.make_node("Conv", ["x", "first", "bias"], ["a"], "n1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "n2"),
        helper.make_node("Conv", ["b", "second"], ["c"], "n3", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "c"], ["d"], "n4"),
        helper.make_node("ReduceMean", ["d", "axes"], ["e"], "n5", keepdims=0),
        helper.make_node("Gemm", ["e", "last"], ["y"], "n6", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=10), folder / "m.onnx")
    return folder / "m.onnx"


X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def expected(path, steps):
    """The network of `small` in PyTorch, with 8-bit inputs of layers by `steps`, the numbers of scale and zero."""
    weights = {node.name: torch.from_numpy(node.weight.copy()) for node in weight_nodes(onnx.load(path))}

    def rounded(x, unrounded):
        if not steps:
            return x
        low, high = min(float(unrounded.min()), 0), max(float(unrounded.max()), 0)
        scale = (high - low) / 255
        zero = round(-low / scale)
        return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale

    bias = torch.linspace(-0.2, 0.3, 8)
    b_float = nn.functional.conv2d(X, weights["first"], bias, padding=1).relu()
    e_float = (b_float + nn.functional.conv2d(b_float, weights["second"], padding=1)).mean((2, 3))
    b = nn.functional.conv2d(rounded(X, X), weights["first"], bias, padding=1).relu()
    e = (b + nn.functional.conv2d(rounded(b, b_float), weights["second"], padding=1)).mean((2, 3))
    return (rounded(e, e_float) @ weights["last"].T).numpy()


def test_qdq_holds_affine_weights_exactly_and_runs_in_two_runtimes(small, tmp_path):
    path = tmp_path / "q.onnx"
    assert export_qdq(small, [X], path) == {"first": 0.0, "second": 0.0, "last": 0.0}
    exact = expected(small, steps=False)
    assert np.allclose(run_onnx(small)(X.numpy()), exact, rtol=1e-4, atol=1e-5)
    stored = {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    assert {stored[f"{name}_quantized"].dtype.name for name in ("first", "second", "last")} == {"int8"}
    assert np.abs(stored["first_quantized"]).max() == 7
    step = np.abs(exact).max() / 255
    for run in (run_onnx, run_openvino):
        found = run(path)(X.numpy())
        assert np.abs(found - exact).max() < 6 * step  # one step for each of six quantized tensors
        assert np.abs(found - exact).max() > 0
        assert (found.argmax(1) == exact.argmax(1)).mean() > 0.9
        assert np.allclose(run(path)(X[:1].numpy()), found[:1], atol=1e-5)  # any batch size


def test_signals_arrive_after_openvino_has_gone(small):
    first, second = run_openvino(small), run_openvino(small)
    del first  # each saves the stack of signal handlers that it finds, and its end restores that one
    gc.collect()
    del second
    gc.collect()
    caught = []
    before = signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)  # a stack that is no longer there would end the process
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert caught


def test_openvino_converts_without_telemetry_and_computes_the_same(small, tmp_path, monkeypatch):
    convert_to_openvino(small, tmp_path / "m.xml")
    assert "openvino_telemetry" not in sys.modules
    found = run_openvino(tmp_path / "m.xml")(X.numpy())
    assert np.allclose(found, expected(small, steps=False), rtol=1e-4, atol=1e-5)


def test_qonnx_states_bits_and_its_executor_computes_the_rounded_network(small, tmp_path):
    path = tmp_path / "q.onnx"
    assert export_qonnx(small, [X], path) == {"first": 0.0, "second": 0.0, "last": 0.0}
    model = onnx.load(path)
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    quants = [node for node in model.graph.node if node.op_type == "Quant"]
    bits = {node.input[0]: int(stored[node.input[3]]) for node in quants}
    assert bits == {"first": 4, "second": 6, "last": 4, "x": 8, "b": 8, "e": 8}
    found = run_qonnx(path)(X.numpy())
    away = np.abs(found - expected(small, steps=True))
    assert np.median(away) < 1e-3  # a rounding at a half may go the other way
    assert away.max() < 0.01 * np.abs(found).max()
    assert np.abs(found - expected(small, steps=False)).max() > 0


@each("bits", [2, 3, 4, 7, 8])
@each("theta", [3.0, 1.5, 0.7, 0.1])
def test_an_affine_grid_is_exact_where_its_integers_go_up_to_127(bits, theta):
    quantizer = DeadZoneQuantizer(bits, learnable_bit=False, init_deadzone_logit=theta, grid="affine")
    weight = quantizer(torch.linspace(-1, 1, 3000)).detach().numpy()[None]
    scales, _ = integer_grid(weight, axis=0)
    error = grid_error(weight, integer_codes(weight, scales, axis=0) * scales)
    largest = int(quantizer.affine_offset()) + 2 ** (bits - 1) - 1
    assert (error == 0) == (largest <= 127 or bits == 2)  # of 2 bits there is one level on each side of 0


def test_weights_off_the_integer_grid_are_stated(small, tmp_path):
    model = onnx.load(small)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False))
    attach_weight_quantizers(net, [], "deadzone", {"max_bits": 8, "init_deadzone_logit": 0.8})
    (first,) = [i for i in model.graph.initializer if i.name == "first"]
    first.CopyFrom(numpy_helper.from_array(net[0].weight.detach().numpy(), "first"))
    onnx.save(model, tmp_path / "m.onnx")
    for export in (export_qdq, export_qonnx):
        errors = export(tmp_path / "m.onnx", [X], tmp_path / "q.onnx")
        assert 0 < errors["first"] < 0.5 / 32
        assert errors["second"] == 0


def test_weights_of_four_bits_are_the_same_numbers_in_fewer_bytes(small, tmp_path):
    export_qdq(small, [X], tmp_path / "wide.onnx")
    path = tmp_path / "narrow.onnx"
    assert store_as_int4(tmp_path / "wide.onnx", path) == {"first": 4, "second": 8, "last": 4}
    model = onnx.load(path)
    onnx.checker.check_model(model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    kinds = {name: stored[f"{name}_quantized"].data_type for name in ("first", "second", "last")}
    assert kinds == {"first": TensorProto.INT4, "second": TensorProto.INT8, "last": TensorProto.INT4}
    for layer in weight_nodes(onnx.load(small)):
        codes = numpy_helper.to_array(stored[f"{layer.name}_quantized"]).astype(np.float64)
        scale = numpy_helper.to_array(stored[f"{layer.name}_scale"]).reshape(-1, *[1] * (codes.ndim - 1))
        np.testing.assert_allclose(codes * scale, layer.weight, rtol=1e-6)
    # 216 and 32 integers take half a byte less each; ±6 by the two zero points, which are no longer there.
    saved = (tmp_path / "wide.onnx").stat().st_size - path.stat().st_size
    assert saved > (216 + 32) / 2
    expected_logits = expected(small, steps=False)
    step = np.abs(expected_logits).max() / 255
    for run in (run_onnx, run_openvino):
        found = run(path)(X.numpy())
        assert 0 < np.abs(found - expected_logits).max() < 6 * step
        assert np.abs(found - run(tmp_path / "wide.onnx")(X.numpy())).max() < 3 * step  # roundings go the other way
    wider = onnx.load(tmp_path / "wide.onnx")
    for tensor in wider.graph.initializer:
        if tensor.name in ("first_quantized", "last_quantized"):
            codes = numpy_helper.to_array(tensor).copy()
            codes.flat[0] = -9 if tensor.name == "first_quantized" else 100
            tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))
    onnx.save(wider, tmp_path / "wider.onnx")
    with pytest.raises(CodeqError, match=r"no layer lie in -8 … 7; the smallest are those of 'first', up to 9\."):
        store_as_int4(tmp_path / "wider.onnx", path)


def test_known_scales_of_inputs_are_taken(small, tmp_path):
    scales = {"x": ActivationScale(0.05, 100), "b": ActivationScale(0.25, 0, bits=4)}
    for number, export in enumerate((export_qdq, export_qonnx)):
        export(small, [X], tmp_path / "q.onnx", scales)
        model = onnx.load(tmp_path / "q.onnx")
        stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        quantizers = {node.input[0]: node for node in model.graph.node if node.op_type in ("QuantizeLinear", "Quant")}
        found = {name: [float(stored[n]) for n in quantizers[name].input[1:]] for name in ("x", "b", "e")}
        assert found["x"][:2] == [pytest.approx(0.05), 100]
        assert (found["b"][0] == 0.25) == bool(number)  # 4 bits are none of the integers of QDQ form
        assert 0 < found["e"][0] < 0.1
    assert found["b"][1:] == [0, 4]


def test_a_layer_that_reads_a_tensor_before_its_quantizer_has_one_of_its_own_in_qonnx(small, tmp_path):
    path = tmp_path / "q.onnx"
    export_qonnx(small, [X], path, {"b": ActivationScale(0.25, 0, bits=4, readers=frozenset({"n4"}))})
    model = onnx.load(path)
    onnx.checker.check_model(model, check_custom_domain=False)
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    quants = {node.output[0]: node for node in model.graph.node if node.op_type == "Quant"}
    (conv,) = [node for node in model.graph.node if node.name == "n3"]
    (add,) = [node for node in model.graph.node if node.name == "n4"]
    assert [quants[name].input[0] for name in (conv.input[0], add.input[0])] == ["b", "b"]
    assert [float(stored[quants[name].input[3]]) for name in (conv.input[0], add.input[0])] == [8, 4]
    assert float(stored[quants[conv.input[0]].input[1]]) < 0.05
    assert np.isfinite(run_qonnx(path)(X.numpy())).all()


class Copying(nn.Module):
    """Two layers that read one tensor, the second a copy of it, which ONNX files do not have."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        return self.first(x) + self.second(x.clone()) + self.third(x.reshape(-1, 2, 3).flatten(1))


def test_different_levels_of_one_tensor_are_refused_by_the_names_of_its_quantizers(tmp_path):
    torch.manual_seed(0)
    net, x = Copying().eval(), torch.randn(8, 6)
    attach_activation_quantizers(net, x, 4, "minmax", ["third"])
    scales = export_with_scales(net, x, tmp_path / "m.onnx")
    assert len(scales) == 1  # what `third` reads is none of the levels
    net.second.input_quantizer.step.mul_(2)
    with pytest.raises(
        CodeqError,
        match=r"first\.input_quantizer and second\.input_quantizer quantize one tensor with different levels",
    ):
        export_with_scales(net, x, tmp_path / "m.onnx")


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for _ in range(2):
            x = torch.relu(self.body(x))
        return self.fc(x.mean((2, 3)))


def test_a_layer_that_is_called_twice_is_one_quantized_weight_in_qonnx(tmp_path):
    torch.manual_seed(0)
    net, x = Twice().eval(), torch.randn(4, 3, 8, 8)
    export_onnx(net, x, tmp_path / "float.onnx")
    export_qonnx(tmp_path / "float.onnx", [x], tmp_path / "qonnx.onnx")
    graph = onnx.load(tmp_path / "qonnx.onnx").graph
    names = [initializer.name for initializer in graph.initializer]
    outputs = [output for node in graph.node for output in node.output]
    assert len(set(names)) == len(names)
    assert len(set(outputs)) == len(outputs)
    with torch.no_grad():
        expected = net(x).numpy()
    assert run_qonnx(tmp_path / "qonnx.onnx")(x.numpy()) == pytest.approx(
        expected, abs=0.05 * float(np.abs(expected).max())
    )


def test_qdq_refuses_a_transposed_convolution_with_groups_and_bias_by_name(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 2, 2, groups=4), nn.Conv2d(8, 2, 1)).eval()
    x = torch.randn(2, 3, 6, 6)
    export_onnx(net, x, tmp_path / "float.onnx")
    with pytest.raises(
        CodeqError, match=r"1\.weight: ONNX Runtime cannot quantize a transposed convolution with 4 groups"
    ):
        export_qdq(tmp_path / "float.onnx", [x], tmp_path / "qdq.onnx")
