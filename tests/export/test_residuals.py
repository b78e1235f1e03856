"""Files of a network whose residual adds share a step, and of one with integers on both sides of zero behind ReLU."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

from codeq.compaction import compact
from codeq.export import load_packed_network, save_packed
from codeq.export.activation_scales import export_with_scales
from codeq.export.onnx_float import export_onnx
from codeq.export.program import save_program
from codeq.export.qdq import export_qdq
from codeq.export.qonnx_graph import export_qonnx
from codeq.export.runtimes import convert_to_openvino, run_onnx, run_openvino, run_pt2, run_qonnx
from codeq.graph.activations import attach_activation_quantizers
from codeq.graph.baking import baked_copy
from codeq.quantizer.attach import attach_weight_quantizers


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)) + x)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(Block(8), Block(8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def quantized(**options) -> nn.Module:
    torch.manual_seed(0)
    net = Network()
    with torch.no_grad():
        net.blocks[0].conv.weight[2] = 0
        for block in net.blocks:
            block.bn.running_mean.normal_(0, 0.2)
            block.bn.bias.normal_(0, 0.3)
    attach_weight_quantizers(
        net, [], "deadzone", {"fixed_bit_val": 5, "learnable_bit": False, "grid": "affine", "granularity": "channel"}
    )
    attach_activation_quantizers(net.eval(), X, 8, "minmax", **options)
    return net


@pytest.mark.exhaustive
def test_every_format_adds_integers_of_one_step(tmp_path):
    net = quantized(residual="shared")
    expected = net(X).detach().numpy()
    small = baked_copy(compact(net, X[:8]).model)
    steps = {float(block.bn.output_quantizer.step) for block in net.blocks}
    largest = max(steps)

    def near(found, limit):
        return np.median(np.abs(found - expected)) < 1e-4 and np.abs(found - expected).max() < limit

    export_onnx(small, X[:8], tmp_path / "m.onnx")
    convert_to_openvino(tmp_path / "m.onnx", tmp_path / "m.xml")
    save_program(small, X[:8], tmp_path / "m.pt2")
    save_packed(small, tmp_path / "m.codeq", X[:8])
    packed = load_packed_network(tmp_path / "m.codeq")
    for run in (
        run_onnx(tmp_path / "m.onnx"), run_openvino(tmp_path / "m.xml"), run_pt2(tmp_path / "m.pt2"),
        lambda x: packed(torch.from_numpy(x)).detach().numpy(),
    ):  # fmt: skip
        assert near(run(X.numpy()), largest)  # a rounding at a half may go the other way

    scales = export_with_scales(small, X[:8], tmp_path / "float.onnx")
    export_qonnx(tmp_path / "float.onnx", [X], tmp_path / "qonnx.onnx", scales)
    assert near(run_qonnx(tmp_path / "qonnx.onnx")(X.numpy()), largest)
    export_qdq(tmp_path / "float.onnx", [X], tmp_path / "q.onnx", scales)
    graph = onnx.load(tmp_path / "q.onnx").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    decoders = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    adds = [node for node in graph.node if node.op_type == "Add"]
    of_adds = [{tuple(float(stored[n]) for n in decoders[name].input[1:]) for name in add.input} for add in adds]
    assert all(len(found) == 1 for found in of_adds)
    assert {scale for ((scale, _),) in map(tuple, of_adds)} == {np.float32(step) for step in steps}
    assert np.abs(run_onnx(tmp_path / "q.onnx")(X.numpy()) - expected).max() < 4 * largest
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), options, providers=["CPUExecutionProvider"])
    optimized = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert optimized["QLinearAdd"] == len(adds) == 2
    assert optimized["QLinearConv"] == 3


@pytest.mark.slow
def test_a_symmetric_range_behind_relu_keeps_the_relu(tmp_path):
    net = quantized(symmetric=True)
    scales = export_with_scales(baked_copy(net), X[:8], tmp_path / "float.onnx")
    assert {scale.zero for scale in scales.values()} == {128}
    export_qdq(tmp_path / "float.onnx", [X], tmp_path / "q.onnx", scales)
    found, expected = run_onnx(tmp_path / "q.onnx")(X.numpy()), net(X).detach().numpy()
    assert np.abs(found - expected).max() < 4 * max(scale.scale for scale in scales.values())
