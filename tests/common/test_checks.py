"""Arguments that are no networks, or no lists, are refused by every function that takes one."""

import numpy as np
import pandas as pd
import pytest
import torch
from cases import each
from torch import nn

import codeq
from codeq.analysis.rendering import draw_in_parallel
from codeq.analysis.sensitivity import sensitivity
from codeq.common.errors import CodeqError
from codeq.compaction import compact, cut_channels, measure_gains, prove
from codeq.export.export_run import check_export
from codeq.flow.analysis import check_options
from codeq.metrics import measure, storage_bytes
from codeq.plots.studies import parameter_effects
from codeq.studies.query import select

X, SIZE = torch.zeros(2, 3, 8, 8), (3, 8, 8)
TAKE_A_MODEL = [
    lambda model: codeq.ledger(model, SIZE), lambda model: measure(model, SIZE), storage_bytes,
    lambda model: compact(model, X), lambda model: prove(model, model, [X]),
    lambda model: cut_channels(model, [(X, torch.zeros(2, dtype=torch.long))], 0.5, SIZE),
    lambda model: codeq.attach_weight_quantizers(model, [], "deadzone", {}),
    lambda model: codeq.attach_activation_quantizers(model, X), lambda model: codeq.calibrate(model, [X]),
    lambda model: codeq.toggle_quantization(model, False), codeq.split_param_groups,
    lambda model: codeq.Evaluator(codeq.models.CifarMLP()).evaluate(model), codeq.detach_weight_quantizers,
    codeq.group_lasso, codeq.coupled_group_lasso, codeq.l1_kernel_sparsity,
]  # fmt: skip


@each("function", TAKE_A_MODEL)
def test_what_is_no_model_is_refused(function):
    for value, shown in ((None, "None"), ("outputs/run", "'outputs/run'"), ({"weight": 1}, "{'weight': 1}")):
        with pytest.raises(CodeqError, match=f"model={shown}.*must be a torch.nn.Module; run.load_model"):
            function(value)


TAKE_A_LIST = {
    "batch_sizes": lambda wrong: measure_gains({"net": nn.Linear(2, 2)}, batch_sizes=wrong),
    "bits": lambda wrong: sensitivity(nn.Linear(2, 2), [], bits=wrong),
    "columns": lambda wrong: select(pd.DataFrame({"a": [1]}), columns=wrong),
    "formats": lambda wrong: draw_in_parallel({}, wrong),
    "parameters": lambda wrong: parameter_effects(pd.DataFrame({"a": [1]}), wrong, "a"),
    "to": check_export,
}


@each(("name", "function"), TAKE_A_LIST.items())
def test_a_text_or_number_in_place_of_a_list_is_refused(name, function):
    for wrong, shown in (("a", "'a'"), (4, "4")):
        with pytest.raises(CodeqError, match=rf"{name}={shown}: must be a list, e\.g\. \[{shown}\]"):
            function(wrong)


def test_results_of_another_kind_are_refused():
    evaluator = codeq.Evaluator(codeq.models.CifarMLP())
    with pytest.raises(CodeqError, match=r"result=None: must be what Evaluator\.evaluate returns"):
        evaluator.plot_layer_sparsity_bars(None)
    for name in ("compression_ratio", "mac_compression_ratio", "unstructured_compression_ratio"):
        with pytest.raises(
            CodeqError, match="stats=None: must be what calculate_stats or calculate_unstructured_stats"
        ):
            getattr(evaluator.comparison, name)(None)


@each("quantizer", [codeq.DeadZoneQuantizer(), codeq.UniformSymmetric(), codeq.DeadZoneQuantizer(scale="held")])
def test_weights_that_a_quantizer_cannot_take_are_refused(quantizer):
    for w, shown in ((np.ones(3), "ndarray"), ([1.0], "list"), (torch.ones(3, dtype=torch.long), r"int64 \[3\]")):
        with pytest.raises(CodeqError, match=f"^w: {shown}: must be a Tensor of floating-point weights$"):
            quantizer(w)


def test_counts_may_come_from_numpy():
    check_options("map", "whole", np.int64(8))
    for wrong in (0, 8.0, True):
        with pytest.raises(CodeqError, match=f"multiple_of={wrong}: must be an integer of at least 1"):
            check_options("map", "whole", wrong)
