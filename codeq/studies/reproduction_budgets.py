"""Budgets of the paper's Table 2: their studies, the rows of their tables, and their recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cell:
    """A row of the table.

    Parameters
    ----------
    method : str
        In `codeq.studies.reproduction_page.METHODS`.
    reading : {"l2", "decoupled"}, optional
        Reading of the regularizer on θ; `None` for a float network.
    """

    method: str
    reading: str | None


COMPRESSED = (Cell("4 bit", "l2"), Cell("mixed", "l2"), Cell("channels", "l2"))
FLOAT, RECOVERED = Cell("float", None), Cell("float channels", None)


@dataclass(frozen=True)
class Budget:
    """Studies that fill the table, one after the other, and its cells.

    Parameters
    ----------
    studies : tuple of str
        Files in ``configs/studies``. The members of later ones start from the network of the same seed of an earlier
        one; that of the first also cut.
    cells : tuple of Cell
        Rows of the table.
    recipe : str
        What the studies do, in sentences for the page.
    cut : mapping
        Options of `codeq.analysis.compact_run.compact_run` for the networks of the first study.
    teachers : int
        Networks of the first study, from seed 0, that later ones of every seed are distilled from.
    """

    studies: tuple[str, ...]
    cells: tuple[Cell, ...]
    recipe: str
    cut: Mapping[str, Any] = field(default_factory=dict)
    teachers: int = 0


BUDGETS = {
    "smoke": Budget(
        ("table2_smoke_float", "table2_smoke"),
        (FLOAT, *COMPRESSED),
        "Small digits instead of CIFAR-10: float networks are trained for 4 epochs with AdamW, and each compressed one "
        "for 4 epochs from the float network of its seed, whose channels are cut to a budget of MACs in the last row.",
        {"macs": 0.6},
    ),
    "laptop": Budget(
        ("table2_laptop_float", "table2_laptop_recovered", "table2_laptop"),
        (FLOAT, *COMPRESSED[:2], RECOVERED, COMPRESSED[2]),
        "Float networks are trained for 90 epochs with SGD. The networks of 4 bit and mixed start from the float "
        "network of their seed and are trained for 50 epochs with SGD (θ: AdamW): half of the loss is distilled from "
        "that network, the statistics of BatchNorm are estimated again, and the relative BOPs are steered to a target "
        "just below the paper's. Where channels are pruned, the float network is cut to a budget of time, recovers in "
        "64 epochs, distilled from the whole one, and is quantized in 30 epochs, distilled from two float networks, "
        "with the mean of the bits steered to a target.",
        {"latency": 0.68, "streams": "whole", "multiple_of": 8},
        teachers=2,
    ),
    "paper": Budget(
        ("table2_paper",),
        (FLOAT, *COMPRESSED[:2], Cell("4 bit", "decoupled"), Cell("mixed", "decoupled"), COMPRESSED[2]),
        "Every network is trained from scratch for 300 epochs with AdamW and the paper's settings and regularizers; "
        "the group lasso that prunes channels in the last row is not the paper's.",
    ),
}
