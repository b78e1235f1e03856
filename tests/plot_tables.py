"""Tables of a small invented network, and every figure drawn from them."""

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from codeq import plots

NAMES = ["stem", "layer1", "head"]  # not in alphabetical order
HISTORY = pd.DataFrame(
    {
        "epoch": [0, 1, 2],
        "lr": [1e-3, 5e-4, 1e-5],
        "train/ce_loss": [2.0, 1.0, 0.5],
        "train/accuracy": [0.5, 0.7, 0.9],
        "eval/loss": [1.5, 1.0, 0.75],
        "eval/accuracy": [0.4, 0.8, 0.75],
        "sparsity/unstructured": [0.0, 0.25, 0.5],
        "sparsity/structured": [0.0, 0.0, 0.125],
        "quantizer/mean_bits": [8.0, 6.0, 4.5],
        "compression/unstructured_bops_ratio": [4.0, 8.0, 20.0],
        "compression/structured_bops_ratio": [4.0, 5.0, 10.0],
        "train/sparsity_coeff": [0.0, 5.0, 10.0],
        "train/lasso_coeff": [0.0, 2.0, 4.0],
        "train/l1_coeff": [0.0, 3.0, 6.0],
    }
)
OVER_TIME = pd.DataFrame(
    {
        "epoch": [0, 0, 0, 1, 1, 1],
        "layer": NAMES * 2,
        "filters": [4, 8, 10] * 2,
        "dead_filters": [0, 0, 0, 1, 8, 0],
    }
)
COSTS = pd.DataFrame(
    {
        "layer": NAMES,
        "bits": [8, 4, 32],
        "dead_zone": [0.1, 0.5, np.nan],
        "density": [0.9, 0.25, 1.0],
        "null_in": [0, 2, 1],
        "null_out": [2, 1, 0],
        "dense_bops": [1024e6, 2048e6, 1e6],
        "structured_bops": [256e6, 128e6, 1e6],
        "unstructured_bops": [200e6, 64e6, 1e6],
        "dense_share": [0.25, 0.5, 0.25],
        "structured_share": [0.5, 0.25, 0.25],
        "unstructured_share": [0.6, 0.3, 0.1],
    }
)
LEVELS = pd.DataFrame(
    {
        "code": [-1, 0, 1],
        "level": [-1.0, 0.0, 1.0],
        "lower": [-np.inf, -0.5, 0.5],
        "upper": [-0.5, 0.5, np.inf],
        "count": [1, 4, 2],
    }
)
WEIGHTS = np.array([-1.2, -0.3, 0.0, 0.1, 0.2, 0.9, 1.1])
SUMMARY = pd.DataFrame(
    {
        "run": ["a", "b", "c"],
        "dataset": "cifar10",
        "accuracy": [0.90, 0.92, 0.89],
        "unstructured_bops": [0.02, 0.05, 0.03],
        "structured_bops": [0.10, 0.08, 0.20],
    }
)
PUBLISHED = pd.DataFrame(
    {
        "model": "ResNet-20", "dataset": "CIFAR-10", "source": "arXiv 1", "method": ["base", "new"],
        "accuracy": [0.917, 0.918], "relative_bops": [1.0, 0.026], "structured": [True, False],
    }
)  # fmt: skip
SCAN = pd.DataFrame(
    {
        "layer": ["stem"] * 4 + ["head"] * 4,
        "bits": [2, 2, 4, 4] * 2,
        "dead_zone": [0.0, 0.5] * 4,
        "accuracy": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
        "baseline": 0.8,
    }
)
LAYERS = pd.DataFrame(
    {
        "layer": ["conv1", "layer1.0.conv1", "linear"],
        "bits": [8, 4, 32],
        "filters": [16, 32, 10],
        "dead_filters": [0, 8, 0],
        "structured_pruning": [0.0, 0.25, 0.0],
        "unstructured_pruning": [0.1, 0.5, 0.2],
    }
)
GROUPS = pd.DataFrame(
    {
        "group": ["l2", "l1", "none"], "n": [2, 1, 0], "pairs": [2, 1, 0], "mean": [0.91, 0.9, np.nan],
        "low": [0.88, np.nan, np.nan], "high": [0.94, np.nan, np.nan],
    }
)  # fmt: skip
GROUP_RUNS = pd.DataFrame({"group": ["l2", "l2", "l1"], "lr": [0.1, 0.2, None], "eval/accuracy": [0.9, 0.92, 0.9]})
CURVES = pd.DataFrame(
    {
        "group": ["l2", "l2", "l1"], "epoch": [0, 1, 0], "n": [2, 2, 1],
        "mean": [0.5, 0.75, 0.25], "std": [0.1, 0.05, np.nan],
    }
)  # fmt: skip
BITS = pd.DataFrame({"group": ["l2", "l2", "l1"], "layer": ["stem", "head", "stem"], "mean": [4.5, 2.0, 8.0]})
UPDATES = pd.DataFrame(
    {
        "epoch": [0, 0, 1, 1], "batch": [0, 6, 0, 6], "batches": 12, "figure": [0.25, 0.2, 0.1, 0.05],
        "plan": [0.25, 0.15, 0.06, 0.05], "factor": [1.0, 4.0, 8.0, 0.5],
    }
)  # fmt: skip
LIVENESS = {"conv1": np.array([True, False]), "conv2": np.array([False, True, True, True])}
KERNELS = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2) % 4

