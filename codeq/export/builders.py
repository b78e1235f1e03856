"""Builders of the files of each format, from the networks of a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.export.activation_scales import Scales, export_with_scales
from codeq.export.grids import Grid, check_levels
from codeq.export.int4 import store_as_int4
from codeq.export.onnx_float import export_onnx
from codeq.export.packed import load_packed_network, packed_sizes, save_packed
from codeq.export.program import save_program
from codeq.export.qdq import export_qdq
from codeq.export.qonnx_graph import export_qonnx
from codeq.export.runtimes import (
    Runner,
    convert_to_openvino,
    run_onnx,
    run_openvino,
    run_pt2,
    run_qonnx,
    run_torch,
    runtime_errors,
    runtime_name,
)
from codeq.quantizer.activations import ActivationQuantizer

DENSE, COMPACTED = "dense float", "compacted float"
DENSE_INT8, COMPACTED_INT8 = "dense int8", "compacted int8"


@dataclass(frozen=True, eq=False)
class Built:
    """An exported file and what it is compared with.

    Parameters
    ----------
    files : tuple of Path
        The exported files, the one to open first.
    runtime : str
        Name and version of what executes it.
    runner : callable
        Executes it.
    compared : mapping of str to (tuple of Path, callable)
        Other models in the same runtime, with their files.
    weight_errors : dict of str to float
        As in `codeq.export.verdict.Verdict`.
    parts, weight_bits : dict of str to int
        As in `codeq.export.verdict.Verdict`.
    """

    files: tuple[Path, ...]
    runtime: str
    runner: Runner
    compared: Mapping[str, tuple[tuple[Path, ...], Runner]]
    weight_errors: dict[str, float] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    weight_bits: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Source:
    """The networks of a run, and a folder for the files that are made of them.

    Parameters
    ----------
    quantized : Module
        The run's network with its quantizers.
    trained, network : Module
        The same with plain weights, and the one to export: the compacted one, or the trained one again.
    dense : Module
        The network of the run's configuration, which the others are compared with in size and latency: the trained one,
        or where the run began with a compacted network, the whole one, with other weights.
    grids : mapping of str to Grid
        Grids of the weights of `network`.
    example : Tensor
        `[N, …]`, images.
    calibrated : Module
        `network` with quantizers of activations, if there are any, whose scales integer formats take.
    calibration : list of Tensor
        Batches of training images, for all other scales.
    folder : Path
        Folder to write to.
    int4 : bool
        Whether ``qdq`` stores weights in 4 bits where these hold them.
    checkpoint : str
        File of the checkpoint whose weights these are.
    """

    quantized: nn.Module
    trained: nn.Module
    network: nn.Module
    dense: nn.Module
    grids: Mapping[str, Grid]
    calibrated: nn.Module
    example: Tensor
    calibration: list[Tensor]
    folder: Path
    int4: bool
    checkpoint: str

    @property
    def name(self) -> str:
        """Name of the network among those that its file is compared with."""
        return DENSE if self.network is self.dense else COMPACTED

    @cached_property
    def onnx(self) -> Path:
        """Float ONNX file of the network."""
        export_onnx(self.network, self.example, self.folder / "model.onnx")
        return self.folder / "model.onnx"

    @cached_property
    def dense_onnx(self) -> Path:
        """Float ONNX file of the dense network."""
        if self.dense is self.network:
            return self.onnx
        export_onnx(self.dense, self.example, self.folder / "dense.onnx")
        return self.folder / "dense.onnx"

    @cached_property
    def integer_source(self) -> tuple[Path, Scales]:
        """Float ONNX file that integer formats are made of, and the known scales of its tensors.

        Raises
        ------
        CodeqError
            If no integers hold the weights of a layer, see `check_levels`.
        """
        check_levels(self.quantized)
        if not any(isinstance(module, ActivationQuantizer) for module in self.calibrated.modules()):
            return self.onnx, {}
        path = self.folder / "float.onnx"
        return path, export_with_scales(self.calibrated, self.example, path)

    @cached_property
    def qdq(self) -> tuple[Path, dict[str, float]]:
        """Integer ONNX file of the network, and the errors of its weights."""
        path = self.folder / "model.qdq.onnx"
        onnx, scales = self.integer_source
        with runtime_errors():
            return path, export_qdq(onnx, self.calibration, path, scales)


def build_onnx(source: Source) -> Built:
    """Write ``model.onnx``."""
    return Built((source.onnx,), runtime_name("onnxruntime"), run_onnx(source.onnx), _in_onnx_runtime(source))


def build_qdq(source: Source) -> Built:
    """Write ``model.qdq.onnx``."""
    path, errors = source.qdq
    bits: dict[str, int] = {}
    if source.int4:
        (source.folder / "int4").mkdir()
        wide, path = path, source.folder / "int4" / path.name
        bits = store_as_int4(wide, path)
    compared = _in_onnx_runtime(source)
    return Built((path,), runtime_name("onnxruntime"), run_onnx(path), compared, errors, weight_bits=bits)


def _in_onnx(source: Source) -> dict[str, Path]:
    """Return the ONNX files of all networks; the integer one is missing where it cannot be made."""
    paths = {DENSE: source.dense_onnx, source.name: source.onnx}
    with suppress(CodeqError):
        paths[DENSE_INT8 if source.name == DENSE else COMPACTED_INT8] = source.qdq[0]
    return paths


def _in_onnx_runtime(source: Source) -> dict[str, tuple[tuple[Path, ...], Runner]]:
    return {name: ((path,), run_onnx(path)) for name, path in _in_onnx(source).items()}


def build_openvino(source: Source) -> Built:
    """Write ``model.xml`` and ``model.bin``."""
    found: dict[str, tuple[tuple[Path, ...], Runner]] = {}
    stems = {DENSE: "dense", source.name: "model"}
    for name, onnx in _in_onnx(source).items():
        path = source.folder / f"{stems.get(name, 'int8')}.xml"
        convert_to_openvino(onnx, path)
        found[name] = (path, path.with_suffix(".bin")), run_openvino(path)
    files, runner = found[source.name]
    return Built(files, runtime_name("openvino"), runner, found)


def build_qonnx(source: Source) -> Built:
    """Write ``model.qonnx.onnx``."""
    path = source.folder / "model.qonnx.onnx"
    onnx, scales = source.integer_source
    errors = export_qonnx(onnx, source.calibration, path, scales)
    return Built((path,), f"{runtime_name('qonnx')} (reference executor)", run_qonnx(path), {}, errors)


def build_pt2(source: Source) -> Built:
    """Write ``model.pt2``."""
    found: dict[str, tuple[tuple[Path, ...], Runner]] = {}
    networks = {DENSE: (source.dense, "dense"), source.name: (source.network, "model")}
    for name, (network, stem) in networks.items():
        path = source.folder / f"{stem}.pt2"
        save_program(network, source.example, path)
        found[name] = (path,), run_pt2(path)
    files, runner = found[source.name]
    return Built(files, runtime_name("torch"), runner, found)


def build_packed(source: Source) -> Built:
    """Write ``model.codeq``."""
    path = source.folder / "model.codeq"
    save_packed(source.network, path, source.example, source.grids)
    parts = {name: size for name, size in vars(packed_sizes(path)).items() if name != "total"}
    runner = run_torch(load_packed_network(path))
    compared: dict[str, tuple[tuple[Path, ...], Runner]] = {DENSE: ((), run_torch(source.dense))}
    if source.name != DENSE:
        compared[source.name] = (path,), runner
    return Built((path,), runtime_name("torch"), runner, compared, parts=parts)


BUILDERS = {
    "onnx": build_onnx, "qdq": build_qdq, "qonnx": build_qonnx, "openvino": build_openvino, "pt2": build_pt2,
    "packed": build_packed,
}  # fmt: skip
INTEGER_FORMATS = ("qdq", "qonnx")
