"""All figures of a run, drawn from its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from codeq import plots
from codeq.analysis.drawings import Drawing, require_writable, save_drawings
from codeq.analysis.sizes import size_table
from codeq.analysis.source import ACTIVATION_IMAGES, Source, check_choice
from codeq.common.collection import existing_objects_exempt
from codeq.common.errors import CodeqError
from codeq.runs import Run
from codeq.runs.references import require_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Name, caption and drawing function of each figure, in the order of the report; {at} is the epoch.
FIGURES: tuple[tuple[str, str, Callable[[Source], Figure]], ...] = (
    (
        "training_curves",
        "Loss, accuracy, bit-width, sparsity, cost and schedules over epochs.",
        lambda source: plots.training_curves(source.history),
    ),
    (
        "accuracy_curve",
        "Training and evaluation accuracy over epochs.",
        lambda source: plots.accuracy_curve(source.history),
    ),
    (
        "sparsity_curves",
        "Zero weights, dead filters and the coefficient of the sparsity loss over epochs.",
        lambda source: plots.sparsity_curves(source.history),
    ),
    (
        "accuracy_against_bops",
        "Test accuracy against relative BOPs of all selected runs, finished ones as means ± standard deviations over "
        "seeds (of several runs of one seed the last), with comparable published results.",
        lambda source: plots.accuracy_against_bops(*source.tradeoff),
    ),
    (
        "layer_profile",
        "Bit-width, dead-zone, density, null channels and cost of each layer, {at}. Weights below d / 2 become 0; "
        "R is the scale of the layer.",
        lambda source: plots.layer_profile(source.costs),
    ),
    (
        "layer_costs",
        "BOPs of each layer before and after compression, {at}.",
        lambda source: plots.layer_costs(source.costs),
    ),
    (
        "per_layer_channels",
        "Alive and dead filters and bit-width of each layer, {at}.",
        lambda source: plots.per_layer_channels(source.last),
    ),
    (
        "sparsity_bars",
        "Null channels and zero weights of each layer, {at}.",
        lambda source: plots.layer_sparsity_bars(source.last),
    ),
    (
        "channel_liveness",
        "Alive and dead filters, {at}.",
        lambda source: plots.channel_liveness(source.liveness),
    ),
    (
        "liveness_over_time",
        "Alive filters of each layer over epochs.",
        lambda source: plots.liveness_over_time(source.layers),
    ),
    (
        "sizes",
        "Bytes of the network in every form, last checkpoint, and of its exported files; one of another checkpoint "
        "names it.",
        lambda source: plots.size_bars(size_table(source.run)),
    ),
    (
        "weight_histograms",
        "Latent weights, quantization levels and dead-zone of each quantized layer, last checkpoint.",
        lambda source: plots.weight_histograms(source.all_levels(), source.unit),
    ),
    (
        "weight_histogram",
        "Latent weights of one layer and the number of weights per quantization level, last checkpoint.",
        lambda source: plots.weight_histogram(*source.levels(source.layer), source.layer, source.unit),
    ),
    (
        "kernel_maps",
        "Share of non-zero weights of each kernel, last checkpoint.",
        lambda source: plots.kernel_maps(source.weights),
    ),
    (
        "sparsity_map",
        "Zero and non-zero weights of one layer, kernel by kernel, last checkpoint.",
        lambda source: plots.sparsity_map(source.weights[source.layer], source.layer),
    ),
)

# Of runs with quantized activations, in the same form.
ACTIVATIONS: tuple[tuple[str, str, Callable[[Source], Figure]], ...] = (
    (
        "activation_histograms",
        f"Inputs of the layers with quantized activations on {ACTIVATION_IMAGES} evaluation images, and their levels, "
        "last checkpoint.",
        lambda source: plots.activation_histograms(source.activations()),
    ),
)

# Of the run and those that it is compared with, in the same form.
COMPARISONS: tuple[tuple[str, str, Callable[[Source], Figure]], ...] = (
    (
        "compared_curves",
        "Test accuracy, mean bits, zero weights and relative BOPs of all selected runs over epochs.",
        lambda source: plots.compared_curves(source.compared_histories),
    ),
    (
        "compared_layers",
        "Bits, zero weights, dead filters and BOPs of the layers that all selected runs have, after their last epochs.",
        lambda source: plots.compared_layers(source.compared_layers),
    ),
)

# Figures of accuracies and weights alone: no trace of the network, with its notes, is behind them.
UNCOUNTED = {
    "accuracy_curve", "sizes", "weight_histograms", "weight_histogram", "kernel_maps", "sparsity_map",
    "activation_histograms",
}  # fmt: skip
OF_ALL_RUNS = {"accuracy_against_bops", "compared_curves", "compared_layers"}


def planned_figures(
    run: Run, layer: str | None = None, epoch: int | None = None, compared: Sequence[Run] = ()
) -> dict[str, Callable[[], Drawing]]:
    """Return the functions that draw the figures of a run, by name, see `draw_figures`.

    They share what they read of the run. Each returns the reason instead of a figure that cannot be drawn.

    Raises
    ------
    CodeqError
        For a layer or an epoch that the run does not have.
    """
    check_choice(run, layer, epoch)
    source = Source(run, layer, epoch, compared)
    at = "after the last recorded epoch" if epoch is None else f"after epoch {epoch + 1}"
    others = len(source.all_runs) > 1
    chosen = (*FIGURES, *(ACTIVATIONS if _quantizes_activations(run) else ()), *(COMPARISONS if others else ()))
    return {name: partial(_draw, source, name, caption.format(at=at), draw) for name, caption, draw in chosen}


def draw_figures(
    run: Run, layer: str | None = None, epoch: int | None = None, compared: Sequence[Run] = ()
) -> dict[str, Drawing]:
    """Draw all figures of a run; a figure that cannot be drawn is returned with the reason.

    Parameters
    ----------
    run : Run
        In any state.
    layer : str, optional
        Layer whose histogram and kernels are drawn; default the sparsest of the small ones.
    epoch : int, optional
        Epoch of the figures about one epoch, 0-based; default the last recorded one. Weights are always those of the
        last checkpoint.
    compared : sequence of Run
        Further runs for the figure of accuracy against cost; with any, learning curves and layers of all runs are
        drawn in two more figures.

    Returns
    -------
    dict of str to Drawing
        By name, in the order of the report.

    Raises
    ------
    CodeqError
        For a layer or an epoch that the run does not have.
    """
    return {name: draw() for name, draw in planned_figures(run, layer, epoch, compared).items()}


def _draw(source: Source, name: str, caption: str, draw: Callable[[Source], Figure]) -> Drawing:
    try:
        with existing_objects_exempt():
            figure = draw(source)
        if name not in UNCOUNTED:
            of_all = name in OF_ALL_RUNS
            plots.footnote(figure, source.notes_of_all(name == "compared_layers") if of_all else source.notes)
        return Drawing(name, caption, figure)
    except CodeqError as error:
        return Drawing(name, caption, None, str(error))
    except Exception as error:  # an unexpected value in a table loses one figure, not the others
        return Drawing(name, caption, None, f"{type(error).__name__}: {error}")


def _quantizes_activations(run: Run) -> bool:
    with suppress(CodeqError):  # a configuration of another version of codeq
        return run.config.activations is not None
    return False


def write_figures(
    run: Run, layer: str | None = None, epoch: int | None = None, compared: Sequence[Run] = ()
) -> list[Path]:
    """Draw all figures of a run into its ``plots`` folder, as PNG and as SVG.

    Parameters
    ----------
    run, layer, epoch, compared
        As for `draw_figures`.

    Returns
    -------
    list of Path
        The written files.

    Raises
    ------
    CodeqError
        For a layer or an epoch that the run does not have, and for a folder that cannot be written.
    """
    require_writable(require_run(run).folder / "plots")
    return save_drawings(draw_figures(run, layer, epoch, compared), run.folder / "plots")
