import gzip
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from run_tables import COMPACTED_WEIGHTS, DENSE_WEIGHTS, compacted_run
from torch import nn

from codeq import Run, analysis, attach_weight_quantizers
from codeq.runs.checkpoints import save_checkpoint


class Stored(Run):
    """A run whose checkpoint holds a given network."""

    config = SimpleNamespace(img_size=8)

    def __init__(self, folder, network):
        super().__init__(folder)
        self.network = network

    def load_model(self):
        return self.network


def test_complex_numbers_take_the_bytes_of_two(tmp_path):
    net = nn.Sequential(nn.Linear(64, 32, bias=False))
    net.register_buffer("phases", torch.randn(10, dtype=torch.complex64))
    attach_weight_quantizers(net, [], "uniform", {"bitwidth": 4})
    run = Stored(tmp_path, net)
    float32, _, packed, coded = analysis.size_table(run)["bytes"]
    assert (float32, packed) == (4 * 2048 + 80, 2048 // 2 + 80)
    assert 80 < coded < packed + 600


def test_sizes_are_those_of_a_count_by_hand_and_of_the_exported_files(tmp_path, monkeypatch):
    net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32))
    attach_weight_quantizers(net, [], "uniform", {"bitwidth": 4})
    run = Stored(tmp_path, net)
    table = analysis.size_table(run)
    assert table["form"].tolist() == ["float32", "gzip of float32", "packed codes", "packed and entropy-coded"]
    rest = 4 * (32 + 4 * 32)  # bias; weight, bias, mean and variance
    float32, zipped, packed, coded = table["bytes"]
    assert float32 == 4 * 2048 + rest
    assert packed == 2048 // 2 + rest
    weights = net[0].weight.detach().numpy().tobytes()
    assert len(gzip.compress(weights, 9)) < zipped < len(gzip.compress(weights, 9)) + rest
    codes = (net[0].weight / net[0].weight.abs().max() * 7).round().long().flatten()
    share = torch.bincount(codes + 7).double() / 2048
    bound = -2048 / 8 * float((share[share > 0] * share[share > 0].log2()).sum())
    assert bound < coded < bound + rest + 600  # header, names and tables
    assert table["relative"].tolist() == [bytes_ / float32 for bytes_ in table["bytes"]]
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "verdict.json").write_text(json.dumps([{"format": "qdq", "bytes": 77}]))
    monkeypatch.setitem(sys.modules, "constriction", None)
    table = analysis.size_table(run)
    assert table["form"].tolist()[2:] == ["packed codes", "ONNX QDQ, 8 bit (exported)"]
    assert table["bytes"].iloc[-1] == 77
    assert analysis.size_table(run)["relative"].iloc[-1] == pytest.approx(77 / float32)
    for step in (20, 40):
        save_checkpoint(tmp_path / "checkpoints", {}, epoch=step, step=step, accuracy=0.5)
    entries = [
        {"format": name, "bytes": 77, "checkpoint": f"step-{step}.pt"} for name, step in (("qdq", 20), ("onnx", 40))
    ]
    (tmp_path / "exports" / "verdict.json").write_text(json.dumps(entries))
    exported = ["ONNX QDQ, 8 bit (exported from step-20.pt)", "ONNX, float32 (exported)"]
    assert analysis.size_table(run)["form"].tolist()[3:] == exported


@pytest.mark.parametrize("quantized", [False, True])
def test_shared_weights_count_once_in_every_form(tmp_path, quantized):
    net = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(2)))
    net[1].weight = net[0].weight
    if quantized:
        attach_weight_quantizers(net, [], "uniform", {"bitwidth": 4})
    table = analysis.size_table(Stored(tmp_path, net))
    float32, zipped, packed, coded = table["bytes"]
    assert float32 == 4 * 64 * 64
    assert packed == float32 / (8 if quantized else 1)
    assert zipped < 1.01 * float32
    assert coded < 1.1 * packed


def test_a_compacted_network_is_compared_with_the_whole_one(tmp_path, monkeypatch):
    table = analysis.size_table(compacted_run(tmp_path / "run", monkeypatch))
    assert table["form"].tolist()[:4] == ["float32", "float32, compacted", "gzip of float32", "packed codes"]
    whole, compacted, _, packed = table["bytes"][:4]
    assert whole == 4 * (DENSE_WEIGHTS + 4 + 10 + 4 * 4)  # biases; weight, bias, mean and variance
    assert 4 * COMPACTED_WEIGHTS < compacted <= 4 * (COMPACTED_WEIGHTS + 2 + 10 + 4 * 2)
    assert packed == compacted  # all is float
    assert table["relative"].iloc[:2].tolist() == [1, compacted / whole]


def test_a_network_that_cannot_be_packed_has_its_other_sizes(tmp_path):
    net = nn.Sequential(nn.Linear(64, 32))
    net.register_buffer("counts", torch.zeros(4, dtype=torch.uint16))  # of no type that packed files have
    assert analysis.size_table(Stored(tmp_path, net))["form"].tolist() == ["float32", "gzip of float32", "packed codes"]
