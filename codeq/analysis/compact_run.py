"""Compaction of a run: the compacted network as files that need no codeq, with its proof and measured gains."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from codeq.common.atomic import new_folder
from codeq.common.console import say
from codeq.common.errors import CodeqError
from codeq.common.paths import write_by, writing
from codeq.common.progress import counted
from codeq.compaction.compact import TOLERANCE, CompactionReport, Padding, check_proof, compact, followed_borders
from codeq.compaction.cutting import MACS, ChannelCut, check_budget, cut_channels
from codeq.compaction.gains import measure_gains
from codeq.compaction.latency import Prices, measured_prices
from codeq.compaction.proof import Proof, prove
from codeq.compaction.structure import describe
from codeq.config import ExperimentConfig, resolve_device
from codeq.data import BaseDataset, load_dataset, training_part
from codeq.export.program import EXAMPLES, save_program
from codeq.flow import Streams
from codeq.flow.analysis import check_options
from codeq.graph.baking import baked_copy
from codeq.quantizer.layers import forward_weight, named_layers
from codeq.quantizer.precision import weight_type
from codeq.runs import Run
from codeq.runs.checkpoints import CheckpointName, checkpoint_entry
from codeq.runs.networks import load_saved_network, whole_network
from codeq.runs.references import require_run
from codeq.training.batchnorm import recalibrate_batchnorm

if TYPE_CHECKING:
    import pandas as pd

TRAINABLE = "trainable.pt"  # in the folder of a compaction
CUT_BATCHES = 20  # training batches for the importance of channels
PROOF_BATCH = 16  # larger batches take twice the time an image: their float64 activations leave the caches


@dataclass(frozen=True, eq=False)
class Compacted:
    """Result of `compact_run`.

    Parameters
    ----------
    report : CompactionReport
        The model and its channels.
    proof : Proof
        On the whole test set.
    gains : DataFrame
        Latency and memory of the dense, the masked and the compacted network, see `measure_gains`.
    folder : Path
        Folder of the files.
    cut : ChannelCut or None
        Live channels that were cut first.
    """

    report: CompactionReport
    proof: Proof
    gains: pd.DataFrame
    folder: Path
    cut: ChannelCut | None = None


def compact_run(
    run: Run,
    checkpoint: CheckpointName = "last",
    borders: Padding = "map",
    streams: Streams = "scatter",
    multiple_of: int = 1,
    compiled: bool = False,
    device: str = "cpu",
    trainable: bool = False,
    macs: float | None = None,
    latency: float | None = None,
) -> Compacted:
    """Compact the network of a run, prove it equal on the whole test set, time it, and write it to ``compacted/``.

    ``model.pt2`` is a program of `torch.export` for any batch size, loaded by ``torch.export.load(...).module()``
    without codeq; ``channels.json`` holds the original numbers of the channels that each layer keeps; ``proof.json``
    and ``gains.csv`` the measurements. ``trainable.pt`` holds the compacted network with its quantizers; `init_from` in
    a configuration names it. The folder appears when all files are complete, and replaces an earlier one.

    Parameters
    ----------
    run : Run
        With a checkpoint; its data set has to be available.
    checkpoint : {"last", "best"}
        Checkpoint to compact.
    borders, streams, multiple_of
        See `codeq.compaction.compact`.
    compiled : bool
        Time the models with `torch.compile`, too.
    device : str
        Device to time them on.
    trainable : bool
        Whether to write ``trainable.pt``, see `keep_quantizers` of `codeq.compaction.compact`. Not of the best
        checkpoint of a run without a validation split: the test images chose it.
    macs : float, optional
        Fraction of the MACs that may be left: live channels are cut first, by their importance on training images, see
        `codeq.compaction.cut_channels`, and the statistics of BatchNorm are estimated anew, but for those that are
        frozen. The outputs are those of the cut network, which has to be trained further.
    latency : float, optional
        The same for the time of a batch of 128 on `device`, estimated from the times of the layers, see
        `codeq.compaction.latency.measured_prices`; one of both at most.

    Raises
    ------
    CodeqError
        If an option is wrong, `trainable` meets a checkpoint that test images chose, both `macs` and `latency` are
        given, an earlier ``trainable.pt`` would be lost, the run folder is not writable, there is no intact checkpoint
        or no data set, or the model cannot be compacted or exported, or if the compacted network differs on the test
        images by more than the rounding of its weights.
    """
    place = resolve_device(device)
    check_options(followed_borders(borders), streams, multiple_of)
    budgets = {name: budget for name, budget in (("macs", macs), ("latency", latency)) if budget is not None}
    if len(budgets) > 1:
        raise CodeqError(f"macs={macs}, latency={latency}: only one of both can be given")
    for name, budget in budgets.items():
        check_budget(name, budget)
    target = require_run(run).folder / "compacted"
    if trainable and checkpoint == "best" and not run.config.validation:
        raise CodeqError(
            f"checkpoint='best' of {run.folder} cannot be trained further: without a validation split the test images "
            "chose its epoch, which must not reach another training; take 'last', or train with validation"
        )
    if not trainable:
        _refuse_loss(target)
    with new_folder(target) as folder:
        made_of = checkpoint_entry(run.checkpoints, checkpoint).file
        model = run.load_model(made_of)
        config = run.config
        dataset = load_dataset(config.dataset, config.data_dir, config.img_size)
        cut = None
        for name, budget in budgets.items():
            prices = _measured_prices(model, dataset, place) if name == "latency" else MACS
            cut = _cut(model, config, dataset, budget, multiple_of, prices, constants=borders != "live")
        example = next(iter(dataset.test_batches(EXAMPLES)))[0]
        report = compact(model, example, borders, streams, multiple_of, keep_quantizers=trainable)
        if trainable:
            with writing(target):
                _save_trainable(report.model, config, dataset, example, folder / TRAINABLE)
        plain = baked_copy(report.model)
        proof = prove(model, plain, counted(dataset.test_batches(PROOF_BATCH), "proving"))
        if borders != "absorb":
            rounding = torch.finfo(weight_type(model, torch.float32)).eps  # of the biases that constants became
            check_proof(proof, model, report.unknown, max(TOLERANCE, 100 * rounding))
        with writing(target):
            save_program(plain, example, folder / "model.pt2")
        masked = baked_copy(model)
        whole = whole_network(masked, config, dataset.num_classes)
        models = {"dense": _dense(whole), "masked": masked, "compacted": plain}
        sizes = (1, 128) if all(_takes(each, example[:1]) for each in models.values()) else (128,)
        gains = measure_gains(models, dataset.input_size, sizes, compiled, place)
        kept = {name: {"inputs": i.tolist(), "outputs": o.tolist()} for name, (i, o) in report.kept.items()}
        lists = {"unknown": report.unknown, "notes": report.notes} | ({"cut": asdict(cut)} if cut else {})
        options = {"borders": borders, "streams": streams, "multiple_of": multiple_of, **budgets}
        found = {"checkpoint": made_of, "options": options, "assumes": report.assumes, **asdict(proof), **lists}
        with writing(target):
            _write_json(folder / "channels.json", kept)
            _write_json(folder / "proof.json", found)
            gains.to_csv(folder / "gains.csv", index=False)
        if not trainable:  # another process may have made a cut in the minutes since then
            _refuse_loss(target)
    return Compacted(report, proof, gains, target, cut)


def _refuse_loss(folder: Path) -> None:
    """Refuse to replace a folder that holds a compacted network that can be trained."""
    if (folder / TRAINABLE).is_file():
        raise CodeqError(
            f"{folder} holds {TRAINABLE}, which would be lost: rename the folder to keep the network of an earlier "
            "cut, or remove it"
        )


def _measured_prices(model: nn.Module, dataset: BaseDataset, device: torch.device) -> Prices:
    say("measuring the times of the layers")
    return measured_prices(_dense(baked_copy(model)), dataset.input_size, device=device)


def _cut(
    model: nn.Module, config: ExperimentConfig, dataset: BaseDataset, budget: float, multiple_of: int, prices: Prices,
    *, constants: bool,
) -> ChannelCut:  # fmt: skip
    """Cut channels in place, and estimate the statistics of BatchNorm anew, both on training images."""
    dataset = training_part(dataset, config.validation, config.seed)

    def batches(purpose: str) -> Iterator[tuple[Tensor, Tensor]]:
        with closing(dataset.train_batches(config.batch_size, seed=config.seed, epoch=0)) as whole:
            yield from counted(islice(whole, CUT_BATCHES), purpose, total=CUT_BATCHES)

    importance = batches("importance of channels")
    cut = cut_channels(model, importance, budget, dataset.input_size, multiple_of, prices, constants)
    with parametrize.cached():
        recalibrate_batchnorm(model, batches("estimating BatchNorm"))
    return cut


def _save_trainable(
    model: nn.Module, config: ExperimentConfig, dataset: BaseDataset, example: Tensor, path: Path
) -> None:
    """Save a compacted network with its quantizers as a training saves its checkpoints, and read it back."""
    content = {
        "model": model.state_dict(),
        "structure": describe(model),
        "num_classes": dataset.num_classes,
        "input_size": list(dataset.input_size),
        "config": config.to_dict(),
    }
    write_by(partial(torch.save, content), path)
    saved = load_saved_network(config, torch.load(path, map_location="cpu", weights_only=True), path)
    with torch.no_grad():
        if not torch.equal(saved(example), model(example)):
            raise CodeqError("the compacted network, saved and read back, has other outputs: it cannot be trained")


@torch.no_grad()
def _takes(model: nn.Module, x: Tensor) -> bool:
    """Return whether a model takes a batch; after a ``squeeze()``, it may not take a single image."""
    try:
        model(x.clone())
    except Exception:
        return False
    return True


def _dense(model: nn.Module) -> nn.Module:
    """Return the same architecture without a zero weight, which is all that matters for its speed."""
    dense = copy.deepcopy(model)
    for _, layer in named_layers(dense):
        nn.init.kaiming_uniform_(forward_weight(layer), generator=torch.Generator().manual_seed(0))
    return dense


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1))
