import numpy as np
import pandas as pd
import pytest
import torch
from cases import each
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from codeq import DATASETS
from codeq.common.errors import CodeqError
from codeq.data import Augmentation, known_num_classes, load_dataset, register_dataset


@pytest.fixture(autouse=True)
def name():
    yield "mine"
    DATASETS.pop("mine", None)


LABELS = np.arange(20) % 2
GREY = (np.arange(20)[:, None, None] * 10 + np.arange(12).reshape(3, 4)).astype(np.uint8)  # [20, 3, 4]


class Items:
    """The least that a data set of torch has."""

    def __init__(self, images, labels=LABELS):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def loaded(train, test=None, img_size=None, **options):
    register_dataset("mine", train, test, **options)
    return load_dataset("mine", img_size=img_size)


def pixels(dataset) -> set[tuple[int, ...]]:
    """All images of a data set, of both splits."""
    return {tuple(image.flatten().tolist()) for split in (dataset.train, dataset.test) for image in split.images}


COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], 3)  # [20, 3, 4, 3]


@each(
    "given",
    [
        (COLOUR, LABELS),
        (torch.tensor(COLOUR).permute(0, 3, 1, 2), torch.tensor(LABELS)),
        (COLOUR / 255, LABELS.tolist()),
        ((COLOUR / 255).astype(np.float32), LABELS),
        ((COLOUR / 255).astype(">f8"), LABELS),
        Items(COLOUR),
        Items([Image.fromarray(image) for image in COLOUR]),
        TensorDataset(torch.tensor(COLOUR).permute(0, 3, 1, 2) / 255, torch.tensor(LABELS)),
    ],
)
def test_every_form_gives_the_same_images(given):
    dataset = loaded(given)
    assert dataset.input_size == (3, 3, 4)
    assert pixels(dataset) == {tuple(image.transpose(2, 0, 1).flatten().tolist()) for image in COLOUR}
    for split in (dataset.train, dataset.test):
        for image, label in zip(split.images, split.labels, strict=True):
            assert int(image[0, 0, 0]) // 10 % 2 == label


def test_floats_that_rounding_took_out_of_range_are_the_nearest_pixels():
    images = (COLOUR / 255).astype(np.float32)
    images[0, 0, 0], images[1, 0, 0] = 1.0000001, -1e-9
    assert pixels(loaded((images, LABELS))) == pixels(loaded((images.clip(0, 1), LABELS)))
    for wrong, shown in ((1.002, r"\S+ … 1\.002"), (-0.002, r"-0\.002 … \S+")):
        images[2, 0, 0] = wrong
        with pytest.raises(CodeqError, match=f"image 2 has .*values {shown}: must be"):
            loaded((images, LABELS))


def test_a_fifth_of_each_class_becomes_the_test_images():
    dataset = loaded((GREY, LABELS))
    assert dataset.train.labels.bincount().tolist() == [8, 8]
    assert dataset.test.labels.bincount().tolist() == [2, 2]
    assert len(pixels(dataset)) == 20


def test_given_test_images_are_kept_and_the_statistics_are_those_of_training():
    dark, light = np.zeros((4, 2, 2), np.uint8), np.full((6, 2, 2), 255, np.uint8)
    dataset = loaded((dark, [0, 1, 2, 2]), (light, [0, 1, 2, 0, 1, 2]))
    assert (len(dataset.train), len(dataset.test), dataset.classes) == (4, 6, ("0", "1", "2"))
    assert dataset.mean.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("images", "size"),
    [(GREY, (3, 3, 4)), (COLOUR[..., :1], (1, 3, 4)), (np.concatenate([COLOUR, COLOUR[..., :1]], 3), (4, 3, 4))],
)
def test_grey_images_without_an_axis_of_channels_are_repeated_on_three(images, size):
    assert loaded((images, LABELS)).input_size == size


def test_an_image_size_takes_the_central_square():
    image = np.zeros((2, 4, 8), np.uint8)
    image[:, :, 2:6] = 200
    dataset = loaded((image, [0, 1]), (image, [0, 1]), img_size=4)
    assert dataset.input_size == (3, 4, 4)
    assert dataset.train.images.unique().tolist() == [200]
    assert load_dataset("mine", img_size=2).input_size == (3, 2, 2)


