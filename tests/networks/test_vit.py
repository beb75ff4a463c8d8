"""The small vision transformer: shapes, sites, and a split of its feed-forward networks at the same count."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fpe_lightning import count_nonzeros, expand, find_sites
from fpe_lightning.networks import SmallViT
from fpe_lightning.sparse import check_masks


@pytest.mark.parametrize(
    ("channels", "image_size", "patch", "hidden"), [(1, 32, 8, (8, 8)), (3, 16, 4, (4,)), (1, 8, 8, (2, 3, 4))]
)
def test_shapes(channels: int, image_size: int, patch: int, hidden: tuple[int, ...]) -> None:
    network = SmallViT(channels, image_size, 7, patch, width=12, heads=3, hidden=hidden)
    assert network(torch.randn(2, channels, image_size, image_size)).shape == (2, 7)
    assert network.positions.shape == ((image_size // patch) ** 2, 12)
    assert (network.in_features, network.out_features) == ((channels, image_size, image_size), 7)


def test_a_token_sees_the_others_and_positions_matter() -> None:
    torch.manual_seed(0)
    network, picture = SmallViT(1, 16, 5, 8, width=8, heads=2, hidden=(4,)), torch.randn(1, 1, 16, 16)
    tokens = network.patches(picture).flatten(2).transpose(1, 2)
    changed = tokens.clone()
    changed[:, 3] += 1
    attention = network.blocks[0].attention
    assert not torch.allclose(attention(tokens)[:, 0], attention(changed)[:, 0])
    assert not torch.allclose(network(picture), network(picture.roll(8, 3)))


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    own = SmallViT(1, 16, 5, 8, width=8, heads=2, hidden=(4,)).blocks[0].attention
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": own.query_key_value.weight,
            "in_proj_bias": own.query_key_value.bias,
            "out_proj.weight": own.project.weight,
            "out_proj.bias": own.project.bias,
        }
    )
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(own(x), theirs(x, x, x, need_weights=False)[0])


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
def test_a_split_of_the_feed_forward_networks_keeps_the_count() -> None:
    network, pictures = SmallViT(1, 16, 5, 8, width=16, heads=2, hidden=(4, 6)), torch.randn(2, 1, 16, 16)
    found = find_sites(network, pictures)
    sites = [site for site in found if ".ffn." in site.name]
    assert [(site.name, site.width, site.fan_in) for site in sites] == [
        ("blocks.0.ffn.0", 4, 16),
        ("blocks.1.ffn.0", 6, 16),
    ]
    before = count_nonzeros(network)
    report = expand(network, alpha=2, sites=sites)
    assert report.nonzeros_before == report.nonzeros_after == count_nonzeros(network) == before
    assert network.blocks[1].ffn[0].out_features == network.blocks[1].ffn[2].in_features == 12
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(pictures).square().sum().backward()
    optimizer.step()
    check_masks(network)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"patch": 5}, "found patch=5 of 32 pixels and 4 heads of width 32; change one of each"),
        ({"heads": 3}, "found patch=8 of 32 pixels and 3 heads of width 32"),
        ({"heads": 0}, "found patch=8 of 32 pixels and 0 heads"),
        ({"hidden": ()}, r"A ViT needs a block, found hidden=\[\]."),
        ({"hidden": (4, 0)}, r"`hidden` takes integers of at least 1, found \[4, 0\]"),
    ],
)
def test_sizes_that_do_not_come_out_even_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SmallViT(**values)
