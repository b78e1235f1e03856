# The public names of codeq; `__init__.py` imports each from here when it is first used.
# ruff: noqa: I001 - one import for the packages, each with the alias that makes it public

from . import (
    analysis as analysis,
    common as common,
    compaction as compaction,
    config as config,
    data as data,
    evaluator as evaluator,
    export as export,
    flow as flow,
    graph as graph,
    metrics as metrics,
    models as models,
    optimizers as optimizers,
    plots as plots,
    quantizer as quantizer,
    runs as runs,
    schedules as schedules,
    sparsity as sparsity,
    studies as studies,
    trainer as trainer,
    training as training,
    widgets as widgets,
)
from .common.errors import CodeqError
from .common.imports import import_parts
from .compaction import CompactionReport, compact, prove
from .config import ExperimentConfig
from .data import DATASETS
from .evaluator import EvalResult, Evaluator
from .flow.explain import ChannelExplanation, explain
from .graph.activations import attach_activation_quantizers
from .metrics import LayerStats, ModelStats, NullChannels, QuantizationComparison, ledger
from .models import MODELS
from .optimizers import OPTIMIZERS
from .quantizer import QUANTIZERS, DeadZoneLDZCompander, DeadZoneQuantizer, UniformSymmetric
from .quantizer.attach import (
    attach_weight_quantizers,
    detach_weight_quantizers,
    named_quantizers,
    split_param_groups,
    toggle_quantization,
)
from .quantizer.calibration import calibrate
from .quantizer.fused import fused_quantization
from .runs import Run
from .schedules import SCHEDULES, constant, cosine_anneal, linear_warmup, window
from .sparsity import (
    LOSSES,
    coupled_group_lasso,
    group_lasso,
    group_lasso_blocks,
    group_lasso_channels,
    l1_kernel_sparsity,
)
from .studies import collect
from .trainer import run_experiment

__all__ = [
    # experiments
    "ExperimentConfig", "run_experiment", "Run", "import_parts",
    # quantizers
    "DeadZoneQuantizer", "DeadZoneLDZCompander", "UniformSymmetric",
    "attach_weight_quantizers", "detach_weight_quantizers", "toggle_quantization", "named_quantizers",
    "split_param_groups", "fused_quantization", "attach_activation_quantizers", "calibrate",
    # many runs as one
    "collect",
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
