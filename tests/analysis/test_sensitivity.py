from copy import deepcopy

import numpy as np
import pytest
import torch
from networks import Doubling
from reference import absmax, dead_zone, step_size
from torch import nn

from codeq import attach_weight_quantizers
from codeq.analysis.sensitivity import sensitivity
from codeq.common.errors import CodeqError
from codeq.quantizer.layers import latent_weight


def network(quantizer: str | None = "deadzone", **kwargs) -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))
    if quantizer:
        attach_weight_quantizers(net, [], quantizer, kwargs)
    return net


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(40, 1, 8, 8, generator=generator), torch.randint(4, (40,), generator=generator)) for _ in range(3)
    ]


def accuracy(net: nn.Module, batches) -> float:
    net.eval()
    with torch.no_grad():
        return sum(int((net(x).argmax(1) == y).sum()) for x, y in batches) / sum(len(y) for _, y in batches)


def by_hand(net: nn.Module, layer: str, bits: int, share: float) -> nn.Module:
    """A float network with one layer requantized by the oracle, and all others on the levels they had."""
    plain = network(None)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if "parametriz" not in k}, strict=False)
    with torch.no_grad():
        for name in ("0", "4"):
            plain.get_submodule(name).weight.copy_(net.get_submodule(name).weight)
        w = latent_weight(net.get_submodule(layer)).numpy().astype(np.float64)
        r = absmax(w)
        d = 2 * share * r
        _, quantized = dead_zone(w, d, step_size(r, d, bits), bits)
        plain.get_submodule(layer).weight.copy_(torch.from_numpy(quantized))
    return plain


@pytest.mark.parametrize("quantizer", ["deadzone", "uniform", None])
def test_every_cell_is_the_accuracy_of_a_network_requantized_by_hand(quantizer, batches):
    net = network(quantizer)
    if quantizer == "deadzone":
        with torch.no_grad():  # so that the layers are far from float, and their levels not those that are tried
            for layer in (net[0], net[4]):
                layer.parametrizations.weight[0].quantizer.logit_dz.fill_(0.8)
    table = sensitivity(net, batches, bits=(2, 3, 8), dead_zones=(0.0, 0.3, 0.9))
    assert len(table) == 2 * 3 * 3
    assert table["layer"].unique().tolist() == ["0", "4"]
    for row in table.itertuples():
        plain = by_hand(net, row.layer, row.bits, row.dead_zone)
        assert row.accuracy == accuracy(plain, batches)
        weight = plain.get_submodule(row.layer).weight
        assert row.zero_weights == pytest.approx(float((weight == 0).float().mean()))
    assert table["accuracy"].nunique() > 4  # or the comparison would be empty
    assert (table["baseline"] == accuracy(net, batches)).all()
    assert table["drop"].tolist() == (table["baseline"] - table["accuracy"]).tolist()


def test_each_channel_has_its_own_scale_where_its_quantizer_gives_it_one(batches):
    net = network(granularity="channel")
    with torch.no_grad():
        latent_weight(net[0])[0] *= 100
    (row,) = sensitivity(net, batches, bits=[3], dead_zones=[0.5], layers=["0"]).itertuples()
    w = latent_weight(net[0]).detach().numpy()
    zeros = [(dead_zone(c, absmax(c), step_size(absmax(c), absmax(c), 3), 3)[0] == 0).mean() for c in w]
    assert row.zero_weights == pytest.approx(np.mean(zeros))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training, batches):
    net = network().train(training)
    net[1].eval()
    before, modes = deepcopy(net.state_dict()), [m.training for m in net.modules()]
    sensitivity(net, batches, bits=[2], dead_zones=[0.5])
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    net(torch.randn(2, 1, 8, 8)).sum().backward()  # its quantizers are still there, and train
    assert net[0].parametrizations.weight[0].quantizer.logit_dz.grad is not None


def test_one_layer_at_a_time_and_only_those_asked_for(batches):
    table = sensitivity(network(), batches, bits=[2], dead_zones=[0.5], layers=["4"])
    whole = sensitivity(network(), batches, bits=[2], dead_zones=[0.5])
    assert table["layer"].tolist() == ["4"]
    assert table["accuracy"].tolist() == whole.loc[whole["layer"] == "4", "accuracy"].tolist()


def test_batches_that_can_be_gone_through_but_once_are_kept(batches):
    once = sensitivity(network(), iter(batches), bits=[2, 8], dead_zones=[0.5])
    assert (
        once["accuracy"].tolist() == sensitivity(network(), batches, bits=[2, 8], dead_zones=[0.5])["accuracy"].tolist()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ["O"]}, "layer 'O' is unknown"),
        ({"layers": []}, "at least one layer"),
        ({"bits": [1]}, r"bits=\[1\].*from 2 to 16"),
        ({"bits": [2.5]}, "must be an integer"),
        ({"bits": []}, "nothing to scan"),
        ({"layers": "14"}, r"layers='14': must be a list, e\.g\. \['14'\]"),
        ({"bits": 4}, r"bits=4: must be a list, e\.g\. \[4\]"),
        ({"dead_zones": 0.5}, r"dead_zones=0\.5: must be a list"),
        ({"dead_zones": [1.0]}, "from 0 to below 1"),
        ({"dead_zones": [-0.1]}, "from 0 to below 1"),
        ({"loader": []}, "loader has no batches"),
        ({"loader": [(torch.zeros(2, 1, 8, 8), torch.tensor([0, 4]))]}, "1 of 2 labels are none of the 4 classes"),
    ],
)
def test_a_mistake_is_one_clear_error(arguments, message, batches):
    with pytest.raises(CodeqError, match=message):
        sensitivity(network(), **({"loader": batches} | arguments))


def test_an_input_whose_scores_are_nan_is_not_right():
    batch = torch.full((2, 1, 8, 8), float("nan")), torch.tensor([0, 0])  # argmax of NaN is 0
    table = sensitivity(network(), [batch], bits=[2], dead_zones=[0.5])
    assert not table[["accuracy", "baseline"]].any(axis=None)


def test_every_layer_is_measured_on_the_same_images_where_a_model_overwrites_its_input(batches):
    torch.manual_seed(1)
    net, kept = Doubling(64).eval(), [(x.clone(), y) for x, y in batches]
    table = sensitivity(net, kept, bits=(4,), dead_zones=(0.3,))
    fresh = [(x.clone(), y) for x, y in batches]
    assert table["baseline_loss"].nunique() == 1
    assert table["baseline"].tolist() == [accuracy(net, fresh)] * 2


def test_all_uses_of_a_shared_weight_change_together(batches):
    net = nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in range(2)), nn.Linear(64, 4))
    net[2].weight = net[1].weight
    attach_weight_quantizers(net, [], "deadzone", {})
    table = sensitivity(net, batches, [2, 4], [0.25], ["1", "2"])
    first, second = (table.query("layer == @name")["loss"].tolist() for name in ("1", "2"))
    assert first == second
    assert table["baseline_loss"].nunique() == 1


def test_batches_of_another_kind_are_refused_and_further_entries_are_left_out(batches):
    (x, y), net = batches[0], network()
    for batch, message in ({"x": x}, "a value of type dict"), (x, "has no labels"), ((x.numpy(), y), "type ndarray"):
        with pytest.raises(CodeqError, match=message):
            sensitivity(net, [batch], bits=[2], dead_zones=[0.5])
    losses = [sensitivity(net, [batch], [2], [0.5])["loss"].tolist() for batch in ((x, y), (x, y, torch.arange(40)))]
    assert losses[0] == losses[1]
