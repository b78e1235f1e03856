"""Data sets read from their files: the same batches whatever reads them, torchvision's pixels, and a clean end."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import each
from PIL import Image
from torchvision.transforms import v2

import codeq.data.dataset
import codeq.data.streamed
from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig
from codeq.data import DATASETS, Dataset, FileSplit, StreamedDataset, load_dataset
from codeq.data.base import epoch_generator
from codeq.data.views import evaluation_view, random_window, training_view
from codeq.trainer import run_experiment

pytestmark = pytest.mark.usefixtures("without_figures")

CLASSES = ("ant", "bee", "cow")


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture, like a photograph, with some noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
    return Image.fromarray((np.asarray(coarse) * 0.8 + random.integers(0, 50, (height, width, 3))).astype(np.uint8))


@pytest.fixture
def folder(tmp_path) -> Path:
    """17 + 7 photographs of three classes and of differing sizes."""
    for split, count in (("train", 17), ("val", 7)):
        for i in range(count):
            path = tmp_path / "images" / split / CLASSES[i % 3] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(20 + 3 * i, 50 - i, seed=i).save(path)
    return tmp_path / "images"


def streamed(folder: Path, workers: int = 0, img_size: int = 72) -> StreamedDataset:
    dataset = load_dataset("imagefolder", data_dir=folder, img_size=img_size, workers=workers)
    assert isinstance(dataset, StreamedDataset)
    return dataset


def equal(batches: object, others: object) -> bool:
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(batches, others, strict=True))


# --- which folders are streamed ---------------------------------------------------------------------------------------


def test_large_images_and_more_than_fit_are_streamed(folder, monkeypatch):
    assert isinstance(load_dataset("imagefolder", data_dir=folder, img_size=64), Dataset)
    assert streamed(folder, img_size=65).input_size == (3, 65, 65)
    monkeypatch.setattr(codeq.data.dataset, "RESIDENT_BUDGET", 24 * 3 * 16 * 16)
    assert isinstance(load_dataset("imagefolder", data_dir=folder, img_size=16), Dataset)
    assert streamed(folder, img_size=17, workers=3).workers == 3


def test_both_kinds_offer_the_same(folder, monkeypatch):
    resident = load_dataset("imagefolder", data_dir=folder, img_size=16)
    monkeypatch.setattr(codeq.data.dataset, "RESIDENT_BUDGET", 0)
    dataset = streamed(folder, img_size=16).to("cpu")
    for what in ("name", "classes", "num_classes", "input_size"):
        assert getattr(dataset, what) == getattr(resident, what)
    assert (len(dataset.train), len(dataset.test)) == (len(resident.train), len(resident.test)) == (17, 7)
    assert dataset.num_train_batches(5) == resident.num_train_batches(5) == 4
    assert len(dataset.test_batches(5)) == len(resident.test_batches(5)) == 2
    for ask in (lambda d: d.test_batches(5), lambda d: d.train_batches(5, seed=0, epoch=0)):
        for (x, y), (u, v) in zip(ask(dataset), ask(resident), strict=True):
            assert (x.shape, x.dtype, x.device) == (u.shape, u.dtype, u.device)
            assert (y.shape, y.dtype, y.device) == (v.shape, v.dtype, v.device)
    tests = dataset.test_batches(5)
    for _ in range(2):
        assert torch.equal(torch.cat([y for _, y in tests]), resident.test.labels)
    (x, _), (u, _) = (next(iter(d.test_batches(7))) for d in (dataset, resident))
    # The same pictures, apart from how much of their border is left.
    assert np.corrcoef(x.flatten(), u.flatten())[0, 1] > 0.8


def test_a_users_streamed_data_set_gets_the_workers(folder, monkeypatch):
    monkeypatch.setitem(DATASETS, "mine", lambda data_dir, img_size: streamed(data_dir, img_size=img_size))
    assert load_dataset("mine", folder, 70, workers=5).workers == 5


# --- order and randomness ---------------------------------------------------------------------------------------------


def test_batches_do_not_depend_on_the_number_of_workers(folder):
    expected = list(streamed(folder).train_batches(5, seed=1, epoch=2))
    tests = list(streamed(folder).test_batches(3))
    for workers in (1, 2):
        dataset = streamed(folder, workers)
        assert equal(expected, dataset.train_batches(5, seed=1, epoch=2))
        assert equal(tests, dataset.test_batches(3))
    for seed, epoch in ((0, 2), (1, 1), (2, 1)):
        assert not equal(expected, streamed(folder).train_batches(5, seed=seed, epoch=epoch))


def test_an_epoch_has_every_image_once_and_another_view_each_time(folder):
    dataset = streamed(folder)
    (x, y), (u, v) = (next(dataset.train_batches(17, seed=0, epoch=epoch)) for epoch in (0, 1))
    assert torch.equal(y.sort().values, dataset.train.labels)
    assert not torch.equal(y, v)
    assert len(torch.cat([x, u]).flatten(1).unique(dim=0)) == 34


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 3, 4])
def test_a_resumed_epoch_has_the_batches_that_were_left_and_reads_no_others(folder, start, workers):
    everything = list(streamed(folder).train_batches(5, seed=0, epoch=3))
    dataset = streamed(folder, workers)
    for index in torch.randperm(17, generator=epoch_generator(seed=0, epoch=3))[: 5 * start]:
        Path(os.fsdecode(dataset.train.paths[index])).write_bytes(b"would be an error if it were read")
    assert equal(everything[start:], dataset.train_batches(5, seed=0, epoch=3, start=start))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_states_stay_as_they_were(folder, workers):
    np.random.seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    dataset = streamed(folder, workers)
    list(dataset.train_batches(9, seed=0, epoch=0))
    list(dataset.test_batches())
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_every_batch_and_every_test_image(folder, world):
    dataset = streamed(folder)
    expected = dataset.train_batches(7, seed=2, epoch=1, start=1)  # of 7 and of 3 images
    shares = [dataset.train_batches(7, seed=2, epoch=1, start=1, rank=r, world=world) for r in range(world)]
    for (x, y), *parts in zip(expected, *shares, strict=True):
        sizes = [len(labels) for _, labels in parts]
        assert max(sizes) - min(sizes) <= 1
        assert torch.equal(x, torch.cat([images for images, _ in parts]))
        assert torch.equal(y, torch.cat([labels for _, labels in parts]))
    ((x, y),) = dataset.test_batches(7)
    tests = [batch for r in range(world) for batch in dataset.test_batches(2, rank=r, world=world)]
    assert torch.equal(x, torch.cat([images for images, _ in tests]))
    assert torch.equal(y, torch.cat([labels for _, labels in tests]))


# --- pixels -----------------------------------------------------------------------------------------------------------


@each("seed", range(6))
def test_training_views_are_windows_resized_and_perhaps_mirrored(seed):
    image, random = photo(90, 61, seed), np.random.default_rng(seed)
    window = random_window(90, 61, random)
    expected = image.crop(window).resize((24, 24), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    found = np.asarray(training_view(image, 24, np.random.default_rng(seed)))
    assert np.array_equal(found, np.asarray(expected))


def test_windows_are_distributed_as_torchvisions():
    size = 120, 90
    random = np.random.default_rng(0)
    found = np.array([random_window(*size, random) for _ in range(4000)], float)
    crop = v2.RandomResizedCrop(24)
    drawn = [crop.make_params([Image.new("RGB", size)]) for _ in range(4000)]
    expected = np.array([(d["left"], d["top"], d["left"] + d["width"], d["top"] + d["height"]) for d in drawn], float)
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] <= size).all()
    for of in (
        lambda w: w[:, 0],
        lambda w: w[:, 1],
        lambda w: (w[:, 2] - w[:, 0]) * (w[:, 3] - w[:, 1]),
        lambda w: np.log((w[:, 2] - w[:, 0]) / (w[:, 3] - w[:, 1])),
    ):
        a, b = np.sort(of(found)), np.sort(of(expected))
        points = np.concatenate([a, b])
        gap = abs(np.searchsorted(a, points, "right") - np.searchsorted(b, points, "right")).max() / 4000
        assert gap < 1.95 * math.sqrt(2 / 4000)  # Kolmogorov-Smirnov at one in a thousand


@each("size", [(1, 1), (1, 3), (2, 1)])
def test_windows_of_the_smallest_images_are_not_empty(size):
    random = np.random.default_rng(0)
    for _ in range(300):
        left, top, right, bottom = random_window(*size, random)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


@each("size", [(1000, 10), (10, 1000), (3, 1), (1, 3)])
def test_very_long_images_give_the_window_that_torchvision_falls_back_to(size):
    class Hopeless(np.random.Generator):
        def random(self):
            return 1.0  # the largest area, which fits into no long image

    expected = v2.RandomResizedCrop(24, scale=(1, 1)).make_params([Image.new("RGB", size)])
    left, top = expected["left"], expected["top"]
    window = random_window(*size, Hopeless(np.random.PCG64(0)))
    assert window == (left, top, left + expected["width"], top + expected["height"])


def test_the_smallest_image_has_views():
    image = Image.new("RGB", (1, 1), (9, 9, 9))
    for view in (training_view(image, 8, np.random.default_rng(0)), evaluation_view(image, 8)):
        assert (np.asarray(view) == np.full((8, 8, 3), 9)).all()


@each("width_height", [(90, 61), (61, 90), (300, 200), (33, 33), (500, 31), (20, 20), (400, 300)])
@each(("size", "shorter"), [(24, 27), (33, 38), (224, 256)])
def test_evaluation_views_are_the_centre_of_the_resized_image(width_height, size, shorter):
    image, (width, height) = photo(*width_height), width_height
    larger = (shorter, int(shorter * height / width)) if width < height else (int(shorter * width / height), shorter)
    left, top = (round((side - size) / 2) for side in larger)
    expected = image.resize(larger, Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    assert np.array_equal(np.asarray(evaluation_view(image, size)), np.asarray(expected))


def test_batches_are_normalized_by_imagenets_statistics(folder):
    dataset = streamed(folder)
    path = os.fsdecode(dataset.test.paths[4])
    recipe = [
        v2.Resize(round(72 * 256 / 224)),
        v2.CenterCrop(72),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    expected = v2.Compose(recipe)(Image.open(path))
    x, _ = next(iter(dataset.test_batches(7)))
    torch.testing.assert_close(x[4], expected, atol=1e-5, rtol=0)


def test_half_of_the_training_views_are_mirrored():
    ramp = Image.fromarray(np.tile(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], (30, 1, 3)))
    random = np.random.default_rng(0)
    views = (np.asarray(training_view(ramp, 4, random)).astype(int) for _ in range(1000))
    mirrored = sum(bool(view[0, 0, 0] > view[0, -1, 0]) for view in views)
    assert abs(mirrored - 500) < 5 * math.sqrt(250)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same_batches(folder):
    dataset = streamed(folder, workers=2)
    on_gpu = dataset.to("cuda").train_batches(5, seed=0, epoch=0)
    for (x, y), (u, v) in zip(on_gpu, dataset.train_batches(5, seed=0, epoch=0), strict=True):
        assert (x.device.type, y.device.type) == ("cuda", "cuda")
        assert torch.allclose(x.cpu(), u, atol=1e-6)
        assert torch.equal(y.cpu(), v)


# --- how it ends ------------------------------------------------------------------------------------------------------


def test_a_worker_that_ends_is_one_clear_error(folder, monkeypatch):
    monkeypatch.setattr(codeq.data.streamed, "decode", lambda _: os._exit(3))
    with pytest.raises(
        CodeqError, match=r"process that reads images has ended \(DataLoader worker \(pid \d+\) exited .*\); its"
    ):
        list(streamed(folder, workers=1).train_batches(4, seed=0, epoch=0))


def test_a_worker_that_executes_the_script_again_neither_reads_nor_trains(folder, monkeypatch, tmp_path):
    dataset = streamed(folder, workers=1)
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(CodeqError, match=r"again .* is not to read images: put everything that"):
        next(dataset.train_batches(4, seed=0, epoch=0))
    with pytest.raises(CodeqError, match=r"again .* is not to train: put everything that"):
        run_experiment(ExperimentConfig("again", output_dir=str(tmp_path / "outputs")))
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("guard", ["True", '__name__ == "__main__"'])
def test_a_script_without_a_guard_leaves_one_run_and_a_clear_error(folder, tmp_path, guard):
    script = tmp_path / "script.py"
    script.write_text(f"""\
