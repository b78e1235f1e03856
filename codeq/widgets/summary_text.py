"""Text summary of a requantized network in comparison with the trained one."""

from __future__ import annotations

from codeq.analysis.requantize import Requantized
from codeq.common.console import compression


def describe_costs(now: Requantized, trained: Requantized) -> list[str]:
    """Return density, dead filters, bits, BOPs and bytes as lines of text, with their conventions.

    Parameters
    ----------
    now, trained : Requantized
        The same network with and without changed settings.

    Examples
    --------
    >>> from torch import nn
    >>> from codeq.quantizer.attach import attach_weight_quantizers
    >>> from codeq.analysis.requantize import Requantizer
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    >>> _ = attach_weight_quantizers(net, [], "deadzone", {"max_bits": 8})
    >>> requantizer = Requantizer(net, (3, 8, 8))
    >>> describe_costs(requantizer.evaluate(bits={"0": 4}), requantizer.evaluate())[2]
    'Mean bits: 6.00 (trained 8.00)'
    """
    a, b = now.result, trained.result
    return [
        f"Density (non-zero weights, all layers): {now.density:.1%} (trained {trained.density:.1%})",
        f"Dead filters: {now.dead_filters} (trained {trained.dead_filters}); null channels: {now.null_channels} "
        f"(trained {trained.null_channels})",
        f"Mean bits: {a.mean_bits:.2f} (trained {b.mean_bits:.2f})",
        f"BOPs unstructured: {compression(a.unstructured_bops_ratio, 2)}, trained "
        f"{compression(b.unstructured_bops_ratio, 2)}; structured: {compression(a.structured_bops_ratio, 2)}, trained "
        f"{compression(b.structured_bops_ratio, 2)}; against the dense network with weights and activations of 32 bits",
        f"Weights packed at their bits: {now.packed_bytes / 1024:,.1f} KiB (trained "
        f"{trained.packed_bytes / 1024:,.1f}) of {now.float_bytes / 1024:,.1f} KiB of the dense network at 32 bits; "
        "zeros included, scales, biases and BatchNorm excluded",
        *(f"Note: {note}" for note in a.notes),
    ]
