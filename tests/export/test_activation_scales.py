import torch
from cases import each
from torch import nn

from codeq.export.activation_scales import describe_ranges
from codeq.graph.activations import attach_activation_quantizers


@each(
    ("bits", "text"),
    [
        (8, "qdq and qonnx: ranges of activations from F"),
        (4, "qonnx: ranges of activations from F; qdq: ranges of 8 bits, measured anew, as those in F have 4"),
        (12, "qdq and qonnx: ranges of 8 bits, measured anew, as those in F have 12"),
    ],
)
def test_formats_name_the_ranges_that_they_take(bits, text):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    attach_activation_quantizers(net, torch.zeros(2, 3), bits, "minmax")
    assert describe_ranges(["qdq", "qonnx"], net, "F") == text
