"""Sites of well-known architectures, built small where the library allows it; each model is proven jointly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from fpe_lightning.sites import find_sites
from tests.support.proof import prove_sites


def vit_tiny() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=5
    )


def densenet_small() -> nn.Module:
    return torchvision.models.DenseNet(growth_rate=4, block_config=(2, 3, 2), num_init_features=6, num_classes=5)


def swin_small() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4], num_classes=5)


BUILDERS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "vit": (vit_tiny, {"hidden": 2}),
    "densenet": (densenet_small, {"hidden": 17}),
    "swin": (swin_small, {"hidden": 4}),
    "resnet18": (torchvision.models.resnet18, {"hidden": 8}),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, {"hidden": 14, "gated": 9}),
    "shufflenet_v2_x0_5": (torchvision.models.shufflenet_v2_x0_5, {"hidden": 18}),
    "squeezenet1_1": (torchvision.models.squeezenet1_1, {"hidden": 25}),
    "mnasnet0_5": (torchvision.models.mnasnet0_5, {"hidden": 20}),
}
SLOW = {"resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in BUILDERS])
def test_every_site_of_a_known_architecture_is_proven(name: str) -> None:
    build, expected = BUILDERS[name]
    torch.manual_seed(0)
    model, example = build(), torch.randn(2, 3, 32, 32)
    sites = find_sites(model, example)
    assert Counter(site.kind for site in sites) == expected
    assert prove_sites(model, sites, example).holds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "streams"),
    [
        (torchvision.models.resnet18, 4),
        (torchvision.models.mobilenet_v2, 5),
        (torchvision.models.shufflenet_v2_x0_5, 2),
    ],
)
def test_streams_that_pass_the_trial_are_proven(build: Callable[[], nn.Module], streams: int) -> None:
    model, example = build(), torch.randn(2, 3, 32, 32)
    sites = find_sites(model, example, streams=True)
    assert sum(site.kind == "stream" for site in sites) == streams
    assert prove_sites(model, sites, example).holds
