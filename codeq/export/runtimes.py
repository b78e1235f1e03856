"""Runtimes that execute exported files, all called with a batch of images and returning logits."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codeq.common.errors import CodeqError
from codeq.export.extras import require
from codeq.quantizer.functions import widen

Runner = Callable[[np.ndarray], np.ndarray]


@contextmanager
def runtime_errors() -> Iterator[None]:
    """Turn what converters and runtimes raise, which can be anything, into a `CodeqError` with the reason.

    Errors of files stay as they are: they are about the disk, and not the network.
    """
    try:
        yield
    except (CodeqError, OSError):
        raise
    except Exception as error:
        raise CodeqError(f"{type(error).__name__}: {error!s:.500}") from error


def run_torch(model: Any) -> Runner:
    """Return the runner of a PyTorch network."""

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return widen(model(torch.from_numpy(x))).numpy()  # NumPy has no bfloat16

    return run


def run_pt2(path: Path) -> Runner:
    """Return the runner of a program of `torch.export`."""
    return run_torch(torch.export.load(path).module())


def run_onnx(path: Path) -> Runner:
    """Return the runner of an ONNX file in ONNX Runtime, with as many threads as PyTorch uses."""
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def run_openvino(path: Path) -> Runner:
    """Return the runner of an OpenVINO model or an ONNX file in OpenVINO, with as many threads as PyTorch uses."""
    core = openvino_core()
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", threads)
    return lambda x: compiled(x)[0]


def run_qonnx(path: Path) -> Runner:
    """Return the runner of a QONNX file in the executor of qonnx, a reference that is not made for speed."""
    wrapper = require("qonnx.core.modelwrapper").ModelWrapper
    infer = require("qonnx.transformation.infer_shapes").InferShapes
    execute = require("qonnx.core.onnx_exec").execute_onnx
    ready: dict[int, Any] = {}

    def run(x: np.ndarray) -> np.ndarray:
        if len(x) not in ready:  # it takes fixed sizes
            model = wrapper(str(path))
            model.set_tensor_shape(model.graph.input[0].name, list(x.shape))
            ready[len(x)] = model.transform(infer())
        model = ready[len(x)]
        with warnings.catch_warnings():  # about sizes that depend on the batch, which it has inferred as 0
            warnings.simplefilter("ignore", UserWarning)
            return execute(model, {model.graph.input[0].name: x})[model.graph.output[0].name]

    return run


def convert_to_openvino(source: Path, path: Path) -> None:
    """Convert an ONNX file to an OpenVINO model in float32: ``path`` and its ``.bin`` file."""
    package = openvino()
    with _without_telemetry():
        model = package.convert_model(str(source))
    package.save_model(model, str(path), compress_to_fp16=False)


@cache
def openvino_core() -> Any:
    """Return the core of OpenVINO, which lives as long as the process.

    The CPU plugin of each core saves the stack of signal handlers that it finds, replaces it by its memory, and
    restores what it saved at its end. Two cores that end in the order in which they began leave freed memory: the next
    Ctrl-C or SIGTERM then ends Python by a segmentation fault (OpenVINO 2026.4).
    """
    return openvino().Core()


def openvino() -> Any:
    """Import OpenVINO without its telemetry, which would report the import and each conversion to its maker."""
    with _without_telemetry():
        return require("openvino")


@contextmanager
def _without_telemetry() -> Iterator[None]:
    name = "openvino_telemetry"
    present = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # importing it fails; OpenVINO has a stub for that case
    try:
        yield
    finally:
        if present is None:
            del sys.modules[name]
        else:
            sys.modules[name] = present


def runtime_name(module: str) -> str:
    """Return name and version of a runtime, for tables."""
    package = require(module)
    return f"{module} {getattr(package, '__version__', '')}".strip()


def file_bytes(*paths: Path) -> int:
    """Return the size of files together."""
    return sum(os.path.getsize(path) for path in paths)
