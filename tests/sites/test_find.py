"""Which widths are found in plain networks, how they are laid out, and that the model is left alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.expansion import expand
from fpe_lightning.sites import Attribute, Site, find_sites
from tests.support.nets import Net, mlp, proven, reasons


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
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    model = Net(lambda self, x: self.net(x), net=net)
    assert [site.name for site in proven(model, torch.randn(2, 8))] == ["net.0"]


def test_deep_mlp_sites_come_in_the_order_of_the_forward() -> None:
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5)]
    model = nn.Sequential(*layers, nn.Linear(8, 8))
    assert [site.name for site in proven(model, torch.randn(4, 8))] == ["0", "4", "8", "12"]
    backwards = Net(
        lambda self, x: self.a(F.relu(self.b(F.relu(self.c(x))))),
        a=nn.Linear(4, 2),
        b=nn.Linear(5, 4),
        c=nn.Linear(3, 5),
    )
    assert [site.name for site in proven(backwards, torch.randn(4, 3))] == ["c", "b"]


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


def test_flattened_channels_last_are_read_one_by_one() -> None:
    model = Net(
        lambda self, x: self.head(F.relu(self.conv(x)).permute(0, 2, 3, 1).flatten(1)),
        conv=nn.Conv2d(3, 5, 3), head=nn.Linear(5 * 24, 3),
    )  # fmt: skip
    (site,) = proven(model, torch.randn(2, 3, 8, 6))
    assert (site.consumers[0].length, site.consumers[0].run) == (120, 1)


def test_axis_with_two_layouts_is_cut_into_stretches() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        return self.head(torch.cat([y.flatten(1), y.mean((2, 3))], 1))

    (site,) = proven(Net(forward, conv=nn.Conv2d(3, 5, 3), head=nn.Linear(5 * 25, 3)), torch.randn(2, 3, 8, 6))
    assert [(a.start, a.length, a.run) for a in site.consumers] == [(0, 120, 24), (120, 5, 1)]


def test_concatenated_features_are_stretches_of_one_axis() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        first = F.relu(self.first(x))
        second = F.relu(self.second(torch.cat([x, first], 1)))
        return self.head(F.relu(self.norm(torch.cat([x, first, second], 1))))

    model = Net(
        forward, first=nn.Conv2d(3, 4, 3, padding=1), second=nn.Conv2d(7, 5, 3, padding=1),
        norm=nn.BatchNorm2d(12), head=nn.Conv2d(12, 2, 1),
    )  # fmt: skip
    first, second = proven(model, torch.randn(2, 3, 8, 6))
    assert [(a.parameter, a.start, a.length) for a in first.consumers] == [
        ("second.weight", 3, 4),
        ("head.weight", 3, 4),
    ]
    assert [(a.parameter, a.start, a.length) for a in second.consumers] == [("head.weight", 7, 5)]
    assert Attribute("norm", "num_features", 4) in first.attributes
    assert Attribute("norm", "num_features", 5) in second.attributes


def test_depthwise_kernels_are_values_and_its_groups_grow() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)),
    )
    (site,) = proven(model, torch.randn(2, 3, 8, 6))
    assert "3.weight" in {axis.parameter for axis in site.values}
    assert {Attribute("3", name, 8) for name in ("in_channels", "out_channels", "groups")} <= set(site.attributes)


def test_depthwise_multiplier_keeps_the_filters_of_a_channel_together() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 24, 3, groups=8), nn.ReLU(), nn.Conv2d(24, 4, 1))
    (site,) = proven(model, torch.randn(2, 3, 8, 6))
    assert {(axis.parameter, axis.run) for axis in site.values} == {("0.bias", 1), ("1.weight", 3), ("1.bias", 3)}
    assert Attribute("1", "groups", 8) in site.attributes
    assert site.consumers[0].run == 3


@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(4, 8), nn.GroupNorm(4, 8, affine=False), nn.InstanceNorm2d(8), nn.InstanceNorm2d(8, affine=True)],
)
def test_normalised_channels_are_found(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 4, 1))
    (site,) = proven(model, torch.randn(2, 3, 8, 6))
    assert Attribute("1", "num_channels" if isinstance(norm, nn.GroupNorm) else "num_features", 8) in site.attributes


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.LayerNorm(6, elementwise_affine=False), nn.RMSNorm(6)])
def test_layer_norms_grow(norm: nn.Module) -> None:
    (site,) = proven(nn.Sequential(nn.Linear(8, 6), norm, nn.Linear(6, 3)), torch.randn(2, 8))
    assert Attribute("1", "normalized_shape", 6, index=0) in site.attributes


def test_linear_that_is_folded_into_an_image_is_copied_in_blocks() -> None:
    model = nn.Sequential(
        *(nn.Linear(8, 4 * 6), nn.Unflatten(1, (4, 3, 2)), nn.ReLU()),
        *(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 3, 3)),
    )
    first, second = proven(model, torch.randn(2, 8))
    assert (first.width, first.producers[0].run) == (4, 6)
    assert torch.equal(first.producers[0].units, torch.arange(4).repeat_interleave(6))
    assert Attribute("1", "unflattened_size", 4, index=0) in first.attributes
    assert (second.producers[0].dim, second.producers[0].input_dim) == (1, 0)


def test_residual_block_has_a_hidden_width_and_a_stream() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        stream = self.embed(x)
        return self.head(stream + self.down(F.relu(self.up(stream))))

    parts = {"embed": nn.Linear(8, 8), "up": nn.Linear(8, 16), "down": nn.Linear(16, 8), "head": nn.Linear(8, 3)}
    model, example = Net(forward, **parts), torch.randn(2, 8)
    assert [(site.name, site.kind) for site in proven(model, example)] == [("up", "hidden")]
    assert "residual stream" in reasons(model, example)["embed"]
    wide = proven(model, example, streams=True)
    assert [(site.name, site.kind) for site in wide] == [("embed", "stream"), ("up", "hidden")]
    assert [producer.parameter for producer in wide[0].producers] == ["embed.weight", "down.weight"]


def test_gated_width_of_two_linears_has_two_producers() -> None:
    model = Net(
        lambda self, x: self.down(F.silu(self.gate(x)) * self.up(x)),
        gate=nn.Linear(8, 12), up=nn.Linear(8, 12), down=nn.Linear(12, 5),
    )  # fmt: skip
    (site,) = proven(model, torch.randn(2, 8))
    assert (site.name, site.kind, site.width) == ("gate", "gated", 12)
    assert [producer.parameter for producer in site.producers] == ["gate.weight", "up.weight"]


@pytest.mark.parametrize("form", ["chunk", "glu"])
def test_gated_width_of_one_linear_gives_both_rows_of_a_unit_one_number(form: str) -> None:
    def chunked(self: Any, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)

    forward = chunked if form == "chunk" else lambda self, x: self.down(F.glu(self.both(x)))
    (site,) = proven(Net(forward, both=nn.Linear(8, 24), down=nn.Linear(12, 5)), torch.randn(2, 8))
    assert (site.kind, site.width, site.producers[0].run) == ("gated", 12, 1)
    assert torch.equal(site.producers[0].units, torch.arange(12).repeat(2))


def test_channel_shuffle_is_laid_out_in_longer_runs() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2), nn.ChannelShuffle(2)),
        *(nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1)),
    )
    assert [site.name for site in proven(model, torch.randn(2, 3, 8, 6))] == ["0", "2", "4"]


def test_raw_parameters_are_found_in_any_orientation() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(torch.einsum("bk,kj->bj", torch.relu(x @ self.w1) @ self.w2, self.w3), self.w4.t())

    shapes = {"w1": (8, 12), "w2": (12, 4), "w3": (4, 7), "w4": (7, 2)}
    model = Net(forward, **{name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()})
    sites = proven(model, torch.randn(3, 8))
    assert [site.name for site in sites] == ["w1", "w2", "w3"]
    assert all((site.producers[0].dim, site.producers[0].input_dim) == (1, 0) for site in sites)


def test_sizes_that_a_module_wrote_down_grow() -> None:
    model = Net(lambda self, x: self.b(F.relu(self.a(x)).view(-1, self.hidden)), a=nn.Linear(8, 12), b=nn.Linear(12, 3))
    model.hidden = model.heads = 12
    (site,) = proven(model, torch.randn(2, 8))
    assert Attribute("", "hidden", 12) in site.attributes or Attribute("", "heads", 12) in site.attributes


def test_layers_that_are_called_twice_are_one_site() -> None:
    model = Net(lambda self, x: self.b(self.a(self.b(self.a(x)))), a=nn.Linear(8, 16), b=nn.Linear(16, 8))
    assert [site.name for site in proven(model, torch.randn(2, 8))] == ["a"]


def test_noise_over_channels_does_not_hide_them() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Dropout2d(), nn.FeatureAlphaDropout(), nn.Conv2d(6, 3, 3))
    assert [site.name for site in proven(model, torch.randn(2, 3, 8, 6))] == ["0"]


def test_keyword_inputs_token_inputs_and_dict_outputs() -> None:
    def forward(self: Any, tokens: Tensor, scale: Tensor) -> dict[str, object]:
        hidden = self.up(self.embed(tokens))
        return {"logits": self.down(F.gelu(hidden)) * scale, "more": (self.aux(hidden),)}

    parts = {"embed": nn.Embedding(11, 6), "up": nn.Linear(6, 12), "down": nn.Linear(12, 3), "aux": nn.Linear(12, 2)}
    example = {"tokens": torch.randint(0, 11, (2, 4)), "scale": torch.ones(2, 4, 3)}
    (site,) = proven(Net(forward, **parts), example)
    assert (site.name, [axis.parameter for axis in site.consumers]) == ("up", ["down.weight", "aux.weight"])


def test_train_only_consumers_belong_to_the_site() -> None:
    def forward(self: Any, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        hidden = F.relu(self.up(x))
        return (self.down(hidden), self.aux(hidden)) if self.training else self.down(hidden)

    model = Net(forward, up=nn.Linear(8, 12), down=nn.Linear(12, 3), aux=nn.Linear(12, 2))
    (site,) = proven(model, torch.randn(2, 8))
    assert [axis.parameter for axis in site.consumers] == ["down.weight", "aux.weight"]


def test_batch_of_one_is_enough_for_batch_norm() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    assert [site.name for site in proven(model, torch.randn(1, 8))] == ["0"]


def test_frozen_parameters_are_found_too() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).requires_grad_(False)
    assert [site.name for site in proven(model, torch.randn(1, 8))] == ["0"]


def test_parameters_without_data_are_enough() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 24, 3))
    assert [site.name for site in find_sites(model, torch.randn(2, 3, 8, 6))] == ["0"]


def test_sites_of_a_copy_are_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 24, 3))
    example = torch.randn(2, 3, 8, 6)
    sites: list[Site] = find_sites(model, example)
    assert sites == find_sites(copy.deepcopy(model), example)
    assert sites == find_sites(model, (example,))


@pytest.mark.filterwarnings("ignore:Splitting 0")
def test_expanded_models_are_found_again() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(6 * 24, 10), nn.ReLU(), nn.Linear(10, 3)),
    )
    example = torch.randn(2, 3, 8, 6)
    expand(model, alpha=2, example_inputs=example)
    sites = proven(model, example)
    assert [(site.name, site.width) for site in sites] == [("0", 12), ("4", 20)]
    assert not any("mask" in axis.parameter for site in sites for axis in (*site.producers, *site.values))


def test_wrong_inputs_are_named() -> None:
    model = nn.Linear(8, 3)
    with pytest.raises(TypeError, match=r"a tuple of positional arguments or a dict.*it is a list"):
        find_sites(model, [torch.randn(2, 8)])
    with pytest.raises(ValueError, match=r"the forward raises RuntimeError.*pass inputs of the shapes"):
        find_sites(model, torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"weight is not initialised yet: run one forward pass"):
        find_sites(nn.LazyLinear(3), torch.randn(2, 5))


@pytest.mark.parametrize(
    ("model", "example", "expected"),
    [
        (mlp(4, 1, 3), torch.randn(2, 4), [("0", 1, 4)]),
        (mlp(4, 5, 1, 6, 3), torch.randn(2, 4), [("0", 5, 4), ("2", 1, 5), ("4", 6, 1)]),
        (mlp(1, 8, 1), torch.randn(2, 1), [("0", 8, 1)]),
        (nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Conv2d(1, 4, 3)), torch.randn(2, 3, 9, 8), [("0", 1, 3)]),
        (nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(49, 4)), torch.randn(2, 3, 9, 9), []),
    ],
    ids=["mlp", "between wide layers", "input and output", "convolution", "flattened"],
)
def test_a_width_of_one_unit_is_found_where_two_units_run(model: nn.Module, example: Tensor, expected: Any) -> None:
    assert [(site.name, site.width, site.fan_in) for site in proven(model, example)] == expected


def test_a_single_unit_is_no_site_where_it_is_an_output() -> None:
    model = Net(lambda self, x: (self.b(h := self.a(x).tanh()), h), a=nn.Linear(4, 1), b=nn.Linear(1, 3))
    assert fpe.find_sites(model, torch.randn(2, 4)) == []
    model = Net(lambda self, x: self.b(self.a(x) * x[:, :1]), a=nn.Linear(4, 1), b=nn.Linear(1, 3))
    assert [site.name for site in proven(model, torch.randn(2, 4))] == ["a"]
