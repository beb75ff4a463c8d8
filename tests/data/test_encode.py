"""The embedded encoder, through the cache: what is stored is what it gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fpe_lightning.data.cache import open_cache
from fpe_lightning.data.encode import cache_embeddings, embedding_key
from fpe_lightning.data.encoder import load_encoder
from fpe_lightning.data.glyphs import GlyphDataset


def test_glyphs_through_the_embedded_encoder(tmp_path: Path) -> None:
    images, encoder = GlyphDataset("val", size=10), load_encoder()
    key = embedding_key(images, encoder, "glyphs", "val", "float16")
    folder = cache_embeddings(images, encoder, key, tmp_path, batch_size=4, progress=False)
    features, labels = open_cache(folder, key, verify=True)
    expected = encoder.encode(torch.stack([encoder.preprocess(image) for image, _ in (images[i] for i in range(10))]))
    assert np.allclose(features, expected.numpy(), atol=1e-3)
    assert labels.tolist() == [images[i][1] for i in range(10)]
    assert (key.count, key.dim, len(key.classes)) == (10, encoder.dim, 94)


def test_another_size_of_the_data_set_is_another_key() -> None:
    encoder = load_encoder()
    keys = [embedding_key(GlyphDataset("val", size=n), encoder, "glyphs", "val", "float16") for n in (10, 11)]
    assert keys[0].folder(Path()) != keys[1].folder(Path())
