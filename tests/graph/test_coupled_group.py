import pytest
from torch import nn

from codeq.common.errors import CodeqError
from codeq.graph.channels import coupled_groups
from codeq.graph.coupled_group import coupled_group
from codeq.graph.tracing import trace
from codeq.models import resnet20

GRAPH = trace(resnet20())
GROUPS = coupled_groups(GRAPH)


def test_a_stream_channel_names_every_writer_its_way_to_the_sum_and_every_reader():
    group = coupled_group(GRAPH, GROUPS, "layer2.1.conv2", 11)  # stage 1's channel 3, shifted by a quarter of 32 / 2
    stages = {"layer1": 3, "layer2": 11, "layer3": 27}
    blocks = [(f"{stage}.{i}", c) for stage, c in stages.items() for i in range(3)]
    assert group.writers == (("conv1", 3), *((f"{block}.conv2", c) for block, c in blocks))
    assert group.chains[0] == "conv1[3] → bn1 → relu → layer1_0_shortcut → add (add)"
    assert group.chains[4:6] == (
        "layer2.0.conv2[11] → layer2.0.bn2 → add (add_3)",
        "layer2.1.conv2[11] → layer2.1.bn2 → add (add_4)",
    )
    # The first block of a stage reads what the stage before it left.
    reads = [("layer1.0", 3), ("layer1.1", 3), ("layer1.2", 3), ("layer2.0", 3), ("layer2.1", 11), ("layer2.2", 11)]
    reads += [("layer3.0", 11), ("layer3.1", 27), ("layer3.2", 27)]
    assert group.readers == (*((f"{block}.conv1", c) for block, c in reads), ("linear", 27))
    assert dict(group.batchnorms) == {"bn1": 3, **{f"{block}.bn2": c for block, c in blocks}}
    lines = str(group).splitlines()
    assert lines[0].startswith("channel 3 of conv1 is pruned when")
    assert len(lines) == 1 + 10 + 10
    assert "  slice  linear[:, 27]" in lines


def test_what_leaves_the_network_is_in_no_group():
    assert coupled_group(GRAPH, GROUPS, "linear", 0) is None


@pytest.mark.parametrize(
    ("layer", "channel", "message"),
    [
        ("layer4", 0, "layer 'layer4'"),
        ("conv1", 16, r"channel=16: layer 'conv1' has channels 0 … 15"),
        ("conv1", -1, "-1"),
    ],
)
def test_mistakes(layer, channel, message):
    with pytest.raises(CodeqError, match=message):
        coupled_group(GRAPH, GROUPS, layer, channel)


def test_the_way_of_a_channel_may_end_at_a_layer_that_is_not_followed():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.up = nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(4, 2, 2)

        def forward(self, x):
            return self.up(self.conv(x)[:, :4])

    graph = trace(Cut(), (3, 4, 4))
    groups = coupled_groups(graph)
    assert coupled_group(graph, groups, "conv", 5).chains == ("conv[5] → move (getitem) → layer (up)",)
    assert coupled_group(graph, groups, "conv", 0) is None
