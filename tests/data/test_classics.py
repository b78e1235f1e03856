"""MNIST, Fashion-MNIST and SVHN from small files in the official formats."""

import gzip
import hashlib
import struct
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets

from codeq.common import downloading
from codeq.common.errors import CodeqError
from codeq.data import Augmentation, load_dataset
from codeq.data.images import resize

pytestmark = pytest.mark.usefixtures("without_figures")

COUNTS = {"train": 20, "t10k": 10}
IDX = [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]


def idx(array: np.ndarray) -> bytes:
    """The gzipped file of an array of bytes, as http://yann.lecun.com/exdb/mnist specifies it."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    real = downloading.urlopen

    def only_files(url, *args, **kwargs):
        if not url.startswith("file:"):
            raise URLError("no network")
        return real(url, *args, **kwargs)

    monkeypatch.setattr(downloading, "urlopen", only_files)


@pytest.fixture(params=IDX, ids=lambda pair: pair[0])
def served(request, monkeypatch, tmp_path):
    """Name, class of torchvision and arrays of a data set whose first mirror does not answer."""
    name, kind = request.param
    source = getattr(torchvision.datasets, kind)
    random, arrays, resources = np.random.default_rng(0), {}, []
    (tmp_path / "server").mkdir()
    for part, count in COUNTS.items():
        images = random.integers(0, 256, (count, 28, 28))
        labels = np.arange(count) * 3 % 10
        arrays[part] = images, labels
        for file, array in ((f"{part}-images-idx3-ubyte.gz", images), (f"{part}-labels-idx1-ubyte.gz", labels)):
            (tmp_path / "server" / file).write_bytes(idx(array))
            resources.append((file, hashlib.md5(idx(array)).hexdigest()))
    assert [file for file, _ in source.resources] == [file for file, _ in resources]
    monkeypatch.setattr(source, "resources", resources)
    monkeypatch.setattr(source, "mirrors", ["http://unreachable.example/", (tmp_path / "server").as_uri() + "/"])
    return name, source, arrays


def test_the_pixels_and_labels_are_those_of_the_files(served, tmp_path):
    name, source, arrays = served
    dataset = load_dataset(name, tmp_path / "data", img_size=28)
    for split, part in ((dataset.train, "train"), (dataset.test, "t10k")):
        images, labels = arrays[part]
        assert split.images.shape == (COUNTS[part], 3, 28, 28)
        for channel in range(3):
            assert np.array_equal(split.images[:, channel].numpy(), images)
        assert split.labels.tolist() == labels.tolist()
    assert dataset.num_classes == 10
    raw = tmp_path / "data" / source.__name__ / "raw"  # where torchvision downloads to
    assert sorted(path.name for path in raw.iterdir()) == sorted(file for file, _ in source.resources)


def test_the_default_size_is_32_pixels(served, tmp_path):
    name, _, arrays = served
    dataset = load_dataset(name, tmp_path / "data")
    assert dataset.input_size == (3, 32, 32)
    grey = torch.from_numpy(arrays["t10k"][0]).to(torch.uint8).unsqueeze(1)
    assert torch.equal(dataset.test.images[:, :1], resize(grey, 32))


def test_digits_are_not_mirrored_and_clothes_are(served, tmp_path):
    name, _, _ = served
    assert load_dataset(name, tmp_path / "data").augment == Augmentation(4, flip=name == "fashion_mnist")


def test_files_that_are_there_are_not_downloaded_again(served, tmp_path, monkeypatch):
    name, source, _ = served
    first = load_dataset(name, tmp_path / "data")
    monkeypatch.setattr(source, "mirrors", [])
    assert torch.equal(load_dataset(name, tmp_path / "data").train.images, first.train.images)


def test_a_damaged_file_is_named(served, tmp_path):
    name, source, _ = served
    load_dataset(name, tmp_path / "data")
    file = tmp_path / "data" / source.__name__ / "raw" / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CodeqError, match=r"t10k-labels-idx1-ubyte\.gz is incomplete or damaged.*Delete it"):
        load_dataset(name, tmp_path / "data")


def test_another_file_than_the_official_one_is_not_kept(served, tmp_path):
    name, _, _ = served
    (tmp_path / "server" / "train-images-idx3-ubyte.gz").write_bytes(b"<html>Please log in</html>")
    with pytest.raises(CodeqError, match=r"no network.*sent has another md5.*put it there as .*train-images"):
        load_dataset(name, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_file_of_another_kind_is_refused(served, tmp_path, monkeypatch):
    name, source, _ = served
    content = gzip.compress(struct.pack(">HBBI", 0, 0x0D, 1, 1) + struct.pack(">f", 1.0))  # IDX of float32
    (tmp_path / "server" / "train-images-idx3-ubyte.gz").write_bytes(content)
    (_, *others) = source.resources
    first = ("train-images-idx3-ubyte.gz", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(source, "resources", [first, *others])
    with pytest.raises(CodeqError, match="is not an IDX file of bytes"):
        load_dataset(name, tmp_path / "data")


@pytest.mark.parametrize(
    ("kind", "md5"),
    [("MNIST", "f68b3c2dcbeaaa9fbdd348bbdeb94873"), ("FashionMNIST", "8d4fb7e6c68d591d4c3dfef9ec88bf0d")],
)
def test_the_checksums_are_the_published_ones(kind, md5):
    assert dict(getattr(torchvision.datasets, kind).resources)["train-images-idx3-ubyte.gz"] == md5


@pytest.fixture
def svhn(monkeypatch, tmp_path):
    """Small files as on http://ufldl.stanford.edu/housenumbers: X `[32, 32, 3, N]`, y `[N, 1]` with 10 for the 0."""
    random, arrays = np.random.default_rng(0), {}
    splits = {}
    for part, count in (("train", 20), ("test", 10)):
        x = random.integers(0, 256, (32, 32, 3, count)).astype(np.uint8)
        y = (np.arange(count) % 10 + 1).astype(np.uint8).reshape(-1, 1)
        arrays[part] = x, y
        file = tmp_path / f"{part}.mat"
        scipy.io.savemat(file, {"X": x, "y": y})
        splits[part] = [file.as_uri(), f"{part}_32x32.mat", hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", splits)
    return arrays


def test_house_numbers_are_those_of_the_files(svhn, tmp_path):
    dataset = load_dataset("svhn", tmp_path / "data")
    for split, part in ((dataset.train, "train"), (dataset.test, "test")):
        x, y = svhn[part]
        assert np.array_equal(split.images.numpy(), x.transpose(3, 2, 0, 1))
        assert split.labels.tolist() == [label % 10 for label in y[:, 0]]
    assert dataset.augment == Augmentation(4, flip=False)
    assert dataset.classes == tuple("0123456789")
    assert load_dataset("svhn", tmp_path / "data", img_size=16).input_size == (3, 16, 16)
    file = tmp_path / "data" / "test_32x32.mat"
    file.write_bytes(b"cut")
    with pytest.raises(CodeqError, match=r"test_32x32\.mat is incomplete or damaged"):
        load_dataset("svhn", tmp_path / "data")
