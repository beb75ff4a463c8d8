"""Embeddings are encoded once, kept apart by what they depend on, and served as float32 batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from fpe_lightning.data import embeddings
from fpe_lightning.data.embeddings import EmbeddingDataModule
from fpe_lightning.data.sources import load_images


@pytest.fixture
def make(encoder: Any, fashion_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(embeddings, "load_encoder", lambda *_: encoder)

    def make(**kwargs: Any) -> EmbeddingDataModule:
        settings = {"dataset": "fashion_mnist", "data_dir": fashion_mnist, "cache_dir": tmp_path / "cache"}
        return EmbeddingDataModule(**{**settings, **kwargs})

    return make


def ready(data: EmbeddingDataModule) -> EmbeddingDataModule:
    data.prepare_data()
    data.setup()
    return data


def test_batches_are_the_embeddings_of_the_pictures(make: Any, encoder: Any, fashion_mnist: Path) -> None:
    data = ready(make(dtype="float32"))
    images = load_images("fashion_mnist", fashion_mnist)
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        part = getattr(images, split)
        features, labels = next(iter(loader))
        assert torch.equal(
            features, encoder.encode(torch.stack([encoder.preprocess(part[i][0]) for i in range(len(part))]))
        )
        assert labels.tolist() == [part[i][1] for i in range(len(part))]
    assert (data.num_features, data.num_classes, data.dims, data.num_outputs) == (8, 10, (8,), 10)
    assert data.class_names[9] == "Ankle boot"


def test_half_precision_is_stored_and_float32_served(make: Any) -> None:
    data = ready(make())
    assert isinstance(data.arrays["train"][0], np.memmap)
    assert data.arrays["train"][0].dtype == np.float16
    assert {features.dtype for features, _ in data.train_dataloader()} == {torch.float32}


def test_what_is_cached_is_not_encoded_again(make: Any, encoder: Any) -> None:
    ready(make())
    assert sum(encoder.encoded) == 60 + 20
    ready(make(seed=5, batch_size=7))
    assert sum(encoder.encoded) == 60 + 20


@pytest.mark.parametrize("attribute", ["digest", "preprocess_description", "name"])
def test_another_encoder_is_never_served_from_the_cache(make: Any, encoder: Any, attribute: str) -> None:
    ready(make())
    setattr(encoder, attribute, "changed")
    ready(make())
    assert sum(encoder.encoded) == 2 * 80


def test_other_pictures_are_never_served_from_the_cache(make: Any, encoder: Any, fashion_mnist: Path) -> None:
    ready(make())
    pixels = fashion_mnist / "FashionMNIST/raw/t10k-images-idx3-ubyte"
    pixels.write_bytes(pixels.read_bytes()[:-1] + b"\x07")
    ready(make())
    assert sum(encoder.encoded) == 80 + 20


def test_train_size_keeps_the_class_shares_and_the_cache(make: Any, encoder: Any) -> None:
    data = ready(make(train_size=20, batch_size=None))
    (_, labels), *_ = data.train_dataloader()
    assert labels.bincount().tolist() == [2] * 10
    ready(make())
    assert sum(encoder.encoded) == 80


def test_standardize_uses_the_training_rows(make: Any) -> None:
    data = ready(make(standardize=True, batch_size=None))
    (features, _), *_ = data.train_dataloader()
    assert torch.allclose(features.mean(0), torch.zeros(8), atol=1e-3)
    assert torch.allclose(features.std(0, correction=0), torch.ones(8), atol=1e-3)


def test_shape_and_classes_are_known_before_the_data(make: Any, encoder: Any) -> None:
    data = make()
    assert (data.num_features, data.num_classes) == (8, 10)
    assert encoder.encoded == []


def test_a_run_prepares_the_data_itself(make: Any, encoder: Any, tmp_path: Path) -> None:
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    data, model = make(), Probe(tmp_path)
    trainer.fit(model, datamodule=data)
    predictions = trainer.predict(model, datamodule=data)
    assert sum(len(batch) for batch in predictions or []) == 20
    assert sum(encoder.encoded) == 80


class Probe(L.LightningModule):
    """A linear probe that writes down which rows each process was given."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 10)
        self.folder, self.features = folder, []  # type: ignore[var-annotated]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.features.append(batch[0])
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def on_train_end(self) -> None:
        torch.save(torch.cat(self.features), self.folder / f"{self.global_rank}.pt")

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.slow
def test_of_two_processes_one_encodes_and_both_map(
    make: Any, encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_on_rank_zero(*_: Any) -> Any:
        assert torch.distributed.get_rank() == 0
        return encoder

    monkeypatch.setattr(embeddings, "load_encoder", load_on_rank_zero)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Probe(tmp_path), datamodule=make(dtype="float32", batch_size=8))
    seen = torch.cat([torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)])
    data = make(dtype="float32")
    key = embeddings.embedding_key(data._images.train, encoder, "fashion_mnist", "train", "float32")
    stored, _ = embeddings.open_cache(key.folder(data.cache_dir), key)
    assert sorted(seen.tolist()) == sorted(stored.tolist())


def test_progress_is_shown_while_encoding(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make().prepare_data()
    shown = capsys.readouterr().out
    for part in ("train", "val", "test"):
        assert f"Encoding fashion_mnist/{part} with tiny/rows" in shown


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, r"`batch_size` has to be at least 1"),
        ({"encode_batch_size": 0}, r"`encode_batch_size` has to be at least 1, found 0"),
        ({"dtype": "bfloat16"}, r"`dtype` has to be 'float16' or 'float32', found 'bfloat16'"),
    ],
)
def test_bad_arguments_are_refused_before_encoding(make: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_unknown_data_set_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"Did you mean 'fashion_mnist'"):
        make(dataset="fashionmnist").prepare_data()
