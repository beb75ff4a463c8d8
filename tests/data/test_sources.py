"""Every data set gives three disjoint parts; what is missing or misnamed is said in one sentence."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from fpe_lightning.data.sources import ImageSplit, load_images

WriteFolder = Callable[..., Path]


def test_fashion_mnist_holds_out_a_stratified_part_of_train(fashion_mnist: Path) -> None:
    splits = load_images("fashion_mnist", fashion_mnist, val_fraction=0.5)
    train, val, test = splits.train, splits.val, splits.test
    assert isinstance(train, ImageSplit)
    assert isinstance(val, ImageSplit)
    assert (len(train), len(val), len(test)) == (30, 30, 20)
    assert sorted(train.indices.tolist() + val.indices.tolist()) == list(range(60))
    assert sorted(label for _, label in (val[i] for i in range(30))) == sorted(list(range(10)) * 3)
    assert train.classes[9] == "Ankle boot"
    image, _ = test[0]
    assert np.array_equal(np.array(image), datasets.FashionMNIST(fashion_mnist, train=False).data[0])


def test_the_same_seed_holds_out_the_same_pictures(fashion_mnist: Path) -> None:
    first, again, other = (load_images("fashion_mnist", fashion_mnist, split_seed=seed).val for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_fingerprint_follows_the_pictures_and_not_their_place(fashion_mnist: Path, tmp_path: Path) -> None:
    before = load_images("fashion_mnist", fashion_mnist)
    shutil.copytree(fashion_mnist, tmp_path / "elsewhere")
    moved = load_images("fashion_mnist", tmp_path / "elsewhere")
    assert [before.train.fingerprint, before.test.fingerprint] == [moved.train.fingerprint, moved.test.fingerprint]
    assert len({before.train.fingerprint, before.val.fingerprint, before.test.fingerprint}) == 3

    labels = tmp_path / "elsewhere/FashionMNIST/raw/t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x00")
    changed = load_images("fashion_mnist", tmp_path / "elsewhere")
    assert changed.test.fingerprint != before.test.fingerprint
    assert changed.train.fingerprint == before.train.fingerprint


def test_image_folder_without_test_reports_on_val(image_folder: Path) -> None:
    splits = load_images("image_folder", image_folder, val_fraction=0.2)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [12, 3, 15]
    assert splits.test.classes == ("ant", "bee", "cat")
    assert splits.test[0][0].getpixel((0, 0))[2] == len("val")
    assert splits.val[0][0].getpixel((0, 0))[2] == len("train")
    assert sorted(splits.val[i][1] for i in range(3)) == [0, 1, 2]


def test_image_folder_with_test_uses_all_three(write_image_folder: WriteFolder, tmp_path: Path) -> None:
    splits = load_images("image_folder", write_image_folder(tmp_path, ("train", "val", "test")))
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [15, 15, 15]


def test_a_picture_of_equal_size_is_another_picture(image_folder: Path) -> None:
    one, other = image_folder / "val/bee/0.png", image_folder / "val/bee/1.png"
    before = load_images("image_folder", image_folder).test.fingerprint
    assert one.stat().st_size == other.stat().st_size
    shutil.copyfile(other, one)
    assert load_images("image_folder", image_folder).test.fingerprint != before


def test_labels_are_part_of_the_fingerprint(image_folder: Path) -> None:
    before = load_images("image_folder", image_folder).train.fingerprint
    (image_folder / "train/bee/0.png").rename(image_folder / "train/ant/9.png")
    (image_folder / "train/ant/0.png").rename(image_folder / "train/bee/0.png")
    assert load_images("image_folder", image_folder).train.fingerprint != before


BROKEN = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere.png")),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_picture_that_cannot_be_read_is_named_or_left_out(
    kind: str, image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = image_folder / "val/bee/2.png"
    BROKEN[kind](path)
    splits = load_images("image_folder", image_folder)
    with pytest.raises(ValueError, match=rf"The picture {path} cannot be read \(.*`skip_unreadable=True`"):
        [splits.test[n] for n in range(len(splits.test))]
    assert splits.test.fingerprint
    kept = load_images("image_folder", image_folder, skip_unreadable=True).test
    assert len([kept[n] for n in range(len(kept))]) == len(kept) == 14
    assert f"1 of 15 pictures of image_folder/test cannot be read and are left out: {path}." in caplog.text


def test_image_folder_fingerprint_follows_names_and_sizes(image_folder: Path, tmp_path: Path) -> None:
    before = load_images("image_folder", image_folder).test.fingerprint
    shutil.copytree(image_folder, tmp_path / "copy")
    assert load_images("image_folder", tmp_path / "copy").test.fingerprint == before
    (tmp_path / "copy/val/bee/0.png").rename(tmp_path / "copy/val/bee/zero.png")
    assert load_images("image_folder", tmp_path / "copy").test.fingerprint != before


def test_a_misspelt_name_gets_the_nearest_right_one() -> None:
    with pytest.raises(
        ValueError, match=r"Unknown data set 'FashionMNIST'\. Did you mean 'fashion_mnist'\? Known: cifar10, "
    ):
        load_images("FashionMNIST")


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100"])
def test_missing_files_are_named_with_their_place(name: str, tmp_path: Path) -> None:
    folder = {"fashion_mnist": "FashionMNIST/raw", "cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
    with pytest.raises(FileNotFoundError, match=rf"was not found or is damaged; put .* into {tmp_path / folder[name]}"):
        load_images(name, tmp_path)


def test_a_damaged_file_is_reported_like_a_missing_one(fashion_mnist: Path) -> None:
    pixels = fashion_mnist / "FashionMNIST/raw/train-images-idx3-ubyte"
    pixels.write_bytes(pixels.read_bytes()[:-100])
    with pytest.raises(FileNotFoundError, match=r"FashionMNIST was not found or is damaged"):
        load_images("fashion_mnist", fashion_mnist)


def test_an_image_folder_without_classes_says_how_to_lay_it_out(
    write_image_folder: WriteFolder, tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(
        FileNotFoundError, match=rf"{tmp_path} has no train/ with class folders in it; lay the pictures"
    ):
        load_images("image_folder", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no val/ or test/ with class folders"):
        load_images("image_folder", write_image_folder(tmp_path / "other", ("train",)))


def test_an_image_folder_needs_the_same_classes_everywhere(image_folder: Path) -> None:
    (image_folder / "val/cat").rename(image_folder / "val/dog")
    with pytest.raises(ValueError, match=r"other classes in val/ than in train/ \(cat, dog\)"):
        load_images("image_folder", image_folder)


def test_an_empty_class_is_named(image_folder: Path) -> None:
    (image_folder / "train/dog").mkdir()
    with pytest.raises(FileNotFoundError, match=re.compile(r"classes without pictures \(.*dog")):
        load_images("image_folder", image_folder)


def test_val_fraction_has_to_be_a_part() -> None:
    with pytest.raises(ValueError, match=r"`val_fraction` has to be between 0 and 1, found 1"):
        load_images("glyphs", val_fraction=1)
