"""Which widths are found in plain networks, how they are laid out, and that the model is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fpe_lightning.expansion import Attribute, Site, find_sites
from fpe_lightning.expansion.proof import prove_site, prove_sites


def proven(model: nn.Module, example: object, **options: bool) -> list[Site]:
    """The sites of a model, each of which has passed the duplication proof alone and all together."""
    sites = find_sites(model, example, **options)
    for site in sites:
        assert prove_site(model, site, example).holds, site.name
    assert prove_sites(model, sites, example).holds
    return sites


def reasons(model: nn.Module, example: object, **options: bool) -> dict[str, str]:
    return {refusal.name: refusal.reason for refusal in find_sites(model, example, explain=True, **options)[1]}


def test_mlp_has_one_site_named_after_the_producing_module() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    (site,) = proven(model, torch.randn(2, 8))
    assert (site.name, site.width, site.fan_in, site.kind) == ("0", 16, 8, "hidden")
    (producer,) = site.producers
    assert (producer.parameter, producer.dim, producer.input_dim, producer.run) == ("0.weight", 0, 1, 1)
    assert [axis.parameter for axis in site.values] == ["0.bias"]
    assert [(axis.parameter, axis.dim) for axis in site.consumers] == [("2.weight", 1)]
    assert set(site.attributes) == {Attribute("0", "out_features", 16), Attribute("2", "in_features", 16)}
    assert torch.equal(producer.units, torch.arange(16))


def test_names_are_relative_to_the_root_module() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    assert [site.name for site in proven(Root(), torch.randn(2, 8))] == ["net.0"]


def test_deep_mlp_sites_come_in_the_order_of_the_forward() -> None:
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5)]
    model = nn.Sequential(*layers, nn.Linear(8, 8))
    assert [site.name for site in proven(model, torch.randn(4, 8))] == ["0", "4", "8", "12"]


def test_flattened_channels_are_read_in_blocks() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(6 * 3 * 2, 5)),
    )
    (site,) = proven(model, torch.randn(2, 3, 8, 6))
    (consumer,) = site.consumers
    assert (consumer.parameter, consumer.length, consumer.run) == ("6.weight", 36, 6)
    assert torch.equal(consumer.units, torch.arange(6).repeat_interleave(6))
    assert {a.parameter for a in site.values} == {"0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}
    assert Attribute("1", "num_features", 6) in site.attributes
    assert Attribute("6", "in_features", 36) in site.attributes


def test_output_width_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    assert reasons(model, torch.randn(2, 8)) == {"2": "it reaches an output of the model"}


def test_wrong_inputs_are_named() -> None:
    model = nn.Linear(8, 3)
    with pytest.raises(TypeError, match=r"a tuple of positional arguments or a dict.*it is a list"):
        find_sites(model, [torch.randn(2, 8)])
    with pytest.raises(ValueError, match=r"the forward raises RuntimeError.*pass inputs of the shapes"):
        find_sites(model, torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"weight is not initialised yet: run one forward pass"):
        find_sites(nn.LazyLinear(3), torch.randn(2, 5))
