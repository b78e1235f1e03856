"""The list of channel operations that a model becomes, written by hand: what reads what."""

import pytest

from codeq.graph.ops import ChannelGraph, Layer, Output, PerChannel, Source, Sum, UnfollowedWeight, Unknown


@pytest.fixture
def graph() -> ChannelGraph:
    """Return a stem whose BatchNorm feeds both a second convolution and the sum around it."""
    return ChannelGraph(
        (
            Source("x", (), 3),
            Layer("stem", ("x",), 4, "stem.conv", 1, (8, 8)),
            PerChannel("bn", ("stem",), 4, "stem.bn"),
            Layer("conv", ("bn",), 4, "body.conv", 1, (8, 8)),
            PerChannel("relu", ("conv",), 4),
            Sum("add", ("bn", "relu"), 4),
            Unknown("sort", ("add",), 4, "call_function sort"),
            Output("output", ("sort",), 4),
        )
    )


def test_readers_are_all_that_take_a_result_in_order(graph):
    assert [op.name for op in graph.readers("bn")] == ["conv", "add"]
    assert [op.name for op in graph.readers("stem")] == ["bn"]
    assert graph.readers("output") == []


def test_layers_are_found_by_their_dotted_name(graph):
    assert [op.layer for op in graph.layers] == ["stem.conv", "body.conv"]
    assert graph.layer("body.conv").name == "conv"


def test_a_layer_called_twice_is_found_at_its_first_call():
    shared = [Layer(name, ("x",), 4, "conv", 1, (8, 8)) for name in ("first", "second")]
    assert ChannelGraph((Source("x", (), 3), *shared)).layer("conv").name == "first"


def test_a_batchnorm_counts_only_when_it_alone_reads_the_layer(graph):
    assert graph.batchnorms_after("stem.conv") == ("stem.bn",)
    assert graph.batchnorms_after("body.conv") == ()  # an activation follows
    also = ChannelGraph((*graph.ops, Sum("late", ("stem", "stem"), 4)))
    assert also.batchnorms_after("stem.conv") == ()


def test_every_call_of_a_layer_may_have_a_batchnorm_of_its_own(graph):
    call = Layer("again", ("bn",), 4, "stem.conv", 1, (8, 8))
    two = ChannelGraph((*graph.ops, call, PerChannel("bn2", ("again",), 4, "second.bn")))
    assert two.batchnorms_after("stem.conv") == ("stem.bn", "second.bn")
    for op in (call, UnfollowedWeight("again", ("bn",), 4, "transposed", "stem.conv", 1, (8, 8), 256)):
        assert ChannelGraph((*graph.ops, op)).batchnorms_after("stem.conv") == ()  # nothing normalizes this call


def test_unknown_operations_are_listed(graph):
    assert [op.call for op in graph.unknown] == ["call_function sort"]
