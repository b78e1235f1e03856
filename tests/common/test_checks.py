"""Arguments that are no networks are refused by every function that takes one."""

import numpy as np
import pytest
import torch
from cases import each

import codeq
from codeq.common.errors import CodeqError
from codeq.compaction import compact, cut_channels, prove
from codeq.flow.analysis import check_options
from codeq.metrics import measure, storage_bytes

X, SIZE = torch.zeros(2, 3, 8, 8), (3, 8, 8)
TAKE_A_MODEL = [
    lambda model: codeq.ledger(model, SIZE), lambda model: measure(model, SIZE), storage_bytes,
    lambda model: compact(model, X), lambda model: prove(model, model, [X]),
    lambda model: cut_channels(model, [(X, torch.zeros(2, dtype=torch.long))], 0.5, SIZE),
    lambda model: codeq.attach_weight_quantizers(model, [], "deadzone", {}),
    lambda model: codeq.attach_activation_quantizers(model, X), lambda model: codeq.calibrate(model, [X]),
    lambda model: codeq.toggle_quantization(model, False), codeq.split_param_groups,
    codeq.detach_weight_quantizers, codeq.group_lasso, codeq.coupled_group_lasso, codeq.l1_kernel_sparsity,
]  # fmt: skip


@each("function", TAKE_A_MODEL)
def test_what_is_no_model_is_refused(function):
    for value, shown in ((None, "None"), ("outputs/run", "'outputs/run'"), ({"weight": 1}, "{'weight': 1}")):
        with pytest.raises(CodeqError, match=f"model={shown}.*must be a torch.nn.Module; run.load_model"):
            function(value)


def test_counts_may_come_from_numpy():
    check_options("map", "whole", np.int64(8))
    for wrong in (0, 8.0, True):
        with pytest.raises(CodeqError, match=f"multiple_of={wrong}: must be a positive integer"):
            check_options("map", "whole", wrong)