ACTIVATIONS = pd.DataFrame(
    {"code": [0, 1, 2, 3], "level": [0.0, 0.5, 1, 1.5], "count": [4, 0, 3, 1], "clipped": [0, 0, 0, 1]}
)

FIGURES = {
    "accuracy_curve": lambda: plots.accuracy_curve(HISTORY),
    "sparsity_curves": lambda: plots.sparsity_curves(HISTORY),
    "training_curves": lambda: plots.training_curves(HISTORY),
    "target_course": lambda: plots.target_course(UPDATES, "relative_bops", 0.05),
    "channel_liveness": lambda: plots.channel_liveness(LIVENESS),
    "liveness_over_time": lambda: plots.liveness_over_time(OVER_TIME),
    "per_layer_channels": lambda: plots.per_layer_channels(LAYERS),
    "layer_sparsity_bars": lambda: plots.layer_sparsity_bars(LAYERS),
    "layer_profile": lambda: plots.layer_profile(COSTS),
    "layer_costs": lambda: plots.layer_costs(COSTS),
    "sparsity_map": lambda: plots.sparsity_map(KERNELS, "conv1"),
    "kernel_maps": lambda: plots.kernel_maps({"stem": np.ones((2, 3, 3, 3)), "head": np.zeros((4, 2))}),
    "weight_histogram": lambda: plots.weight_histogram(WEIGHTS, LEVELS, "stem"),
    "weight_histograms": lambda: plots.weight_histograms({"stem": (WEIGHTS, LEVELS), "head": (WEIGHTS, LEVELS)}),
    "activation_histograms": lambda: plots.activation_histograms({"stem": (np.abs(WEIGHTS), ACTIVATIONS)}),
    "accuracy_against_bops": lambda: plots.accuracy_against_bops(SUMMARY, PUBLISHED),
    "sensitivity_heatmap": lambda: plots.sensitivity_heatmap(SCAN),
    "group_means": lambda: plots.group_means(GROUPS, GROUP_RUNS, "eval/accuracy"),
    "group_differences": lambda: plots.group_differences(GROUPS, "eval/accuracy", "plain"),
    "parameter_effects": lambda: plots.parameter_effects(GROUP_RUNS, ["group", "lr"], "eval/accuracy"),
    "learning_bands": lambda: plots.learning_bands(CURVES, "train/ce_loss"),
    "bits_over_groups": lambda: plots.bits_over_groups(BITS),
}


def words(figure: Figure) -> str:
    """All text of a figure."""
    return " | ".join(text.get_text() for text in figure.findobj(Text))


def heights(container) -> list[float]:
    return [bar.get_height() for bar in container]


def rendered(figure: Figure) -> np.ndarray:
    """The pixels of a figure, `[height, width, 4]`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())
