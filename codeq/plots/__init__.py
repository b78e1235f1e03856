"""Figures of recorded tables: pure functions that return a matplotlib `Figure`.

Colours have one meaning in all figures, and layers stand in order of execution. The figures use matplotlib's default
settings, whatever the user's are. Matplotlib and seaborn are imported inside the functions, so that ``import codeq``
stays fast.
"""

from __future__ import annotations

from codeq.plots.activations import activation_histograms
from codeq.plots.channels import channel_liveness, liveness_over_time
from codeq.plots.comparison import compared_curves, compared_layers
from codeq.plots.costs import layer_costs, layer_profile
from codeq.plots.curves import accuracy_curve, sparsity_curves, target_course, training_curves
from codeq.plots.groups import group_differences, group_means
from codeq.plots.histograms import weight_histogram, weight_histograms
from codeq.plots.latency import latency_bars
from codeq.plots.layers import layer_sparsity_bars, per_layer_channels
from codeq.plots.sensitivity import sensitivity_heatmap
from codeq.plots.sizes import size_bars
from codeq.plots.studies import bits_over_groups, learning_bands, parameter_effects
from codeq.plots.style import COLORS, footnote
from codeq.plots.theme import set_theme
from codeq.plots.tradeoff import accuracy_against_bops, pareto_front
from codeq.plots.weights import kernel_maps, sparsity_map

__all__ = [
    "COLORS", "footnote", "set_theme",
    # over the epochs of a run
    "accuracy_curve", "sparsity_curves", "training_curves", "target_course", "liveness_over_time",
    # layers and channels at one epoch
    "channel_liveness", "per_layer_channels", "layer_sparsity_bars", "layer_profile", "layer_costs",
    "size_bars", "latency_bars",
    # weights
    "sparsity_map", "kernel_maps", "weight_histogram", "weight_histograms",
    # activations
    "activation_histograms",
    # several runs, sensitivity scan
    "accuracy_against_bops", "pareto_front", "compared_curves", "compared_layers", "sensitivity_heatmap",
    # groups of runs
    "group_means", "group_differences", "parameter_effects", "learning_bands", "bits_over_groups",
]  # fmt: skip
