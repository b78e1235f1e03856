"""Channel flow: dependence of every channel on the input, the values of constant channels, and unread channels."""

from codeq.flow.analysis import ChannelFlow, Streams, channel_flow
from codeq.flow.layers import Borders

__all__ = ["Borders", "ChannelFlow", "Streams", "channel_flow"]
