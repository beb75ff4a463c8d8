"""The small CNN: shapes, sites, and a split of its head at the same count."""

from __future__ import annotations

import pytest
import torch

import fpe_lightning as fpe
from fpe_lightning import count_nonzeros, expand, find_sites
from fpe_lightning.networks import SmallCNN


@pytest.mark.parametrize(
    ("channels", "image_size", "classes"), [((16, 32), 32, 10), ((4,), 8, 3), ((4, 6, 8), 28, 7), ((4, 4), 4, 2)]
)
def test_shapes_and_head(channels: tuple[int, ...], image_size: int, classes: int) -> None:
    network = SmallCNN(3, image_size, classes, channels, hidden=5)
    assert network(torch.randn(2, 3, image_size, image_size)).shape == (2, classes)
    assert network.head[0].in_features == channels[-1] * (image_size // 2 ** len(channels)) ** 2
    assert (network.in_features, network.out_features) == ((3, image_size, image_size), classes)


def test_sites_are_the_convolutions_and_the_hidden_layer_of_the_head() -> None:
    network = SmallCNN(3, 16, 10, (4, 6), 5)
    names = [site.name for site in find_sites(network, torch.randn(2, 3, 16, 16))]
    assert names == ["blocks.0.0", "blocks.1.0", "head.0"]


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
@pytest.mark.parametrize("sites", ["head.0", None])
def test_a_split_keeps_the_count(sites: str | None) -> None:
    network = SmallCNN(3, 16, 10, (4, 6), 5)
    pictures = torch.randn(2, 3, 16, 16)
    before = count_nonzeros(network)
    report = expand(
        network, fpe.Expansion(alpha=2, prune="incoming" if sites else "total"), sites=sites, example_inputs=pictures
    )
    assert report.nonzeros_before == report.nonzeros_after == count_nonzeros(network) == before
    assert network.head[0].out_features == 10
    assert network(pictures).shape == (2, 10)
    assert (network.blocks[0][0].out_channels == 8) is (sites is None)


def test_pictures_too_small_for_the_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="3 blocks halve 4 pixels to zero; use fewer blocks"):
        SmallCNN(3, 4, 10, (4, 4, 4))
