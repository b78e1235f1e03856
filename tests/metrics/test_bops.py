"""The exact accounting of layers that it does not count, and of transposed convolutions."""

import pytest
import torch
from torch import nn

from codeq.common.errors import CodeqError
from codeq.flow.explain import explain
from codeq.metrics import exact_stats, measure, structured_stats


class Queries(nn.Module):
    """Adds what a layer makes of constants alone."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.fc = nn.Parameter(torch.randn(5, 8)), nn.Linear(8, 8)
        self.proj, self.spare, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.fc(x) + self.proj(self.query))


def test_layers_that_are_called_on_constants_are_not_said_to_be_never_called():
    notes = exact_stats(Queries(), (5, 8)).notes
    assert notes == (
        "layer 'proj' is called on constants alone: no MACs in the exact accounting",
        "layer 'spare' is never called: it counts no MACs",
    )
    assert {record.name: record.spatial for record in measure(Queries(), (5, 8))}["proj"] == (5, 1)
    with pytest.raises(CodeqError, match="layer 'proj' is called on constants alone: none of its channels depends"):
        explain(Queries(), "proj", 0, (5, 8))
    with pytest.raises(CodeqError, match="layer 'spare' is not called; layers: fc, head"):
        explain(Queries(), "spare", 0, (5, 8))


def test_the_positions_of_a_transposed_convolution_are_those_of_its_input():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 2, stride=2))
    for stats in (exact_stats(net, (3, 6, 6)), structured_stats(measure(net, (3, 6, 6)))):
        assert [layer.spatial for layer in stats.layers] == [(4, 4), (16, 1)]
