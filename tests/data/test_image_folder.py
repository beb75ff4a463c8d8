"""Pictures in folders: resized, cropped, shuffled by seed and epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fpe_lightning.data.image_folder import ImageFolderDataModule


def module(folder: Path, **kwargs: int | bool) -> ImageFolderDataModule:
    data = ImageFolderDataModule(folder, num_workers=0, **kwargs)  # type: ignore[arg-type]
    data.setup()
    return data


def test_pictures_are_brought_to_one_size(image_folder: Path) -> None:
    data = module(image_folder, image_size=8, batch_size=4, normalise=False)
    pixels, labels = next(iter(data.test_dataloader()))
    assert pixels.shape == (15, 3, 8, 8)
    assert torch.equal((pixels[:, 0, 0, 0] * 255).round().long(), 80 * labels)
    assert (data.dims, data.num_classes, data.class_names) == ((3, 8, 8), 3, ("ant", "bee", "cat"))
    assert len(data.val_dataloader().dataset) == 2  # type: ignore[arg-type]


def test_flattened_for_an_mlp(image_folder: Path) -> None:
    data = module(image_folder, image_size=8, flatten=True)
    assert next(iter(data.val_dataloader()))[0].shape == (2, 192)
    assert data.num_features == 192


def test_order_depends_on_seed_and_epoch(image_folder: Path) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        loader = module(image_folder, image_size=2, batch_size=20, seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return list(loader.sampler)

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(2) for epoch in range(2)}) == 4


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} has no train/ with class folders"):
        module(tmp_path)


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size", "image_size"])
def test_sizes_have_to_be_positive(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` has to be at least 1, found 0"):
        module(tmp_path, **{name: 0})
