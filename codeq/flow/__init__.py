"""Channel flow with values: which channels of a network depend on its input, what the others are, which are read."""

from codeq.flow.analysis import ChannelFlow, Streams, channel_flow
from codeq.flow.layers import Borders

__all__ = ["Borders", "ChannelFlow", "Streams", "channel_flow"]