import multiprocessing
from codeq import ExperimentConfig, run_experiment
if {guard}:
    multiprocessing.set_start_method("spawn", force=True)
    run_experiment(ExperimentConfig(
        "images", model="lenet5", dataset="imagefolder", data_dir={str(folder)!r}, img_size=72, epochs=1, batch_size=8,
        num_workers=1, device="cpu", output_dir={str(tmp_path / "outputs")!r},
    ))
""")
    done = subprocess.run([sys.executable, script], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert len(list((tmp_path / "outputs").iterdir())) == 1
    assert (done.returncode == 0) == ("main" in guard), done.stderr
    if "main" not in guard:
        assert 'is not to train: put everything that the script does below `if __name__ == "__main__":`' in done.stderr
        assert done.stderr.splitlines()[-1].startswith("codeq.CodeqError: a worker process that reads images has ended")


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("content", [b"not an image", None])
def test_a_broken_image_is_one_clear_error_and_ends_the_workers(folder, workers, content):
    path = folder / "train" / "bee" / "07.png"
    path.write_bytes(path.read_bytes()[:-400] if content is None else content)
    with pytest.raises(CodeqError) as error:
        list(streamed(folder, workers).train_batches(4, seed=0, epoch=0))
    assert str(error.value).startswith(f"{path} cannot be read as an image: ")
    assert "Traceback" not in str(error.value)
    assert multiprocessing.active_children() == []  # although `error` keeps the frames


def test_a_deleted_image_is_named(folder):
    dataset = streamed(folder, workers=1)
    (folder / "val" / "ant" / "00.png").unlink()
    with pytest.raises(CodeqError, match=r"00\.png cannot be read as an image: .*No such file"):
        list(dataset.test_batches())


def test_workers_end_with_their_iteration(folder):
    dataset = streamed(folder, workers=2)
    batches = dataset.train_batches(4, seed=0, epoch=0)
    assert multiprocessing.active_children() == []
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []
    list(dataset.test_batches(2))
    assert multiprocessing.active_children() == []


def test_no_more_workers_start_than_there_are_batches(folder):
    batches = streamed(folder, workers=8).train_batches(9, seed=0, epoch=0)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()


SCRIPT = """
import multiprocessing, signal, sys, time
from codeq.data import load_dataset

