"""Compaction: a smaller dense network with the same outputs, and the proof that they are the same."""

from codeq.compaction.compact import CompactionReport, compact
from codeq.compaction.cutting import ChannelCut, cut_channels
from codeq.compaction.gains import measure_gains
from codeq.compaction.proof import Proof, prove

__all__ = ["ChannelCut", "CompactionReport", "Proof", "compact", "cut_channels", "measure_gains", "prove"]
