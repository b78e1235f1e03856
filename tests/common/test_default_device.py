"""Results are the same whatever PyTorch's default device is; "meta" stands for a GPU, and holds no values at all."""

import pytest
import torch
from torch import nn

from codeq import Evaluator, coupled_group_lasso, fused_quantization, ledger
from codeq.analysis.sensitivity import sensitivity
from codeq.compaction import compact
from codeq.compaction.assembly import build_compacted
from codeq.compaction.structure import describe
from codeq.data import hold_out, load_dataset
from codeq.graph.baking import baked_copy
from codeq.quantizer.attach import attach_weight_quantizers
from codeq.training.folding import folded

SIZE = (3, 4, 4)
X, LABELS = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])


class Weighted(nn.Module):
    """A network whose forward makes a tensor without a device."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.hidden, self.fc = nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x):
        x = self.hidden(self.norm(self.conv(x)).relu()).flatten(2)
        return self.fc((x * torch.arange(x.shape[2])).mean(2))


def network() -> nn.Module:
    torch.manual_seed(0)
    net = Weighted()
    with torch.no_grad():
        net.conv.weight[[1, 4]] = 0
    attach_weight_quantizers(net, [], "deadzone", {"max_bits": 4, "init_deadzone_logit": 1.0})
    return net.eval()


def rebuilt(net):
    kept = compact(net, X, keep_quantizers=True).model
    built = build_compacted(describe(kept), kept.state_dict(), net)
    built.load_state_dict(kept.state_dict())
    return [parameter.sum().item() for parameter in built.parameters()]


def fused(net):
    with fused_quantization(net):
        return [layer.weight.sum().item() for layer in (net.conv, net.hidden, net.fc)]


RESULTS = {
    "costs": lambda net: ledger(net, SIZE)["value"].tolist(),
    "evaluation": lambda net: Evaluator(net, SIZE).evaluate(net).unstructured_sparsity,
    "compaction": lambda net: compact(net, X).proof,
    "stored networks": rebuilt,
    "folding": lambda net: str(folded(baked_copy(net), SIZE)),
    "coupled groups": lambda net: coupled_group_lasso(net, input_size=SIZE, by_size=True)(net).item(),
    "fused quantization": fused,
    "data": lambda _: [x.sum().item() for x, _ in load_dataset("digits").train_batches(500, seed=0, epoch=0)],
    "generated data": lambda _: hold_out(load_dataset("synthetic"), 0.1, 0)[1].test.labels.tolist(),
}


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
def test_results_do_not_depend_on_the_default_device(result):
    expected, net = result(network()), network()
    with torch.device("meta"):
        assert result(net) == expected


def test_a_scan_does_not_depend_on_the_default_device():
    torch.manual_seed(0)
    net, batch = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), (X, LABELS)
    expected = sensitivity(net, [batch], [2], [0.3])["loss"].tolist()
    with torch.device("meta"):
        assert sensitivity(net, [batch], [2], [0.3])["loss"].tolist() == expected
