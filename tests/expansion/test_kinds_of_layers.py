"""Every kind of layer that a width may run through is split, trains on at equally many non-zeros, and loads again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

import fpe_lightning as fpe
from fpe_lightning.sparse import check_masks, mask_of
from tests.support.nets import Net, equal, proven, train

LINE, IMAGE, VOLUME = (3, 16, 9), (3, 16, 7, 6), (3, 16, 5, 4, 6)
"""Shapes of batches of sequences, images and volumes with 16 channels."""


def seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def built() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build()

    return built


def between(*layers: Callable[[], nn.Module], first: Callable[[], nn.Module], last: Callable[[], nn.Module]) -> Any:
    return seeded(lambda: nn.Sequential(first(), *(layer() for layer in layers), nn.Tanh(), last()))


def image(*layers: Callable[[], nn.Module]) -> Any:
    """Some layers between two convolutions."""
    return between(*layers, first=lambda: nn.Conv2d(16, 8, 3), last=lambda: nn.Conv2d(8, 3, 1))


def row(*layers: Callable[[], nn.Module]) -> Any:
    """Some layers between two linear ones."""
    return between(*layers, first=lambda: nn.Linear(64, 8), last=lambda: nn.Linear(8, 3))


def gated() -> nn.Module:
    return Net(
        lambda self, x: self.down(F.silu(self.gate(x)) * self.up(x)),
        **{"gate": nn.Linear(64, 8), "up": nn.Linear(64, 8), "down": nn.Linear(8, 3)},
    )


def raw() -> nn.Module:
    parts = {"up": nn.Parameter(torch.randn(64, 8) / 8), "down": nn.Parameter(torch.randn(8, 3))}
    return Net(lambda self, x: torch.tanh(x @ self.up) @ self.down, **parts)


def added() -> nn.Module:
    parts = {"embed": nn.Linear(64, 8), "up": nn.Linear(8, 24), "down": nn.Linear(24, 8), "head": nn.Linear(8, 3)}
    return Net(lambda self, x: self.head((s := self.embed(x)) + self.down(self.up(s).tanh())), **parts)


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "Conv1d": (
        between(
            *(lambda: nn.BatchNorm1d(8), lambda: nn.MaxPool1d(2), lambda: nn.Dropout1d(0.0)),
            first=lambda: nn.Conv1d(16, 8, 3),
            last=lambda: nn.Conv1d(8, 3, 1),
        ),
        *(LINE, ["0"]),
    ),
    "Conv3d": (
        between(
            *(lambda: nn.BatchNorm3d(8), lambda: nn.AvgPool3d(2), lambda: nn.Dropout3d(0.0)),
            first=lambda: nn.Conv3d(16, 8, 3, padding=1),
            last=lambda: nn.Conv3d(8, 3, 1),
        ),
        *(VOLUME, ["0"]),
    ),
    "ConvTranspose1d": (
        between(first=lambda: nn.ConvTranspose1d(16, 8, 3, stride=2), last=lambda: nn.Conv1d(8, 3, 1)),
        *(LINE, ["0"]),
    ),
    "ConvTranspose3d": (
        between(first=lambda: nn.Conv3d(16, 8, 3), last=lambda: nn.ConvTranspose3d(8, 3, 2)),
        *(VOLUME, ["0"]),
    ),
    "sequence, flattened": (
        between(nn.Flatten, first=lambda: nn.Conv1d(16, 8, 3), last=lambda: nn.Linear(8 * 7, 3)),
        *(LINE, ["0"]),
    ),
    "volume, flattened": (
        between(
            *(lambda: nn.AdaptiveMaxPool3d((2, 1, 2)), nn.Flatten),
            first=lambda: nn.Conv3d(16, 8, 3),
            last=lambda: nn.Linear(8 * 4, 3),
        ),
        *(VOLUME, ["0"]),
    ),
    "GroupNorm": (image(lambda: nn.GroupNorm(4, 8)), IMAGE, ["0"]),
    "GroupNorm of one group": (image(lambda: nn.GroupNorm(1, 8)), IMAGE, ["0"]),
    "InstanceNorm": (image(lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), IMAGE, ["0"]),
    "channel shuffle": (
        image(
            *(lambda: nn.Conv2d(8, 8, 1, groups=2), lambda: nn.ChannelShuffle(2)),
            *(lambda: nn.BatchNorm2d(8), lambda: nn.Conv2d(8, 8, 3, groups=2)),
        ),
        *(IMAGE, ["0"]),
    ),
    "channel shuffle between split layers": (
        image(lambda: nn.GroupNorm(2, 8), lambda: nn.ChannelShuffle(2), lambda: nn.PReLU(8)),
        *(IMAGE, ["0"]),
    ),
    "depthwise": (image(lambda: nn.Conv2d(8, 8, 3, groups=8), lambda: nn.BatchNorm2d(8)), IMAGE, ["0"]),
    "LayerNorm": (row(lambda: nn.LayerNorm(8)), (4, 64), ["0"]),
    "RMSNorm": (row(lambda: nn.RMSNorm(8)), (4, 64), ["0"]),
    "reshape": (row(lambda: nn.Unflatten(1, (4, 2)), lambda: nn.Flatten(1)), (4, 64), ["0"]),
    "gated": (seeded(gated), (4, 64), ["gate"]),
    "raw parameters": (seeded(raw), (4, 64), ["up"]),
    "residual stream": (seeded(added), (4, 64), ["embed"]),
}


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
@pytest.mark.parametrize("partition", ["random", "shared"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_split_trains_on_and_loads_again(kind: str, partition: str) -> None:
    build, shape, names = KINDS[kind]
    model, x = build(), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    sites = [site for site in proven(model, x, streams=kind == "residual stream") if site.name in names]
    assert [site.name for site in sites] == names
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    train(model, optimizer, x)
    narrow, before = copy.deepcopy(model), fpe.count_nonzeros(model)
    report = fpe.expand(model, fpe.Expansion(alpha=2, partition=partition), sites=sites, optimizer=optimizer)
    assert [site.width_after for site in report.sites] == [2 * site.width for site in sites]
    for producer in sites[0].producers if kind != "raw parameters" else ():
        owner = model.get_submodule(producer.parameter.rpartition(".")[0])
        mask = mask_of(owner)
        assert mask is not None
        children = mask if producer.dim == 0 else mask.transpose(0, 1)
        assigned = children.flatten(2).any(2) if children.dim() > 2 else children
        # A neuron's input is a channel: all entries of a kernel go to one child, and none of them to its sibling.
        assert assigned.unflatten(0, (-1, 2)).sum(1).max() == 1, producer.parameter
    assert report.nonzeros_before == report.nonzeros_after == before == fpe.count_nonzeros(model)
    start = copy.deepcopy(model.state_dict())
    train(model, optimizer, x)
    check_masks(model)
    assert fpe.count_nonzeros(model) == before
    assert all(not torch.equal(p, start[name]) for name, p in model.named_parameters()), "something does not train"
    for saved, target in ((model, build()), (narrow, copy.deepcopy(model))):
        fpe.load_expanded_state_dict(target, saved.state_dict())
        assert equal(dict(target.state_dict()), dict(saved.state_dict()))
        assert torch.equal(outputs(target, x), outputs(saved, x))


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)
