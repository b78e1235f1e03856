"""All figures of a run: drawn from its folder, each with its caption, or with the reason why it cannot be drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codeq import plots
from codeq.analysis.drawings import Drawing, save_drawings
from codeq.analysis.source import Source, check_choice
from codeq.common.errors import CodeqError
from codeq.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Name, caption and drawing of every figure, in the order of a report; {at} is the epoch.
FIGURES: tuple[tuple[str, str, Callable[[Source], Figure]], ...] = (
    (
        "training_curves",
        "Loss, accuracy, bits, sparsity and cost over the epochs, with the schedules.",
        lambda source: plots.training_curves(source.history),
    ),
    (
        "accuracy_curve",
        "Accuracy in training and evaluation.",
        lambda source: plots.accuracy_curve(source.history),
    ),
    (
        "sparsity_curves",
        "Zero weights and dead filters, with the coefficient of the sparsity loss.",
        lambda source: plots.sparsity_curves(source.history),
    ),
    (
        "accuracy_against_bops",
        "Accuracy against relative BOPs of all runs given, with published results.",
        lambda source: plots.accuracy_against_bops(*source.tradeoff),
    ),
    (
        "layer_profile",
        "What every layer was given, {at}. A weight below d / 2 becomes 0; R is the layer's scale.",
        lambda source: plots.layer_profile(source.costs),
    ),
    (
        "layer_costs",
        "BOPs of every layer before and after compression, {at}.",
        lambda source: plots.layer_costs(source.costs),
    ),
    (
        "per_layer_channels",
        "Living and dead filters and bits of every layer, {at}.",
        lambda source: plots.per_layer_channels(source.last),
    ),
    (
        "sparsity_bars",
        "Null channels against zero weights in every layer, {at}.",
        lambda source: plots.layer_sparsity_bars(source.last),
    ),
    (
        "channel_liveness",
        "Which filters live, {at}.",
        lambda source: plots.channel_liveness(source.liveness),
    ),
    (
        "liveness_over_time",
        "Share of living filters of every layer after every epoch.",
        lambda source: plots.liveness_over_time(source.layers),
    ),
    (
        "weight_histograms",
        "Latent weights of every quantized layer, its levels and its dead-zone, in the last checkpoint.",
        lambda source: plots.weight_histograms(source.all_levels()),
    ),
    (
        "weight_histogram",
        "Latent weights of one layer, and how many lie on each level, in the last checkpoint.",
        lambda source: plots.weight_histogram(*source.levels(source.layer), source.layer, source.unit),
    ),
    (
        "kernel_maps",
        "Which kernels of every layer have weights left, in the last checkpoint.",
        lambda source: plots.kernel_maps(source.weights),
    ),
    (
        "sparsity_map",
        "Every weight of one layer, kernel by kernel, in the last checkpoint.",
        lambda source: plots.sparsity_map(source.weights[source.layer], source.layer),
    ),
)


def draw_figures(
    run: Run, layer: str | None = None, epoch: int | None = None, compared: Sequence[Run] = ()
) -> dict[str, Drawing]:
    """Draw everything that the folder of a run has to show; what it lacks is said, not raised.

    Parameters
    ----------
    run : Run
        Finished or not.
    layer : str, optional
        Whose histogram and kernels are drawn; default the sparsest of the smaller ones.
    epoch : int, optional
        0-based, for the figures of one epoch; default the last recorded one. Weights are those of the last checkpoint.
    compared : sequence of Run
        More runs for the picture of accuracy against cost.

    Returns
    -------
    dict of str to Drawing
        By name, in the order of a report.

    Raises
    ------
    CodeqError
        For a layer or an epoch that the run does not have.
    """
    check_choice(run, layer, epoch)
    source = Source(run, layer, epoch, compared)
    at = "after the last recorded epoch" if epoch is None else f"after epoch {epoch + 1}"
    drawings = {}
    for name, caption, draw in FIGURES:
        caption = caption.format(at=at)
        try:
            drawings[name] = Drawing(name, caption, draw(source))
        except CodeqError as error:
            drawings[name] = Drawing(name, caption, None, str(error))
    return drawings


def write_figures(
    run: Run, layer: str | None = None, epoch: int | None = None, compared: Sequence[Run] = ()
) -> list[Path]:
    """Write every figure that the run has data for into its ``plots`` folder, as PNG and as SVG.

    Parameters
    ----------
    run, layer, epoch, compared
        As for `draw_figures`.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    CodeqError
        For a layer or an epoch that the run does not have.
    """
    return save_drawings(draw_figures(run, layer, epoch, compared), run.folder / "plots")
