"""Files that leave the workbench: a packed network, and models for other runtimes."""

from codeq.export.packed import PackedSizes, load_packed, load_packed_network, packed_sizes, save_packed

__all__ = ["PackedSizes", "load_packed", "load_packed_network", "packed_sizes", "save_packed"]
