"""codeq: joint pruning and quantization of neural networks with the CoDeQ dead-zone quantizer (arXiv 2512.12981)."""

from codeq.common.errors import CodeqError
from codeq.compaction import CompactionReport, compact, prove
from codeq.config import ExperimentConfig
from codeq.data import DATASETS
from codeq.evaluator import EvalResult, Evaluator
from codeq.flow.explain import ChannelExplanation, explain
from codeq.metrics import LayerStats, ModelStats, NullChannels, QuantizationComparison, ledger
from codeq.models import MODELS
from codeq.optimizers import OPTIMIZERS
from codeq.quantizer import QUANTIZERS, DeadZoneLDZCompander, DeadZoneQuantizer, UniformSymmetric
from codeq.quantizer.attach import (
    attach_weight_quantizers,
    detach_weight_quantizers,
    named_quantizers,
    split_param_groups,
    toggle_quantization,
)
from codeq.runs import Run
from codeq.schedules import SCHEDULES, constant, cosine_anneal, linear_warmup, window
from codeq.sparsity import (
    LOSSES,
    coupled_group_lasso,
    group_lasso,
    group_lasso_blocks,
    group_lasso_channels,
    l1_kernel_sparsity,
)
from codeq.trainer import run_experiment

__all__ = [
    # experiments
    "ExperimentConfig", "run_experiment", "Run",
    # quantizers
    "DeadZoneQuantizer", "DeadZoneLDZCompander", "UniformSymmetric",
    "attach_weight_quantizers", "detach_weight_quantizers", "toggle_quantization", "named_quantizers",
    "split_param_groups",
    # sparsity losses and their schedules
    "group_lasso_channels", "group_lasso_blocks", "l1_kernel_sparsity", "group_lasso", "coupled_group_lasso",
    "constant", "linear_warmup", "cosine_anneal", "window",
    # measuring
    "Evaluator", "EvalResult", "QuantizationComparison", "ModelStats", "LayerStats", "NullChannels",
    "ledger",
    # channels: why they live, and the network without the dead ones
    "explain", "ChannelExplanation", "compact", "CompactionReport", "prove",
    # registries, open to users' own entries
    "MODELS", "DATASETS", "QUANTIZERS", "LOSSES", "SCHEDULES", "OPTIMIZERS",
    "CodeqError",
]  # fmt: skip
