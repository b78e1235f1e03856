"""The data sets, their batches, and the errors of everything a user can get wrong about them."""

from __future__ import annotations

import hashlib
import io
import pickle
import socket
import tarfile
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from cases import each
from PIL import Image

import codeq.data.dataset
from codeq.common import downloading
from codeq.common.errors import CodeqError
from codeq.data import DATASETS, Augmentation, Dataset, Split, known_num_classes, load_dataset
from codeq.data.augmentation import draw_epoch
from codeq.data.images import channel_statistics, crop_and_flip, resize

pytestmark = pytest.mark.usefixtures("without_figures")


def toy(count: int = 50, height: int = 6, width: int = 5, augment: Augmentation | None = None) -> Dataset:
    """Random images, each with its index as label."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, height, width), generator=generator).byte()
    split = Split(images, torch.arange(count))
    return Dataset.from_splits("toy", tuple(map(str, range(count))), split, split, augment)


def equal(batches: object, others: object) -> bool:
    pairs = list(zip(batches, others, strict=True))
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


# --- augmentation, order, normalization -------------------------------------------------------------------------------


def crop_and_flip_slowly(images, top, left, flip, padding):
    result = np.empty_like(images)
    for i, image in enumerate(images):
        height, width = image.shape[1:]
        bordered = np.zeros((len(image), height + 2 * padding, width + 2 * padding), image.dtype)
        bordered[:, padding : padding + height, padding : padding + width] = image
        window = bordered[:, top[i] : top[i] + height, left[i] : left[i] + width]
        result[i] = window[:, :, ::-1] if flip[i] else window
    return result


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_and_flip_equals_a_loop_over_images(padding):
    images = toy(count=300).train.images
    generator = torch.Generator().manual_seed(0)
    top, left = torch.randint(0, 2 * padding + 1, (2, 300), generator=generator)
    flip = torch.rand(300, generator=generator) < 0.5
    expected = crop_and_flip_slowly(images.numpy(), top.numpy(), left.numpy(), flip.numpy(), padding)
    assert np.array_equal(crop_and_flip(images, top, left, flip, padding).numpy(), expected)


def test_training_batches_are_the_drawn_windows_normalized_in_the_drawn_order():
    dataset = toy(augment=Augmentation(crop_padding=2, flip=True))
    order, top, left, flip = draw_epoch(50, dataset.augment, (6, 5), seed=5, epoch=2).numpy()
    windows = crop_and_flip_slowly(dataset.train.images.numpy()[order], top, left, flip, padding=2)
    mean, std = (s.numpy().reshape(3, 1, 1) for s in (dataset.mean, dataset.std))
    x, y = (torch.cat(parts) for parts in zip(*dataset.train_batches(16, seed=5, epoch=2), strict=True))
    assert np.array_equal(y.numpy(), order)
    np.testing.assert_allclose(x.numpy(), (windows / 255 - mean) / std, atol=1e-5)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64


def test_an_epoch_draws_every_image_once_and_every_offset_evenly():
    order, top, left, flip = draw_epoch(45_000, Augmentation(crop_padding=4, flip=True), (32, 32), seed=0, epoch=0)
    assert torch.equal(order.sort().values, torch.arange(45_000))
    assert not torch.equal(order, torch.arange(45_000))
    for corner in (top, left):
        counts = corner.bincount(minlength=9)
        assert len(counts) == 9
        assert (counts - 5000).abs().max() < 5 * 5000**0.5
    assert abs(flip.float().mean() - 0.5) < 0.02
    pairs = (9 * top + left).bincount(minlength=81)  # the two are independent of each other
    assert (pairs - 45_000 / 81).abs().max() < 6 * (45_000 / 81) ** 0.5


def test_without_augmentation_images_are_only_shuffled():
    dataset = toy(augment=Augmentation(crop_padding=0, flip=False))
    (x, y), (u, _) = next(dataset.train_batches(50, seed=0, epoch=0)), next(iter(dataset.test_batches(50)))
    assert torch.equal(x, u[y])


def test_normalized_training_images_have_mean_0_and_variance_1():
    x = torch.cat([x for x, _ in toy().test_batches(7)])
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert (x.var((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-5


def test_statistics_equal_numpys():
    images = toy().train.images
    mean, std = channel_statistics(images)
    pixels = images.numpy() / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_statistics_of_images_on_a_gpu_stay_there():
    images = toy().train.images
    for there, here in zip(channel_statistics(images.cuda()), channel_statistics(images), strict=True):
        assert there.is_cuda
        assert torch.equal(there.cpu(), here)


def test_a_channel_of_one_value_is_normalized_to_zero():
    split = Split(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    x, _ = next(iter(Dataset.from_splits("flat", ("a",), split, split).test_batches()))
    assert x.abs().max() < 1e-5


# --- determinism and resuming -----------------------------------------------------------------------------------------


def test_an_epoch_is_a_function_of_seed_and_epoch():
    dataset = toy()
    batches = list(dataset.train_batches(16, seed=1, epoch=1))
    torch.rand(5)
    assert equal(batches, dataset.train_batches(16, seed=1, epoch=1))
    for seed, epoch in ((0, 1), (1, 0), (2, 0), (0, 2)):
        assert not equal(batches, dataset.train_batches(16, seed=seed, epoch=epoch))


def test_the_global_random_states_stay_as_they_were():
    torch.manual_seed(0)
    np.random.seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(load_dataset("synthetic").train_batches(100, seed=0, epoch=0))
    load_dataset("digits")
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


@each("start", [0, 1, 3, 4])
def test_a_resumed_epoch_has_the_batches_that_were_left(start):
    dataset = toy()
    everything = list(dataset.train_batches(16, seed=0, epoch=7))
    assert equal(everything[start:], dataset.train_batches(16, seed=0, epoch=7, start=start))


def test_the_last_short_batch_is_kept():
    dataset = toy()
    assert [len(y) for _, y in dataset.train_batches(16, seed=0, epoch=0)] == [16, 16, 16, 2]
    assert dataset.num_train_batches(16) == 4
    assert dataset.num_train_batches(25) == 2
    assert dataset.num_train_batches(51) == 1


def test_test_batches_can_be_iterated_again_in_order():
    batches = toy().test_batches(16)
    assert len(batches) == 4
    assert equal(batches, batches)
    assert torch.equal(torch.cat([y for _, y in batches]), torch.arange(50))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same_batches_without_being_waited_for():
    dataset = toy()
    on_gpu = dataset.to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = on_gpu.train_batches(16, seed=0, epoch=0)
        found = [next(batches) for _ in range(4)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (x, y), (u, v) in zip(found, dataset.train_batches(16, seed=0, epoch=0), strict=True):
        assert torch.allclose(x.cpu(), u, atol=1e-6)
        assert torch.equal(y.cpu(), v)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_every_batch_and_every_test_image(world):
    dataset = toy()
    shares = [dataset.train_batches(11, seed=2, epoch=1, start=1, rank=r, world=world) for r in range(world)]
    for (x, y), *parts in zip(dataset.train_batches(11, seed=2, epoch=1, start=1), *shares, strict=True):
        sizes = [len(labels) for _, labels in parts]
        assert max(sizes) - min(sizes) <= 1
        assert torch.equal(x, torch.cat([images for images, _ in parts]))
        assert torch.equal(y, torch.cat([labels for _, labels in parts]))
    tests = [batch for r in range(world) for batch in dataset.test_batches(7, rank=r, world=world)]
    assert torch.equal(torch.cat([y for _, y in tests]), torch.arange(50))
    assert max(len(y) for _, y in tests) == 7


def test_more_processes_than_test_images_are_refused():
    with pytest.raises(CodeqError, match="world=51: dataset 'toy' has only 50 test images"):
        toy().test_batches(world=51)


# --- built-in data sets -----------------------------------------------------------------------------------------------


def test_digits_are_the_real_ones_stratified_and_never_mirrored():
    from sklearn import datasets, model_selection

    dataset = load_dataset("digits")
    assert dataset.classes == tuple("0123456789")
    assert dataset.augment == Augmentation(crop_padding=4, flip=False)
    assert dataset.input_size == (3, 32, 32)
    raw = datasets.load_digits()
    parts = model_selection.train_test_split(raw.images, raw.target, test_size=360, random_state=0, stratify=raw.target)
    for split, images, labels in zip((dataset.train, dataset.test), parts[:2], parts[2:], strict=True):
        assert np.array_equal(split.labels, labels)
        assert (split.images == split.images[:, :1]).all()
        # Reduced to their 8×8 pixels they are scikit-learn's images.
        small = torch.nn.functional.avg_pool2d(split.images[:, 0].float(), 4).flatten(1)
        nearest = torch.cdist(small, torch.from_numpy(images * 255 / 16).float().flatten(1)).argmin(1)
        assert (nearest == torch.arange(len(images))).float().mean() > 0.99  # a few of the originals are nearly alike


def test_digits_and_synthetic_come_in_any_size():
    assert load_dataset("digits", img_size=8).input_size == (3, 8, 8)
    assert load_dataset("synthetic", img_size=20).input_size == (3, 20, 20)
    first, second = (load_dataset("synthetic").train.images for _ in range(2))
    assert torch.equal(first, second)


def test_synthetic_images_tell_their_class():
    dataset = load_dataset("synthetic")
    centres = torch.stack(
        [dataset.train.images[dataset.train.labels == c].float().mean(0).flatten() for c in range(10)]
    )
    guess = torch.cdist(dataset.test.images.float().flatten(1), centres).argmin(1)
    assert (guess == dataset.test.labels).float().mean() > 0.99


def test_resize_keeps_flat_colours_and_shrinks_by_averaging():
    assert (resize(torch.full((2, 3, 4, 4), 77.0), 9) == 77).all()
    stripes = torch.tensor([0.0, 200.0]).repeat(4, 4).view(1, 1, 4, 8).repeat(1, 1, 2, 1)
    assert (resize(stripes, 2)[..., 0] - 100.0).abs().max() < 15


@pytest.mark.parametrize(
    ("name", "count"), [("cifar10", 10), ("cifar100", 100), ("digits", 10), ("synthetic", 10), ("imagefolder", None)]
)
def test_number_of_classes_is_known_without_data(name, count, tmp_path, monkeypatch):
    monkeypatch.setenv("CODEQ_HOME", str(tmp_path))
    assert known_num_classes(name) == count


def test_a_users_own_data_set(monkeypatch, tmp_path):
    def load(data_dir, img_size):
        assert (data_dir, img_size) == (tmp_path / "mine", 12)
        return toy()

    monkeypatch.setitem(DATASETS, "mine", load)
    monkeypatch.setenv("CODEQ_HOME", str(tmp_path))
    assert known_num_classes("mine") is None
    assert load_dataset("mine", data_dir="mine", img_size=12).name == "toy"
    load.num_classes = 50
    assert known_num_classes("mine") == 50
    monkeypatch.setitem(DATASETS, "mine", lambda *_: [1, 2])
    with pytest.raises(CodeqError, match=r"'mine'.*list.*Dataset"):
        load_dataset("mine")


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def fake_cifar10(monkeypatch) -> bytes:
    """Make torchvision expect an archive of the real layout with five training and one test batch of 4 images."""
    rng = np.random.default_rng(0)
    archive, md5 = io.BytesIO(), {}
    files = {f"data_batch_{i}": i for i in range(1, 6)} | {"test_batch": 6, "batches.meta": 0}
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, seed in files.items():
            content: dict[str, object] = {"label_names": [f"class{i}" for i in range(10)]}
            if seed:
                content = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [seed, 0, 9, 3]}
            raw = pickle.dumps(content)
            md5[name] = hashlib.md5(raw).hexdigest()
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5(archive.getvalue()).hexdigest())
    monkeypatch.setattr(cifar, "train_list", [[f"data_batch_{i}", md5[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": md5["batches.meta"]})
    return archive.getvalue()


class Cut(io.BytesIO):
    """An answer that ends in an error."""

    headers = Message()  # which do not say how long the file is

    def read(self, size=-1):
        if chunk := super().read(size):
            return chunk
        raise urllib.error.URLError("no network")


def no_network(monkeypatch, write: bytes | None = None) -> None:
    """Make every download fail, after it wrote something if asked to."""

    def fail(url, timeout, context):
        if write is None:
            raise urllib.error.URLError("no network")
        return Cut(write)

    monkeypatch.setattr(downloading, "urlopen", fail)


def test_cifar10_is_downloaded_once(monkeypatch, tmp_path):
    (tmp_path / "server").write_bytes(fake_cifar10(monkeypatch))
    assert torchvision.datasets.CIFAR10.url == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", (tmp_path / "server").as_uri())
    dataset = load_dataset("cifar10", data_dir=tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]
    assert dataset.classes == tuple(f"class{i}" for i in range(10))
    assert dataset.train.labels[::4].tolist() == [1, 2, 3, 4, 5]
    assert dataset.augment == Augmentation(crop_padding=4, flip=True)
    with open(tmp_path / "new" / "cifar-10-batches-py" / "test_batch", "rb") as file:
        stored = pickle.load(file)["data"]
    assert np.array_equal(dataset.test.images.numpy().reshape(4, -1), stored)
    no_network(monkeypatch)
    assert equal(load_dataset("cifar10", data_dir=tmp_path / "new").test_batches(), dataset.test_batches())
    assert load_dataset("cifar10", data_dir=tmp_path / "new", img_size=16).input_size == (3, 16, 16)


def test_another_file_than_cifars_is_not_kept(monkeypatch, tmp_path):
    fake_cifar10(monkeypatch)
    (tmp_path / "server").write_bytes(b"<html>Please log in</html>")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", (tmp_path / "server").as_uri())
    with pytest.raises(CodeqError, match=r"could not be downloaded \(what file://.*server sent has another md5"):
        load_dataset("cifar10", data_dir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_silent_server_of_cifar_is_given_up_and_no_other_connection_gets_the_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(downloading, "TIMEOUT", 0.1)
    limits = []

    def remember(*args, **kwargs):
        limits.append(socket.getdefaulttimeout())
        return urllib.request.urlopen(*args, **kwargs)

    monkeypatch.setattr(downloading, "urlopen", remember)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/cifar.tar.gz"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
        with pytest.raises(CodeqError, match="timed out"):
            load_dataset("cifar10", data_dir=tmp_path)
    assert limits == [None]


def test_cifar10_from_an_archive_put_there_by_hand(monkeypatch, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(fake_cifar10(monkeypatch))
    no_network(monkeypatch)
    assert len(load_dataset("cifar10", data_dir=tmp_path).train) == 20


@pytest.mark.parametrize(
    ("name", "file"), [("cifar10", "cifar-10-python.tar.gz"), ("cifar100", "cifar-100-python.tar.gz")]
)
@pytest.mark.parametrize("partial", [None, b"", b"half of it"])
def test_without_network_cifar_says_what_to_put_where_and_leaves_nothing(monkeypatch, tmp_path, name, file, partial):
    no_network(monkeypatch, write=partial)
    with pytest.raises(CodeqError) as error:
        load_dataset(name, data_dir=tmp_path)
    assert str(tmp_path / file) in str(error.value)
    assert f"https://www.cs.toronto.edu/~kriz/{file}" in str(error.value)
    assert "no network" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_partial_cifar_archive_is_named(monkeypatch, tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(fake_cifar10(monkeypatch)[:-100])
    no_network(monkeypatch)
    with pytest.raises(CodeqError, match=r"cifar-10-python.tar.gz is incomplete or damaged.*Delete it"):
        load_dataset("cifar10", data_dir=tmp_path)
    assert archive.exists()


def test_while_cifar_is_unpacked_other_processes_read_whole_files(monkeypatch, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(fake_cifar10(monkeypatch))
    no_network(monkeypatch)
    before = load_dataset("cifar10", data_dir=tmp_path)
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    whole, extract, read = file.read_bytes(), torchvision.datasets.utils.extract_archive, []

    def slowly(archive, folder):
        half = Path(folder, file.parent.name, file.name)
        half.parent.mkdir(exist_ok=True)
        half.write_bytes(whole[:100])
        read.append(file.read_bytes())
        extract(archive, folder)

    monkeypatch.setattr(torchvision.datasets.utils, "extract_archive", slowly)
    file.with_name("data_batch_3").unlink()
    assert equal(load_dataset("cifar10", data_dir=tmp_path).test_batches(), before.test_batches())
    assert read == [whole]
    assert sorted(p.name for p in tmp_path.iterdir()) == [file.parent.name, "cifar-10-python.tar.gz"]


def test_cifar_files_that_are_damaged_in_a_whole_archive_are_named(monkeypatch, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(fake_cifar10(monkeypatch))
    no_network(monkeypatch)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [["test_batch", "0" * 32]])
    with pytest.raises(CodeqError, match="cifar-10-batches-py is damaged although just unpacked"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_damaged_cifar_files_are_unpacked_again(monkeypatch, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(fake_cifar10(monkeypatch))
    no_network(monkeypatch)
    before = load_dataset("cifar10", data_dir=tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"cut")
    assert equal(load_dataset("cifar10", data_dir=tmp_path).test_batches(), before.test_batches())


# --- folders of images ------------------------------------------------------------------------------------------------


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def tree(root: Path, train: str = "train", test: str = "test", per_class: int = 3) -> Path:
    for split in (train, test):
        for c, name in enumerate(("zebra", "ant", "Bee")):
            for i in range(per_class if split == train else 1):
                picture(root / split / name / f"{i}.png", seed=100 * c + i)
    return root


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_imagefolder_equals_torchvisions(tmp_path, test):
    dataset = load_dataset("imagefolder", data_dir=tree(tmp_path, test=test))
    for split, name in ((dataset.train, "train"), (dataset.test, test)):
        expected = torchvision.datasets.ImageFolder(str(tmp_path / name))
        assert list(dataset.classes) == expected.classes == ["Bee", "ant", "zebra"]
        assert split.labels.tolist() == expected.targets
        for image, (other, _) in zip(split.images, expected, strict=True):
            assert np.array_equal(image.numpy(), np.asarray(other).transpose(2, 0, 1))


def test_a_flat_folder_is_split_within_each_class_always_alike(tmp_path):
    for c, (name, count) in enumerate((("cat", 10), ("dog", 15), ("train", 2))):
        for i in range(count):
            picture(tmp_path / name / f"{i}.png", seed=100 * c + i)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    dataset = load_dataset("imagefolder", data_dir=tmp_path)
    assert dataset.classes == ("cat", "dog", "train")
    assert dataset.train.labels.bincount().tolist() == [8, 12, 1]
    assert dataset.test.labels.bincount().tolist() == [2, 3, 1]
    images = torch.cat([dataset.train.images, dataset.test.images])
    assert len(images.flatten(1).unique(dim=0)) == 27
    assert equal(dataset.test_batches(), load_dataset("imagefolder", data_dir=tmp_path).test_batches())


def test_images_are_resized_by_their_shorter_side_and_cut_to_the_centre(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255  # only the middle square is white
    for name in ("a", "b"):
        for i, pixels in enumerate((wide, wide.transpose(1, 0, 2))):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / name / f"{i}.png")
    dataset = load_dataset("imagefolder", data_dir=tmp_path, img_size=10)
    for split in (dataset.train, dataset.test):
        assert split.images.shape[1:] == (3, 10, 10)
        assert (split.images[..., 1:-1, 1:-1] == 255).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_kinds_of_images_become_rgb(tmp_path, mode):
    for name in ("a", "b"):
        for i in range(2):
            picture(tmp_path / name / f"{i}.{'tif' if mode == 'CMYK' else 'png'}", seed=i, mode=mode)
    assert load_dataset("imagefolder", data_dir=tmp_path).input_size == (3, 8, 8)


def test_a_palette_with_transparency_gives_no_warning(tmp_path):
    for name in ("a", "b"):
        for i in range(2):
            path = picture(tmp_path / name / f"{i}.png", mode="P")
            Image.open(path).save(path, transparency=bytes(range(256)))
    load_dataset("imagefolder", data_dir=tmp_path)


@pytest.mark.parametrize(("size", "padding"), [(64, 4), (65, 0)])
def test_only_small_images_are_cropped(tmp_path, size, padding):
    for name in ("a", "b"):
        for i in range(2):
            picture(tmp_path / name / f"{i}.png", seed=i, size=(size, size))
    dataset = load_dataset("imagefolder", data_dir=tmp_path)
    assert dataset.augment == Augmentation(crop_padding=padding, flip=True)


def broken_tree(root: Path, what: str) -> Path:
    tree(root)
    broken = root / "train" / "ant" / "1.png"
    match what:
        case "missing":
            return root / "nowhere"
        case "file":
            return broken
        case "no classes":
            (root / "empty").mkdir()
            return root / "empty"
        case "empty class":
            (root / "train" / "cow").mkdir()
        case "not an image":
            broken.write_text("not an image")
        case "truncated":
            broken.write_bytes(broken.read_bytes()[:-40])
        case "16 bits":
            Image.fromarray(np.zeros((8, 8), np.uint16)).save(broken)
        case "other size":
            picture(broken, size=(8, 9))
        case "only in train":
            picture(root / "train" / "cow" / "0.png")
        case "only in test":
            picture(root / "test" / "cow" / "0.png")
        case "no test":
            (root / "test").rename(root / "other")
        case "no train":
            (root / "train").rename(root / "other")
    return root


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r"data_dir='.*nowhere' does not exist"),
        ("file", r"data_dir='.*1.png' is not a folder"),
        ("no classes", r"empty holds no class folders"),
        ("empty class", r"class folder .*cow holds no images"),
        ("not an image", r"1.png cannot be read as an image"),
        ("truncated", r"1.png cannot be read as an image"),
        ("16 bits", r"1.png has pixels of mode I;16: only 8-bit"),
        ("other size", r"1.png has 8×9 pixels and .* 8×8: set img_size"),
        ("only in train", r"differ in classes: 'cow' is only in train"),
        ("only in test", r"differ in classes: 'cow' is only in test"),
        ("no test", r"has train/ but no test split"),
        ("no train", r"has test/ but no train/"),
    ],
)
def test_what_is_wrong_with_a_tree_is_said(tmp_path, what, message):
    with pytest.raises(CodeqError, match=message):
        load_dataset("imagefolder", data_dir=broken_tree(tmp_path, what))


def test_one_class_or_one_image_is_too_few(tmp_path):
    picture(tmp_path / "cat" / "0.png")
    with pytest.raises(CodeqError, match="only one class folder, 'cat'"):
        load_dataset("imagefolder", data_dir=tmp_path)
    picture(tmp_path / "dog" / "0.png")
    with pytest.raises(CodeqError, match="cat holds one image: two are needed"):
        load_dataset("imagefolder", data_dir=tmp_path)


# --- what a user can get wrong ----------------------------------------------------------------------------------------


def test_unknown_names_are_answered_with_the_nearest():
    for ask in (load_dataset, known_num_classes):
        with pytest.raises(CodeqError, match=r"dataset 'digit' is unknown. Did you mean 'digits'\?"):
            ask("digit")


def test_too_much_for_the_memory_is_refused_before_it_is_made(tmp_path):
    with pytest.raises(
        CodeqError, match=r"60,000 images of 3×256×256 .* 11.0 GiB .* 10.0 GiB. Set img_size to 244 or less"
    ):
        load_dataset("cifar10", data_dir=tmp_path, img_size=256)
    assert list(tmp_path.iterdir()) == []
    for name in ("synthetic", "digits"):
        with pytest.raises(CodeqError, match="Set img_size"):
            load_dataset(name, img_size=5000)


def test_the_size_that_the_budget_error_names_is_the_largest_legal_one(tmp_path, monkeypatch):
    monkeypatch.setattr(codeq.data.dataset, "RESIDENT_BUDGET", 12 * 3 * 8 * 8 - 1)
    with pytest.raises(CodeqError, match=r"12 images of 3×8×8.* Set img_size, and they are read from their files"):
        load_dataset("imagefolder", data_dir=tree(tmp_path))
    monkeypatch.setattr(codeq.data.dataset, "RESIDENT_BUDGET", 768 * 3 * 8 * 8 - 1)
    with pytest.raises(CodeqError, match=r"768 images of 3×8×8.*Set img_size to 7 or less"):
        load_dataset("synthetic", img_size=8)
    assert load_dataset("synthetic", img_size=7).input_size == (3, 7, 7)


def test_numbers_may_come_from_numpy():
    """As from a table or a search, also with so few bits that their products would not fit."""
    dataset = load_dataset("synthetic", img_size=np.int8(8), workers=np.int64(0))
    assert [type(length) for length in dataset.input_size[1:]] == [int, int]
    small = {"batch_size": np.uint8(200), "seed": np.int64(1), "epoch": np.int8(2), "start": np.int8(1)}
    plain = {"batch_size": 200, "seed": 1, "epoch": 2, "start": 1}
    assert equal(dataset.train_batches(**small), dataset.train_batches(**plain))
    share = {"rank": np.uint8(1), "world": np.uint8(2)}
    assert equal(dataset.test_batches(**share), dataset.test_batches(rank=1, world=2))
    assert Augmentation(crop_padding=np.int64(2)) == Augmentation(crop_padding=2)
    assert type(Augmentation(cutout=np.int64(2)).cutout) is int


@each("size", [0, -1, 32.0, "32", True])
def test_img_size_must_be_a_positive_integer(size):
    with pytest.raises(CodeqError, match=r"img_size=.*: must be an integer of at least 1"):
        load_dataset("digits", img_size=size)


def test_workers_must_be_a_natural_number():
    with pytest.raises(CodeqError, match="workers=-1: must be an integer of at least 0"):
        load_dataset("digits", workers=-1)


@each(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"seed": -1}, "seed=-1"),
        ({"epoch": -1}, "epoch=-1"),
        ({"start": -1}, "start=-1"),
        ({"world": 0}, "world=0"),
        ({"rank": -1, "world": 2}, "rank=-1"),
        ({"rank": 2, "world": 2}, "rank=2: must be less than world=2"),
        ({"world": 3}, r"batch_size=8: the last batch has 2 of the 50 training images, fewer than 3 processes"),
    ],
)
def test_train_batches_refuses_illegal_numbers_at_once(change, message):
    with pytest.raises(CodeqError, match=message):
        toy().train_batches(**{"batch_size": 8, "seed": 0, "epoch": 0} | change)


def test_parts_that_do_not_fit_are_refused():
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4)
    with pytest.raises(CodeqError, match="float32"):
        Split(images.float(), labels)
    with pytest.raises(CodeqError, match="empty axis"):
        Split(images[:0], labels[:0])
    with pytest.raises(CodeqError, match=r"labels of 4 images are torch.int64 \[3\]"):
        Split(images, labels[:3])
    with pytest.raises(CodeqError, match="label 3 is none of its 3 classes"):
        Dataset.from_splits("x", ("a", "b", "c"), Split(images, labels), Split(images, labels))
    with pytest.raises(CodeqError, match="differ in shape"):
        Dataset.from_splits("x", tuple("abcd"), Split(images, labels), Split(images[:, :, 1:], labels))
    with pytest.raises(CodeqError, match="mean and std"):
        Dataset("x", tuple("abcd"), Split(images, labels), Split(images, labels), torch.zeros(1), torch.ones(1))
