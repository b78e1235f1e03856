"""MACs and BOPs of a network: structured and unstructured.

The structured count goes by one of two named accountings. ``"weights"`` (`structured_stats`) is the classical one: a
filter of zeros is null, whatever BatchNorm adds to it. ``"exact"`` (`exact_stats`) counts what the network really
computes, which is the cost of the compacted network.

MACs count multiplications by weights of conv and linear layers only (paper eq. (20)-(21)), so the products of
activations with each other inside an attention (`QKᵀ` and its product with `V`) are not counted. BOPs are MACs × weight
bits × activation bits (eq. (22)).
A *compression ratio* is baseline / compressed (×); its inverse is the *relative BOPs* that papers quote in percent.
"""

from codeq.metrics.bops import dense_stats, exact_stats, structured_stats, unstructured_stats
from codeq.metrics.codes import enclosed_bits, weight_codes
from codeq.metrics.comparison import QuantizationComparison, compression_ratio
from codeq.metrics.ledger import ledger
from codeq.metrics.macs import effective_macs, unstructured_macs
from codeq.metrics.nulls import NullChannels, nonzero_kernels, null_output_channels
from codeq.metrics.records import LayerRecord, measure
from codeq.metrics.stats import LayerStats, ModelStats
from codeq.metrics.storage import StorageBytes, storage_bytes

__all__ = [
    "QuantizationComparison", "compression_ratio",
    # null channels and the MACs of one layer
    "NullChannels", "nonzero_kernels", "null_output_channels", "effective_macs", "unstructured_macs",
    # a whole model
    "LayerRecord", "LayerStats", "ModelStats", "measure",
    "dense_stats", "structured_stats", "exact_stats", "unstructured_stats",
    "ledger",
    # weights as a machine and as a file see them
    "weight_codes", "enclosed_bits", "StorageBytes", "storage_bytes",
]  # fmt: skip
