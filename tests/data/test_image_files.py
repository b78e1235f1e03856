"""Trees of image files: what counts as an image of a class, and what is refused by name."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codeq.common.errors import CodeqError
from codeq.data import load_dataset
from codeq.data.image_files import find_images

pytestmark = pytest.mark.usefixtures("without_figures")


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)
    return path


def flat(root: Path) -> Path:
    """Eight images of two classes."""
    for value in range(8):
        picture(root / "pets" / ("cat" if value < 4 else "dog") / f"{value}.png", value)
    return root / "pets"


def counts(root: Path) -> list[dict[str, int]]:
    return [{name: len(paths) for name, paths in split.items()} for split in find_images(root)]


def names(root: Path) -> list[list[str]]:
    return [sorted(os.path.relpath(path, root) for of in split.values() for path in of) for split in find_images(root)]


@pytest.mark.parametrize("link", ["cat/loop", "cat/deep/er/loop", "loop", "cat/loop.png"])
@pytest.mark.parametrize("target", ["here", "root", "above"])
def test_links_to_a_folder_around_them_add_nothing(tmp_path, link, target):
    root = flat(tmp_path)
    before, place = names(root), root / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to({"here": place.parent, "root": root, "above": tmp_path}[target])
    assert names(root) == before
    assert len(load_dataset("imagefolder", data_dir=root).train) == 6


def test_several_links_to_one_image_or_folder_of_a_class_count_once(tmp_path):
    root = flat(tmp_path)
    (root / "cat" / "deep").mkdir()
    picture(root / "cat" / "deep" / "8.png")
    before = names(root)
    (root / "cat" / "0 again.png").symlink_to(root / "cat" / "0.png")
    (root / "cat" / "again").symlink_to(root / "cat" / "deep")
    (root / "cat" / "and again").symlink_to(root / "cat" / "again")
    assert names(root) == before


def test_images_behind_links_are_read(tmp_path):
    root = flat(tmp_path)
    picture(tmp_path / "store" / "more" / "9.png")
    (root / "dog" / "more").symlink_to(tmp_path / "store" / "more")
    (root / "cow").symlink_to(tmp_path / "store")
    (root / "dog" / "more").unlink()
    (root / "cow" / "10.png").symlink_to(picture(tmp_path / "elsewhere" / "10.png"))
    assert counts(root)[0].keys() == {"cat", "cow", "dog"}
    assert sum(split["cow"] for split in counts(root)) == 2


def test_one_image_in_two_classes_or_splits_is_refused(tmp_path):
    root = flat(tmp_path)
    (root / "dog" / "0.png").symlink_to(root / "cat" / "0.png")
    with pytest.raises(CodeqError, match=r"dog/0\.png and .*cat/0\.png are one file in two classes or splits"):
        find_images(root)
    (root / "dog" / "0.png").unlink()
    (root / "kitten").symlink_to(root / "cat")
    with pytest.raises(CodeqError, match=r"kitten/0\.png and .*cat/0\.png are one file"):
        find_images(root)
    (root / "kitten").unlink()
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "train").symlink_to(root)
    (splits / "val").symlink_to(root)
    with pytest.raises(CodeqError, match=r"val/cat/0\.png and .*train/cat/0\.png are one file in two classes or split"):
        find_images(splits)


@pytest.mark.parametrize("train", ["train", "Train", "TRAIN", "Training"])
@pytest.mark.parametrize("test", ["Test", "VAL", "Valid", "Validation", "testing"])
def test_splits_are_found_in_capitals_too(tmp_path, train, test):
    for value in range(4):
        picture(tmp_path / (train if value < 2 else test) / ("cat" if value % 2 else "dog") / f"{value}.png")
    assert names(tmp_path) == [[f"{train}/cat/1.png", f"{train}/dog/0.png"], [f"{test}/cat/3.png", f"{test}/dog/2.png"]]


def test_two_folders_that_differ_only_in_capitals_are_refused(tmp_path):
    for value, split in enumerate(("train", "Train", "val")):
        for name in ("cat", "dog"):
            picture(tmp_path / split / name / f"{value}.png")
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system does not tell capitals apart")
    with pytest.raises(CodeqError, match=r"has both (Train/ and train|train/ and Train)/: remove one"):
        find_images(tmp_path)


def test_a_split_without_its_counterpart_is_refused_in_capitals_too(tmp_path):
    for name in ("cat", "dog"):
        picture(tmp_path / "Val" / name / "0.png")
        picture(tmp_path / "rest" / name / "0.png")
    with pytest.raises(CodeqError, match=r"has Val/ but no train/"):
        find_images(tmp_path)
    (tmp_path / "Val").rename(tmp_path / "Train")
    with pytest.raises(CodeqError, match=r"has Train/ but no test split"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    "hidden",
    [
        "cat/.ipynb_checkpoints/0-checkpoint.png",
        "cat/deep/.trash/0.png",
        "cat/._0.png",
        "cat/.0.png",
        ".cache/0.png",
        "__MACOSX/cat/0.png",
        "cat/__MACOSX/0.png",
        "cat/@eaDir/0.png",
    ],
)
def test_hidden_files_and_the_systems_folders_are_skipped(tmp_path, hidden):
    root = flat(tmp_path)
    before = names(root)
    picture(root / hidden)
    (root / "lost+found").mkdir()
    assert names(root) == before


def test_endings_count_in_capitals_and_files_of_other_kinds_are_listed(tmp_path, caplog):
    root = flat(tmp_path)
    (root / "cat" / "0.png").rename(root / "cat" / "0.PNG")
    picture(root / "cat" / "9.JPeG")
    (root / "dog" / "notes.txt").write_text("no image")
    (root / "dog" / "animation.gif").write_bytes(b"GIF89a")
    with caplog.at_level(logging.WARNING):
        assert [sum(split.values()) for split in counts(root)] == [7, 2]
    (message,) = [record.getMessage() for record in caplog.records]
    assert "2 files are not read" in message
    assert message.endswith("dog/animation.gif")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "cat" / "8.png").write_bytes(b""), r"cat/8\.png cannot be read as an image"),
        (lambda root: (root / "cat" / "8.png").symlink_to(root / "none.png"), r"8\.png is a link to .*none\.png: no"),
        (lambda root: (root / "cat" / "8.png").symlink_to("8.png"), r"8\.png is a link to 8\.png: no such file"),
        (lambda root: (root / "cow" / "deep").mkdir(parents=True), r"class folder .*cow holds no images"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, break_it, message):
    root = flat(tmp_path)
    break_it(root)
    with pytest.raises(CodeqError, match=message):
        load_dataset("imagefolder", data_dir=root)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    root, scandir = flat(tmp_path), os.scandir
    (root / "cat" / "locked").mkdir()

    def refuse(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CodeqError, match=r"folder .*cat/locked cannot be read: Permission denied"):
        find_images(root)


def test_a_pipe_is_no_image(tmp_path):
    root = flat(tmp_path)
    os.mkfifo(root / "cat" / "pipe.png")
    assert sum(sum(split.values()) for split in counts(root)) == 8


def test_names_that_are_not_utf8_are_read_and_can_be_printed(tmp_path):
    root = flat(tmp_path)
    strange = os.fsdecode(b"caf\xe9")
    try:
        picture(root / strange / "0.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    picture(root / strange / f"{strange}.png")
    dataset = load_dataset("imagefolder", data_dir=root)
    assert dataset.classes == ("caf\ufffd", "cat", "dog")
    for name in (f"{strange}.png", "0.png"):
        (root / strange / name).write_bytes(b"no image")
    streamed = load_dataset("imagefolder", data_dir=root, img_size=100, workers=0)
    for read in (lambda: load_dataset("imagefolder", data_dir=root), lambda: list(streamed.test_batches())):
        with pytest.raises(CodeqError, match="cannot be read as an image") as error:
            read()
        str(error.value).encode()


def test_a_long_list_of_differing_classes_is_cut(tmp_path):
    for i in range(200):
        picture(tmp_path / "train" / f"class{i}" / "0.png")
    for name in ("a", "b"):
        picture(tmp_path / "test" / name / "0.png")
    with pytest.raises(CodeqError, match="'class0' is only in train") as error:
        find_images(tmp_path)
    assert len(str(error.value)) < 400 + len(str(tmp_path))