def on_sigterm(*_):
    raise SystemExit(143)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
if sys.argv[2] == "handled":
    signal.signal(signal.SIGTERM, on_sigterm)
batches = load_dataset("imagefolder", sys.argv[1], 72, workers=2).train_batches(1, seed=0, epoch=0)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
for _ in range(600):
    time.sleep(0.1)  # a signal just before a sleep is noticed after it
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(
    ("number", "group", "handler"),
    [
        pytest.param(signal.SIGINT, True, "", marks=pytest.mark.slow),  # Ctrl-C in a terminal
        pytest.param(signal.SIGTERM, True, "handled", marks=pytest.mark.slow),  # what batch systems do
        pytest.param(signal.SIGTERM, False, "handled", marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGTERM, False, "", marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGKILL, False, "", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_process_ends_with_its_workers(folder, number, group, handler):
    command = [sys.executable, "-c", SCRIPT, str(folder), handler]
    pipe = subprocess.PIPE
    quiet = os.environ | {"PYTHONWARNINGS": "ignore"}  # torch advises against two workers on a single core
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=quiet) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        (os.killpg if group else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == (143 if handler else -number)
    assert "worker" not in errors.lower()
    deadline = time.monotonic() + 30
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "workers are left"
        time.sleep(0.1)


# --- what a user can get wrong ----------------------------------------------------------------------------------------


def test_parts_that_do_not_fit_are_refused():
    files = FileSplit.of(["a", "b"], torch.tensor([0, 1]))
    with pytest.raises(CodeqError, match="no image files"):
        FileSplit.of([], torch.zeros(0, dtype=torch.int64))
    with pytest.raises(CodeqError, match=r"labels of 2 files are torch.int64 \[1\]: must be torch.int64 \[2\]"):
        FileSplit.of(["a", "b"], torch.tensor([0]))
    with pytest.raises(CodeqError, match="label 1 is none of its 1 classes"):
        StreamedDataset.from_files("x", ("a",), files, files, 8)
    with pytest.raises(CodeqError, match="img_size=0"):
        StreamedDataset.from_files("x", ("a", "b"), files, files, 0)
    three = FileSplit.of(["a", "b", "c"], torch.tensor([0, 1, 1]))
    dataset = StreamedDataset.from_files("x", ("a", "b"), three, files, 8)
    with pytest.raises(CodeqError, match=r"batch_size=2.*1 of the 3 training images"):
        dataset.train_batches(2, seed=0, epoch=0, world=2)


@each("workers", [0, 1])
def test_batches_do_not_depend_on_the_default_device(folder, workers):
    expected = list(streamed(folder).train_batches(5, seed=3, epoch=1))
    with torch.device("meta"):
        assert equal(streamed(folder, workers).train_batches(5, seed=3, epoch=1), expected)
