import pytest
import torch

from codeq.common.errors import CodeqError
from codeq.data import Augmentation, Dataset, FileSplit, Split, StreamedDataset, hold_out
from codeq.data.validation import training_part

# 40, 20 and 10 images of three classes, in a mixed order; each image has its index as its pixels.
LABELS = torch.tensor([0, 0, 1, 0, 2, 0, 1] * 10)


def indexed(labels=LABELS) -> Dataset:
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    split = Split(images, labels)
    return Dataset.from_splits("indexed", ("a", "b", "c"), split, split, Augmentation(0, flip=False))


def files() -> StreamedDataset:
    split = FileSplit.of([f"{index}.png" for index in range(len(LABELS))], LABELS)
    return StreamedDataset.from_files("files", ("a", "b", "c"), split, split, img_size=8)


def indices(split) -> list[int]:
    if isinstance(split, FileSplit):
        return [int(path.removesuffix(b".png")) for path in split.paths]
    return split.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("dataset", [indexed(), files()], ids=["in memory", "streamed"])
def test_the_parts_are_disjoint_complete_and_stratified(dataset):
    train, validation = hold_out(dataset, 0.1, seed=3)
    left, held = indices(train.train), indices(validation.test)
    assert sorted(left + held) == list(range(70))
    assert LABELS[held].bincount().tolist() == [4, 2, 1]
    assert train.train.labels.bincount().tolist() == [36, 18, 9]
    assert torch.equal(train.train.labels, LABELS[left])
    assert torch.equal(validation.test.labels, LABELS[held])
    assert train.test is dataset.test
    assert held == sorted(held)
    assert type(validation) is type(dataset)
    assert torch.equal(validation.mean, dataset.mean)


@pytest.mark.parametrize("seed", [0, 2**32 + 1, 2**64 - 1])
def test_the_split_is_a_function_of_the_seed_alone(seed):
    torch.manual_seed(0)
    first = indices(hold_out(indexed(), 0.2, seed)[1].test)
    torch.manual_seed(1)
    assert indices(hold_out(indexed(), 0.2, seed)[1].test) == first
    assert indices(hold_out(indexed(), 0.2, seed - 1 if seed else 1)[1].test) != first


@pytest.mark.parametrize(
    ("labels", "fraction"),
    [(torch.tensor([0, 1, 2] * 3), 0.1), (torch.tensor([0, 1, 2] * 3), 0.95), (torch.tensor([0] * 50 + [1]), 0.5)],
)
def test_a_split_that_cannot_hold_every_class_is_refused(labels, fraction):
    with pytest.raises(
        CodeqError, match=f"validation={fraction}: the {len(labels)} training images of dataset 'indexed'"
    ):
        hold_out(indexed(labels), fraction, seed=0)


def test_the_reason_of_an_impossible_split_is_told_in_terms_of_classes():
    for labels, fraction, reason in (
        (torch.tensor([0] * 50 + [1]), 0.5, "class 1 has a single image"),
        (torch.tensor([0, 1, 2] * 3), 0.1, "3 classes need more than 8 and 1 images"),
    ):
        with pytest.raises(CodeqError, match=f"cannot be split with every class in both parts: {reason}$"):
            hold_out(indexed(labels), fraction, seed=0)


@pytest.mark.parametrize("fraction", [10, 1, True, 0, 1.5, float("nan"), "0.1"])
def test_a_fraction_that_is_none_is_refused(fraction):
    for split in (hold_out, training_part)[: 2 if fraction else 1]:  # 0 sets nothing aside
        with pytest.raises(CodeqError, match=f"fraction={fraction!r}: must be a number above 0 and below 1"):
            split(indexed(), fraction, seed=0)
