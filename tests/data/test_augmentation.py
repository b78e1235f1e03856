"""RandAugment and cutout: against torchvision's operations and a painted square, however an epoch is read."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from codeq.common.errors import CodeqError
from codeq.data import Augmentation, Dataset, FileSplit, Split, StreamedDataset, load_dataset
from codeq.data.augmentation import draw_epoch
from codeq.data.images import cut_out
from codeq.data.randaugment import CHOICES, OPERATIONS, randaugment

IMAGES = torch.randint(256, (3, 3, 12, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
# Names of torchvision's operations in the order of ours.
THEIRS = [
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
]  # fmt: skip


def torchvisions(name: str, magnitude: int, negative: bool, monkeypatch) -> torch.Tensor:
    """Images as `v2.RandAugment` changes them when it draws the operation `name` with this sign."""
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.0 if negative else 1.0))
    transform = v2.RandAugment(num_ops=1, magnitude=magnitude)
    monkeypatch.setattr(transform, "_AUGMENTATION_SPACE", {name: v2.RandAugment._AUGMENTATION_SPACE[name]})
    return torch.stack([transform(image) for image in IMAGES])


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("magnitude", [0, 9, 17, 30])
@pytest.mark.parametrize("kind", range(len(THEIRS)))
def test_every_operation_is_that_of_torchvision(kind, magnitude, negative, monkeypatch):
    choices = torch.full((1, 3), kind + negative * len(THEIRS))
    found = randaugment(IMAGES, choices, magnitude)
    torch.testing.assert_close(found, torchvisions(THEIRS[kind], magnitude, negative, monkeypatch), rtol=0, atol=1)


def test_every_image_gets_its_operations_in_their_order():
    bright, solar = list(OPERATIONS).index("brightness"), list(OPERATIONS).index("solarize")
    grey = torch.full((2, 3, 2, 2), 100, dtype=torch.uint8)
    found = randaugment(grey, torch.tensor([[bright, solar], [solar, bright]]), 20)
    # Magnitude 20: brightness · 1.6; solarize inverts what is at least 255 · (1 - 2/3) = 85.
    assert found[:, 0, 0, 0].tolist() == [255 - 160, int((255 - 100) * 1.6)]
    assert len(OPERATIONS) == len(THEIRS) == CHOICES / 2 == len(v2.RandAugment._AUGMENTATION_SPACE)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_cutout_paints_a_square_that_the_border_cuts_off(side):
    centres = [(0, 0), (3, 2), (5, 6)]
    images = torch.ones(3, 2, 6, 7)
    cut_out(images, *torch.tensor(centres).T, side)
    for image, (row, column) in zip(images, centres, strict=True):
        expected = np.ones((2, 6, 7))
        top, left = row - side // 2, column - side // 2
        expected[:, max(top, 0) : top + side, max(left, 0) : left + side] = 0
        assert image.numpy().tolist() == expected.tolist()


def augmented(**settings) -> Dataset:
    return load_dataset("synthetic").augmented(**({"cutout": 0, "randaugment": 0, "magnitude": 9} | settings))


def batches(dataset, **where):
    return [x for x, _ in dataset.train_batches(100, seed=3, epoch=1, **where)]


def test_an_epoch_is_the_same_when_it_is_resumed_or_shared():
    dataset = augmented(cutout=8, randaugment=2)
    whole = batches(dataset)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], batches(dataset, start=3), strict=True))
    parts = [batches(dataset, rank=rank, world=2) for rank in (0, 1)]
    assert all(torch.equal(x, torch.cat(pair)) for x, *pair in zip(whole, *parts, strict=True))
    assert not torch.equal(whole[0], next(dataset.train_batches(100, seed=3, epoch=2))[0])


def test_what_is_augmented_is_cropped_and_mirrored_as_before():
    """Recomputed from the drawn numbers, in the stated order: crop, mirror, operations, normalization, square."""
    plain, dataset = load_dataset("synthetic"), augmented(cutout=8, randaugment=1, magnitude=12)
    plan = draw_epoch(512, dataset.augment, (32, 32), seed=3, epoch=1)
    assert torch.equal(plan[:4], draw_epoch(512, plain.augment, (32, 32), seed=3, epoch=1))
    before = (batches(plain)[0] * plain.std.view(-1, 1, 1) + plain.mean.view(-1, 1, 1)).mul(255).round().byte()
    kinds = plan[6, :100]
    for k, image in enumerate(batches(dataset)[0]):
        choice = torch.full((1, 1), int(kinds[k]))
        changed = randaugment(before[k : k + 1], choice, 12)[0] / 255
        expected = (changed - plain.mean.view(-1, 1, 1)) / plain.std.view(-1, 1, 1)
        row, column = (int(plan[n, k]) for n in (4, 5))
        expected[:, max(row - 4, 0) : row + 4, max(column - 4, 0) : column + 4] = 0
        torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-4)


def test_centres_and_operations_are_uniform():
    plan = draw_epoch(56_000, Augmentation(cutout=8, randaugment=2), (32, 24), seed=0, epoch=0)
    for row, count in ((4, 32), (5, 24), (6, 28), (7, 28)):
        found = plan[row].bincount()
        assert len(found) == count
        assert found.float().std() < 4 * (56_000 / count) ** 0.5 / 2  # that of independent draws is about √(n/count)
    assert (plan[6] == plan[7]).float().mean() < 2 / 28


def test_what_cannot_be_augmented_is_refused():
    with pytest.raises(CodeqError, match="cutout=33: images of dataset 'synthetic' have 32×32 pixels"):
        augmented(cutout=33)
    split = Split(torch.zeros(4, 4, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(CodeqError, match="randaugment=2: images of dataset 'four' have 4 channels"):
        Dataset.from_splits("four", ("a", "b"), split, split).augmented(cutout=0, randaugment=2, magnitude=9)
    files = FileSplit.of(["a/0.png", "b/0.png"], torch.tensor([0, 1]))
    pets = StreamedDataset.from_files("pets", ("a", "b"), files, files, img_size=224)
    with pytest.raises(CodeqError, match=r"cutout=8.*: dataset 'pets' has no further augmentation"):
        pets.augmented(cutout=8, randaugment=0, magnitude=9)


def test_augmentation_of_the_data_set_itself_stays_beside_further_kinds():
    split = Split(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    own = Dataset.from_splits("own", ("a", "b"), split, split, Augmentation(randaugment=2, magnitude=5, flip=False))
    assert own.augmented(cutout=3, randaugment=0, magnitude=9).augment == replace(own.augment, cutout=3)
    further = own.augmented(cutout=0, randaugment=1, magnitude=9).augment
    assert further == replace(own.augment, randaugment=1, magnitude=9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_padding": -1}, "crop_padding=-1: must be an integer of at least 0"),
        ({"magnitude": 31}, "magnitude=31: must be at most 30"),
        ({"flip": 1}, "flip=1: must be true or false"),
        ({"cutout": 9}, "cutout=9: images of dataset 'own' have 8×8 pixels"),
        ({"randaugment": 1}, "randaugment=1: images of dataset 'own' have 2 channels"),
    ],
)
def test_illegal_augmentation_of_a_data_set_itself_is_refused(settings, message):
    split = Split(torch.zeros(2, 2, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(CodeqError, match=message):
        Dataset.from_splits("own", ("a", "b"), split, split, Augmentation(**settings))