def test_images_of_several_sizes_need_an_image_size():
    images = [np.full((3 + i % 2, 5), 9, np.uint8) for i in range(20)]
    assert loaded(Items(images), img_size=3).input_size == (3, 3, 3)
    with pytest.raises(CodeqError, match=r"image 1 has the shape \[3, 4, 5\], the first \[3, 3, 5\] .*: set img_size"):
        load_dataset("mine")


def test_classes_are_named_by_the_data_set_or_the_user():
    items = Items(GREY)
    items.classes = ["cat", "dog"]
    assert loaded(items).classes == ("cat", "dog")
    assert known_num_classes("mine") == 2
    assert loaded(items, classes=("a", "b", "c")).classes == ("a", "b", "c")
    assert loaded((GREY, LABELS)).augment == Augmentation(crop_padding=0, flip=False)
    assert known_num_classes("mine") is None
    items.classes = np.unique(["dog", "cat"])  # as of an encoder of scikit-learn
    assert loaded(items).classes == ("cat", "dog")
    assert loaded((GREY, LABELS), classes=np.array(["a", "b"])).classes == ("a", "b")
    assert known_num_classes("mine") == 2


@each(("classes", "shown"), [(2, "2"), ("cats", "'cats'")])
def test_classes_that_are_no_names_are_refused(classes, shown):
    items = Items(GREY)
    items.classes = classes
    for train, given in (((GREY, LABELS), classes), (items, None)):
        with pytest.raises(CodeqError, match=f"'mine': classes={shown}: must be the names of all classes"):
            register_dataset("mine", train, classes=given)


def test_rows_of_pandas_are_taken_by_position():
    rows = range(20)[::-1]  # as after `sample`
    labels, images = pd.Series(LABELS, rows), pd.Series(list(GREY), rows)
    pairs = pd.Series(list(zip(GREY, LABELS, strict=True)), rows)
    for given in ((GREY, labels), (images, LABELS), (images, labels.to_frame()), pairs):
        dataset = loaded(given, given)
        assert dataset.train.labels.tolist() == LABELS.tolist()
        assert torch.equal(dataset.train.images[:, 0], torch.tensor(GREY))


def test_images_are_read_once_for_each_size():
    reads = []

    class Counting(Items):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    loaded(Counting(GREY), img_size=3)
    load_dataset("mine", img_size=3)
    assert reads == list(range(20))


