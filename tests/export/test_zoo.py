"""Float and packed files of networks of other libraries, executed on images."""

import pytest
import torch

from codeq import attach_weight_quantizers
from codeq.export import load_packed_network, save_packed
from codeq.export.onnx_float import export_onnx, weight_nodes
from codeq.export.qdq import export_qdq
from codeq.export.runtimes import convert_to_openvino, run_onnx, run_openvino
from codeq.graph.baking import baked_copy
from codeq.models import MODELS
from codeq.quantizer.layers import named_layers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [
        ("torchvision:mobilenet_v2", {}, 64),
        ("torchvision:resnet18", {}, 64),
        ("timm:vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, 32),
    ],
)
def test_networks_of_other_libraries_are_exported(name, kwargs, size, tmp_path):
    import onnx

    model = MODELS[name](num_classes=10, **kwargs).eval()
    attach_weight_quantizers(model, [], "deadzone", {"max_bits": 5, "granularity": "channel", "grid": "affine"})
    x = torch.randn(8, 3, size, size)
    net = baked_copy(model)
    with torch.no_grad():
        expected = net(x).numpy()
    largest = abs(expected).max()
    export_onnx(net, x[:2], tmp_path / "m.onnx")
    assert len(list(weight_nodes(onnx.load(tmp_path / "m.onnx")))) == len(list(named_layers(net)))
    convert_to_openvino(tmp_path / "m.onnx", tmp_path / "m.xml")
    save_packed(model, tmp_path / "m.codeq", x[:2])
    packed = load_packed_network(tmp_path / "m.codeq")
    with torch.no_grad():
        assert abs(packed(x).numpy() - expected).max() < 1e-4 * largest
    assert abs(run_onnx(tmp_path / "m.onnx")(x.numpy()) - expected).max() < 1e-4 * largest
    assert abs(run_openvino(tmp_path / "m.xml")(x.numpy()) - expected).max() < 1e-4 * largest
    errors = export_qdq(tmp_path / "m.onnx", [x], tmp_path / "q.onnx")
    assert max(errors.values()) < 0.01
    assert sum(error == 0 for error in errors.values()) > 0.8 * len(errors)  # affine: exact
    found = run_onnx(tmp_path / "q.onnx")(x.numpy())
    assert abs(found - expected).max() < 0.5 * largest
