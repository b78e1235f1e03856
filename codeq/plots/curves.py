"""Curves over epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codeq.common.task_loss import task_loss
from codeq.plots.axes import epoch_axis, from_zero, log_axis, off_log_axis, single_point
from codeq.plots.style import COLORS, heading, legend, new_figure, new_grid, require_columns, styled
from codeq.plots.theme import ink

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

KINDS = {"unstructured": "zero weights (unstructured)", "structured": "dead filters (structured)"}
PANEL_CHARACTERS = 34  # of a legend beside the title of a panel
DASHES = ["--", ":", "-."]  # one line style per sparsity term


@styled
def accuracy_curve(history: pd.DataFrame) -> Figure:
    """Draw training and evaluation accuracy over epochs; the title gives the last and the best evaluation accuracy.

    Parameters
    ----------
    history : DataFrame
        One row per epoch: `epoch` (0-based), `train/accuracy`, `eval/accuracy` (fractions); with a validation split
        also `test/accuracy`.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.

    Examples
    --------
    >>> import pandas as pd
    >>> history = pd.DataFrame({"epoch": [0, 1], "train/accuracy": [0.5, 0.7], "eval/accuracy": [0.4, 0.6]})
    >>> accuracy_curve(history).axes[0].get_ylabel()
    'accuracy (%)'
    """
    require_columns(history, ["epoch", "train/accuracy", "eval/accuracy"], "history")
    figure, axes = new_figure("Accuracy")
    epochs, evaluated = history["epoch"], 100 * history["eval/accuracy"]
    axes.plot(epochs + 1, 100 * history["train/accuracy"], color=COLORS["training"], marker=".", label="training")
    held_out = "test/accuracy" in history
    label = "validation" if held_out else "evaluation"
    axes.plot(epochs + 1, evaluated, color=COLORS["accuracy"], marker="o", markersize=4, label=label)
    if held_out:
        style: dict[str, Any] = {"linestyle": ":", "label": "test"} | single_point(history)
        axes.plot(epochs + 1, 100 * history["test/accuracy"], color=COLORS["accuracy"], **style)
    epoch_axis(axes, epochs)
    axes.set_ylabel("accuracy (%)", fontsize=10)
    note = f"last {evaluated.iloc[-1]:.2f} %"
    if evaluated.notna().any():
        best = int(np.nanargmax(evaluated))
        note += f", best {evaluated.iloc[best]:.2f} % (epoch {epochs.iloc[best] + 1})" + (
            " of validation" if held_out else ""
        )
    axes.set_title(note, fontsize=9, loc="right")
    legend(axes)
    return figure


@styled
def sparsity_curves(history: pd.DataFrame) -> Figure:
    """Draw both sparsities over epochs, with the coefficient of the sparsity loss on a second axis.

    Parameters
    ----------
    history : DataFrame
        One row per epoch: `epoch` (0-based), `sparsity/unstructured`, `sparsity/structured` (fractions),
        `train/sparsity_coeff`.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.
    """
    require_columns(history, ["epoch", *(f"sparsity/{kind}" for kind in KINDS), "train/sparsity_coeff"], "history")
    figure, axes = new_figure("Sparsity")
    x = history["epoch"] + 1
    for kind, label in KINDS.items():
        values = 100 * history[f"sparsity/{kind}"]
        axes.plot(x, values, color=COLORS[kind], marker="o", markersize=4, label=label)
    epoch_axis(axes, history["epoch"])
    axes.set_ylabel("sparsity (%)", fontsize=10)
    from_zero(axes)
    second = axes.twinx()
    style: dict[str, Any] = {"color": COLORS["coefficient"], "linestyle": "--", "label": "coefficient (right axis)"}
    second.plot(x, history["train/sparsity_coeff"], **style, **single_point(history))
    second.set_ylabel("coefficient of the sparsity loss", fontsize=10, color=COLORS["coefficient"])
    second.tick_params(labelsize=9, colors=COLORS["coefficient"])
    from_zero(second)
    second.spines["top"].set_visible(False)
    handles = axes.get_lines() + second.get_lines()
    legend(axes, handles=handles, labels=[str(handle.get_label()) for handle in handles])
    return figure


@styled
def training_curves(history: pd.DataFrame) -> Figure:
    """Draw loss, accuracy, bits, sparsity, relative BOPs and schedules of a training on one page.

    Parameters
    ----------
    history : DataFrame
        One row per epoch, as `Run.history`: `epoch` (0-based), `lr`, `train/ce_loss`, `train/accuracy`, `eval/loss`,
        `eval/accuracy`, `sparsity/…`, `quantizer/mean_bits`, `compression/…_bops_ratio`, `train/…_coeff`.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.
    """
    columns = ["epoch", "lr", "train/ce_loss", "train/accuracy", "eval/loss", "eval/accuracy", "quantizer/mean_bits"]
    columns += [f"sparsity/{kind}" for kind in KINDS] + [f"compression/{kind}_bops_ratio" for kind in KINDS]
    require_columns(history, [*columns, "train/sparsity_coeff"], "history")
    figure, grid = new_grid(3, 2, width=9, height=8, sharex=True)
    heading(figure, "Training")
    (loss, accuracy), (bits, sparsity), (cost, schedule) = grid
    x = history["epoch"] + 1
    style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.4}

    # Under distillation the training loss is on no common scale with the evaluation's.
    distilled = "train/distillation_loss" in history
    label = "training (with distillation)" if distilled else "training"
    loss.plot(x, task_loss(history), color=COLORS["training"], label=label, **style)
    held_out = "test/accuracy" in history
    evaluation = "validation" if held_out else "evaluation"
    loss.plot(x, history["eval/loss"], color=COLORS["accuracy"], label=evaluation, **style)
    _panel(loss, "loss" if distilled else "cross-entropy", "Loss")
    accuracy.plot(x, 100 * history["train/accuracy"], color=COLORS["training"], label="training", **style)
    accuracy.plot(x, 100 * history["eval/accuracy"], color=COLORS["accuracy"], label=evaluation, **style)
    if held_out:
        loss.plot(x, history["test/loss"], color=COLORS["accuracy"], label="test", **(style | {"linestyle": ":"}))
        test = 100 * history["test/accuracy"]
        accuracy.plot(x, test, color=COLORS["accuracy"], label="test", **(style | {"linestyle": ":"}))
    _panel(accuracy, "accuracy (%)", "Accuracy")
    bits.plot(x, history["quantizer/mean_bits"], color=COLORS["bits"], label="mean over quantized layers", **style)
    _panel(bits, "bits per weight", "Bit-width")
    from_zero(bits)
    for kind, label in KINDS.items():
        short = label.partition(" (")[0]
        sparsity.plot(x, 100 * history[f"sparsity/{kind}"], color=COLORS[kind], label=short, **style)
        relative = 100 / history[f"compression/{kind}_bops_ratio"]
        cost.plot(x, relative, color=COLORS[kind], label=kind, **style)
    _panel(sparsity, "sparsity (%)", "Sparsity")
    from_zero(sparsity)
    log_axis(cost, "y")
    if cost.get_yscale() == "log":
        for line in cost.get_lines():
            line.set_label(f"{line.get_label()}{off_log_axis(np.asarray(line.get_ydata()))}")
    _panel(cost, "BOPs (% of dense 32 bit)", "Cost")
    if (drawn := cost.dataLim).height == 0 and drawn.y0:  # constant cost: a log axis would span decades
        cost.set_ylim(drawn.y0 / 2, drawn.y0 * 2)
    _schedules(schedule, history)
    for axes in grid[-1]:
        epoch_axis(axes, history["epoch"])
    return figure


def _panel(axes: Axes, unit: str, title: str) -> None:
    axes.set_ylabel(unit, fontsize=10)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.3, linewidth=0.6)
    _panel_legend(axes, axes.get_lines())


def _panel_legend(axes: Axes, lines: Sequence[Line2D]) -> None:
    """Place the legend of a panel above it, beside its title: in two columns where both leave room for the title."""
    lengths = [len(str(line.get_label())) for line in lines]
    half = (len(lengths) + 1) // 2  # columns are filled one after the other
    columns = 2 if max(lengths[:half]) + max(lengths[half:], default=0) <= PANEL_CHARACTERS else 1
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 0.98), "borderaxespad": 0, "ncols": columns}
    axes.legend(handles=list(lines), fontsize=7.5, frameon=False, columnspacing=1, handlelength=1.6, **place)


def _schedules(axes: Axes, history: pd.DataFrame) -> None:
    """Draw the learning rate, and the coefficient of each sparsity term on a second axis."""
    x = history["epoch"] + 1
    second = axes.twinx()
    marker = single_point(history)
    (rate,) = axes.plot(x, history["lr"], color=ink(), linewidth=1.4, label="learning rate", **marker)
    columns = [str(name) for name in history.columns]
    terms = [name for name in columns if name.startswith("train/") and name.endswith("_coeff")]
    separate = [name for name in terms if name != "train/sparsity_coeff"]  # the sum of the others
    terms = separate or [name for name in terms if history[name].any()]
    for name, line in zip(terms, DASHES * len(terms), strict=False):
        label = name.removeprefix("train/").removesuffix("_coeff").replace("_", " ")
        style: dict[str, Any] = {"color": COLORS["coefficient"], "linestyle": line, "linewidth": 1.4}
        second.plot(x, history[name], **style, **marker, label=f"{label} (right)")
    _panel(axes, "learning rate", "Schedules")
    _panel_legend(axes, [rate, *second.get_lines()])
    axes.yaxis.set_major_formatter("{x:g}")
    for side in (axes, second):
        from_zero(side)
    if not terms:
        second.set_axis_off()
        return
    second.set_ylabel("coefficient", fontsize=10, color=COLORS["coefficient"])
    second.tick_params(labelsize=9, colors=COLORS["coefficient"])
    second.spines["top"].set_visible(False)


@styled
def target_course(updates: pd.DataFrame, name: str, target: float) -> Figure:
    """Draw how a training was steered to a cost target: the figure beside its plan, and the factor of λ.

    Parameters
    ----------
    updates : DataFrame
        One row per update of λ, as `Run.steering`: `epoch`, `batch` (0-based), `batches` (of an epoch), `figure`,
        `plan`, `factor`.
    name : str
        Name of the figure.
    target : float
        Its value at the end; the band is ± 5 %.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.

    Examples
    --------
    >>> import pandas as pd
    >>> row = {"epoch": 0, "batch": 0, "batches": 12, "figure": 0.25, "plan": 0.25, "factor": 1.0}
    >>> target_course(pd.DataFrame([row]), "relative_bops", 0.03).axes[0].get_ylabel()
    'relative bops'
    """
    require_columns(updates, ["epoch", "batch", "batches", "figure", "plan", "factor"], "updates")
    figure, grid = new_grid(2, 1, width=8, height=6, sharex=True)
    heading(figure, "Course to the target")
    cost, factor = grid[:, 0]
    x = updates["epoch"] + updates["batch"] / updates["batches"]  # epochs that are done
    cost.axhspan(0.95 * target, 1.05 * target, color=COLORS["accuracy"], alpha=0.2, label="target ± 5 %")
    cost.plot(x, updates["plan"], color=COLORS["coefficient"], linestyle="--", label="plan")
    cost.plot(x, updates["figure"], color=COLORS["unstructured"], marker=".", label="measured")
    factor.plot(x, updates["factor"], color=COLORS["dead_zone"], marker=".", label="factor of λ")
    for axes, unit in ((cost, name.replace("_", " ")), (factor, "factor of λ")):
        log_axis(axes, "y")
        axes.set_ylabel(unit, fontsize=10)
        axes.grid(alpha=0.3, linewidth=0.6)
    legend(cost)
    epoch_axis(factor, updates["epoch"])
    factor.set_xlim(0, updates["epoch"].iloc[-1] + 1)
    return figure
