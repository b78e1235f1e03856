"""Tables, figures and a report computed from run folders, in any state of the run."""

from __future__ import annotations

from codeq.analysis.activations import activation_levels
from codeq.analysis.budget import BudgetSolution, solve_budget
from codeq.analysis.comparison import common_layers, differing_settings, distinct_names
from codeq.analysis.drawings import Drawing, require_writable, save_drawings
from codeq.analysis.exports import latency_table, verdict_table
from codeq.analysis.figures import draw_figures, write_figures
from codeq.analysis.network import readable_ledger, recorded_gains, run_notes
from codeq.analysis.published import published_results
from codeq.analysis.report import write_report
from codeq.analysis.scan import rank_layers, scan_run
from codeq.analysis.selection import run_labels
from codeq.analysis.sizes import size_table
from codeq.analysis.source import check_choice, check_layer
from codeq.analysis.tables import layer_costs, readable_costs, readable_summary, summary_table
from codeq.analysis.weights import latent_weights, sparsest_layer, weight_levels
from codeq.runs.references import find_run, find_runs

__all__ = [
    "find_run", "find_runs", "run_labels", "check_choice", "check_layer", "require_writable",
    "sparsest_layer", "scan_run", "rank_layers", "solve_budget", "BudgetSolution",
    # tables
    "summary_table", "readable_summary", "layer_costs", "readable_costs", "weight_levels", "latent_weights",
    "activation_levels", "published_results", "size_table", "verdict_table", "latency_table",
    "readable_ledger", "recorded_gains", "run_notes",
    # several runs
    "differing_settings", "distinct_names", "common_layers",
    # figures and the report
    "Drawing", "draw_figures", "save_drawings", "write_figures", "write_report",
]  # fmt: skip
