"""Data sets of the Hub and of torchvision load by name, and so do encoders of timm."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import VisionDataset

from fpe_lightning.data import load_images
from fpe_lightning.data.encoder import load_encoder


class Squares(VisionDataset):
    """Grey squares in torchvision's form."""

    classes = ("dark", "light")

    def __init__(self, root: Any, train: bool = True, download: bool = False) -> None:
        super().__init__(root)
        if not download and not (Path(root) / "squares").exists():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.targets = [n % 2 for n in range(40 if train else 10)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.full((8, 8, 3), 40 + 160 * self.targets[index] + index, np.uint8)), self.targets[
            index
        ]


NAME = f"{Squares.__module__}.Squares"


def test_a_class_by_its_dotted_name(tmp_path: Path) -> None:
    splits = load_images(NAME, tmp_path, download=True)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [36, 4, 10]
    assert tuple(splits.train.classes) == ("dark", "light")
    assert splits.train[0][1] == 0
    fingerprints = {part.fingerprint for part in (splits.train, splits.val, splits.test)}
    assert len(fingerprints) == 3
    assert splits.test.fingerprint == load_images(NAME, tmp_path, download=True).test.fingerprint


def test_what_is_missing_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Set `download: true`, or put its files there\."):
        load_images(NAME, tmp_path)
    with pytest.raises(ValueError, match=r"There is no data set `torchvision\.datasets\.MNITS`"):
        load_images("torchvision.datasets.MNITS", tmp_path)


class Kind:
    """A kind of column, as the library of the Hub has them."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names


class ClassLabel(Kind):
    """A column of class numbers."""


class Rows(list[dict[str, Any]]):
    """A table as the library of the Hub gives it: rows by number, columns by name."""

    features: ClassVar = {"picture": Kind(), "kind": ClassLabel(("dark", "light"))}

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squares = Squares(tmp_path, download=True)
    rows = Rows({"picture": squares[n][0], "kind": squares[n][1]} for n in range(40))
    library = SimpleNamespace(
        Image=Kind, ClassLabel=ClassLabel, load_dataset=lambda name: {"train": rows, "validation": Rows(rows[:10])}
    )
    monkeypatch.setitem(sys.modules, "datasets", library)  # type: ignore[arg-type]
    splits = load_images("hf:some/squares")
    # The only held-out part is the test set, and validation is held out of the rest.
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [36, 4, 10]
    assert tuple(splits.train.classes) == ("dark", "light")
    assert splits.test[3][1] == 1
    monkeypatch.setattr(Rows, "features", {"text": Kind()})
    with pytest.raises(ValueError, match="needs a column of pictures and one of class labels; it has text"):
        load_images("hf:some/squares")


def test_an_encoder_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    encoder = load_encoder("timm:test_vit", str(tmp_path / "weights.pth"))
    x = torch.stack([encoder.preprocess(Image.new("RGB", (40, 40), colour)) for colour in ("red", "blue")])
    embedded = encoder.encode(x)
    assert embedded.shape == (2, encoder.dim)
    torch.testing.assert_close(embedded, torch.nn.functional.normalize(model.eval()(x), dim=-1))
    with pytest.raises(ValueError, match="embeds pictures only"):
        encoder.encode_text(["red"])


def test_an_unknown_encoder_of_timm_is_one_sentence() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"timm has no model 'tset_vit'\. Did you mean timm:test_vit"):
        load_encoder("timm:tset_vit")
    with pytest.raises(ValueError, match="is a file of weights, or left out; found 'lion'"):
        load_encoder("timm:test_vit", "lion")