@each(
    ("given", "message"),
    [
        ((GREY, LABELS[:5]), "dataset 'mine' has 20 images and 5 labels"),
        ((GREY[:0], LABELS[:0]), "dataset 'mine' has no images"),
        ((GREY * 1.0, LABELS), r"image 0 has torch\.float64 values 0 … 11: must be uint8 0 … 255 or floats 0 … 1"),
        ((GREY / 255 - 0.5, LABELS), r"values -0\.5 … -0\.4"),
        ((GREY * np.nan, LABELS), "image 0 has 36 of 36 values that are NaN or infinite$"),
        ((np.where(GREY == 3, np.inf, GREY / 255), LABELS), "image 0 has 3 of 36 values that are NaN or infinite$"),
        ((GREY, 2 * LABELS), "dataset 'mine' has labels up to 2, but no image of class 1: number .* by classes=$"),
        ((GREY, LABELS + 1), "no image of class 0"),
        ((GREY, np.where(LABELS, 10**15, 0)), "labels up to 1000000000000000, but no image of class 1"),
        ((GREY.astype(int), LABELS), r"torch\.int64 values 0 … 11"),
        ((GREY.astype(">u2"), LABELS), r"torch\.uint16 values 0 … 11"),
        ((GREY.astype(object), LABELS), r"image 0 is a ndarray of object: must be an array, a tensor or a PIL image"),
        (Items([Image.fromarray(image.astype(np.uint16)) for image in GREY]), "image 0 has pixels of mode I;16: give"),
        (Items([Image.fromarray(np.float32(image / 255)) for image in GREY]), "image 0 has pixels of mode F: give"),
        ((GREY[..., 0], LABELS), r"image 0 has the shape \[3\]: must be \[H, W\]"),
        ((COLOUR.transpose(0, 2, 1, 3).repeat(3, 3), LABELS), r"shape \[4, 3, 9\]: must be"),
        ((GREY, -LABELS), r"image 1 has the label -1: must be the number of a class"),
        ((GREY, LABELS * 1.0), r"image 0 has the label 0\.0"),
        ((GREY, ["cat"] * 20), "image 0 has the label 'cat'"),
        (list(GREY), r"(?s)image 0 is .*: must be \(image, label\)"),
        (
            (GREY, [0] * 19 + [1]),
            "20% of its 20 images cannot .* in both parts: class 1 has a single image$",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given, message):
    with pytest.raises(CodeqError, match=message):
        loaded(given)


class Stream(IterableDataset):
    """A stream with a length; the inherited `__getitem__` of torch only raises."""

    def __len__(self):
        return 20

    def __iter__(self):
        return iter(zip(GREY, LABELS, strict=True))


class Broken(Items):
    def __getitem__(self, index):
        if index == 3:
            raise FileNotFoundError(2, "No such file or directory", "3.png")
        return super().__getitem__(index)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(CodeqError, match=r"image 3 cannot be read: FileNotFoundError: .*3\.png"):
        loaded(Broken(GREY))
    with pytest.raises(CodeqError, match="image 19 cannot be read: IndexError: "):
        loaded(Items(GREY[:19]))
    Image.fromarray(GREY[0]).resize((64, 64)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CodeqError, match="image 0 cannot be read: OSError: "), Image.open(tmp_path / "cut.png") as cut:
        loaded(Items([cut] * 20))  # pixels are decoded when they are used


@each("given", [iter([]), 3, None, (GREY, 3), {"train": Items(GREY)}, "images", Stream()])
def test_what_is_no_data_set_is_refused_where_it_is_registered(given):
    with pytest.raises(CodeqError, match="dataset 'mine': train is a"):
        register_dataset("mine", given)
    assert "mine" not in DATASETS


@each("given", [[GREY, LABELS], [torch.tensor(GREY), torch.tensor(LABELS)], [GREY.tolist(), LABELS.tolist()]])
def test_a_list_in_place_of_the_tuple_is_refused_as_one(given):
    for what, arguments in {"train": [given], "test": [(GREY, LABELS), given]}.items():
        with pytest.raises(CodeqError, match=rf"{what} is a list of two: must be the tuple \(images, labels\)$"):
            register_dataset("mine", *arguments)


def test_a_list_of_two_pairs_is_a_data_set_and_items_without_a_label_are_named_by_their_shape():
    pairs = [(GREY[0], 0), (GREY[1], 1)]
    assert loaded(pairs, pairs).test.labels.tolist() == [0, 1]
    with pytest.raises(CodeqError, match=r"image 0 is a ndarray of shape \[3, 4\]: must be \(image, label\)$"):
        loaded(GREY)


def test_test_labels_that_no_training_image_has_are_refused_unless_the_classes_are_named():
    with pytest.raises(CodeqError, match=r"'mine': no training image is of class 2, but test images are: .* classes=$"):
        loaded((GREY, LABELS), (GREY, LABELS + 1))
    dataset = loaded((GREY, LABELS), (GREY, LABELS + 1), classes=("a", "b", "c"))
    assert dataset.num_classes == 3
    assert loaded((GREY, LABELS), (GREY[:5], LABELS[:5] * 0)).num_classes == 2


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(CodeqError, match="label 1 is none of its 1 classes"):
        loaded((GREY, LABELS), classes=("only",))


def test_augmentation_of_another_type_is_refused_where_it_is_registered():
    with pytest.raises(CodeqError, match=r"'mine': augment is a dict, must be a codeq\.data\.Augmentation"):
        register_dataset("mine", (GREY, LABELS), augment={"flip": True})
