"""What a split is, and what it keeps: the number of non-zeros, the order of parameters, all that is not split."""

from __future__ import annotations

import copy
import warnings
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, AdamW

import fpe_lightning as fpe
from fpe_lightning.expansion.split_site import site_generator
from fpe_lightning.partitions import Clause
from fpe_lightning.sparse import check_masks, mask_of, masked_parameters, parents_of
from tests.support.nets import cnn, mlp, train

CLAUSES = [list(range(start, start + 4)) for start in range(0, 48, 4)]
WAYS_TO_PRUNE: dict[str, dict[str, Any]] = {
    **{name: {"prune": name} for name in ("total", "incoming", "outgoing", "global", "columns")},
    "columns, outgoing partitioned": {"prune": "columns", "outgoing": "partition"},
}


@cache
def sites_of(depth: int, bias: bool, norm: bool) -> list[fpe.Site]:
    """Sites depend on the architecture alone, and take longer to find than everything else here."""
    return fpe.find_sites(mlp(48, *[8] * depth, 3, bias=bias, norm=norm), torch.zeros(2, 48))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_nonzeros_are_kept_and_stay_kept(data: st.DataObject) -> None:
    names = ["random", "shared", "feature", "semi_structured", "overlapping"]
    partition = data.draw(st.sampled_from([*names, Clause(CLAUSES)]), label="partition")
    alpha = 2 if partition == "semi_structured" else data.draw(st.integers(2, 4), label="alpha")
    shapes = [(1, True, False), (1, False, True), (3, True, True)][: 2 if isinstance(partition, Clause) else 3]
    depth, bias, norm = data.draw(st.sampled_from(shapes), label="depth, bias, norm")
    prune = data.draw(st.sampled_from(["total", "incoming"]), label="prune")
    model = mlp(48, *[8] * depth, 3, bias=bias, norm=norm, seed=data.draw(st.integers(0, 9)))
    x = torch.randn(8, 48, generator=torch.Generator().manual_seed(0))
    optimizer = data.draw(
        st.sampled_from(
            [partial(SGD, lr=0.01, momentum=0.9, weight_decay=0.1), partial(AdamW, lr=0.01, weight_decay=0.1)]
        ),
        label="optimizer",
    )(model.parameters())
    train(model, optimizer, x)
    before = fpe.count_nonzeros(model)
    found = sites_of(depth, bias, norm)
    sites = found if alpha == 2 and prune == "total" else found[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fpe.ExpansionWarning)
        report = fpe.expand(
            model, fpe.Expansion(alpha=alpha, partition=partition, prune=prune), sites=sites, optimizer=optimizer
        )
    assert report.nonzeros_before == report.nonzeros_after == before == fpe.count_nonzeros(model)
    train(model, optimizer, x)
    check_masks(model)
    assert sum(int(p.count_nonzero()) for p in model.parameters()) <= before == fpe.count_nonzeros(model)
    for site in report.sites:
        assert site.width_after == alpha * site.width_before
        assert model.get_submodule(site.name).out_features == site.width_after


def test_children_share_their_parents_inputs_and_copy_its_outputs() -> None:
    model = mlp(64, 5, 3)
    parent, before = copy.deepcopy(model), fpe.count_nonzeros(model)
    report = fpe.expand(model, fpe.Expansion(alpha=4, prune="incoming"), example_inputs=torch.randn(2, 64))
    weight = model[0].weight.detach().view(5, 4, 64)
    assert ((weight != 0).sum(1) <= 1).all(), "an input reaches two children"
    summed, kept = weight.sum(1), (weight != 0).any(1)
    assert torch.equal(summed[kept], parent[0].weight[kept])
    assert torch.equal(model[2].weight.view(3, 5, 4), parent[2].weight.unsqueeze(2).expand(3, 5, 4))
    assert torch.equal(model[0].bias.view(5, 4), parent[0].bias.unsqueeze(1).expand(5, 4))
    assert torch.equal(model[2].bias, parent[2].bias)
    (site,) = report.sites
    assert (site.removed_incoming, site.removed_outgoing) == (3 * 3 * 5 + 3 * 5, 0)
    assert (~kept).sum() == site.removed_incoming
    assert fpe.count_nonzeros(model) == before
    # What went are the smallest.
    assert parent[0].weight.abs()[~kept].max() <= parent[0].weight.abs()[kept].min()


def test_total_prunes_by_one_magnitude_order() -> None:
    model = mlp(64, 5, 8)
    with torch.no_grad():
        model[2].weight.mul_(0.1)
    parent = copy.deepcopy(model)
    (site,) = fpe.expand(model, alpha=2, example_inputs=torch.randn(2, 64)).sites
    assert site.removed_incoming + site.removed_outgoing == 5 * 8 + 5
    assert site.removed_incoming > 0
    assert site.removed_outgoing > 0
    gone, kept = [], []
    for index, old, dim in ((0, parent[0].weight, 0), (2, parent[2].weight, 1)):
        mask = mask_of(model[index])
        assert mask is not None
        copies = old.detach().abs().repeat_interleave(2, dim)
        kept.append(copies[mask])
        if index == 2:
            gone.append(copies[~mask])
        else:
            gone.append(old.detach().abs()[~mask.view(5, 2, 64).any(1)])
    assert torch.cat(gone).max() <= torch.cat(kept).min()


@pytest.mark.parametrize("prune", ["total", "incoming", "columns"])
def test_each_site_reports_what_it_prunes_where_sites_share_a_weight(prune: str) -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    first, second = fpe.expand(model, fpe.Expansion(alpha=2, prune=prune), example_inputs=torch.randn(2, 64)).sites
    assert first.removed_incoming + first.removed_outgoing == 8 + 8 * 6, "copies of biases and of outgoing weights"
    assert second.removed_incoming + second.removed_outgoing == 6 + 6 * 2


def test_outgoing_keeps_every_input() -> None:
    model = mlp(16, 8, 8, bias=False)
    (site,) = fpe.expand(model, fpe.Expansion(alpha=2, prune="outgoing"), example_inputs=torch.randn(2, 16)).sites
    assert (site.removed_incoming, site.removed_outgoing) == (0, 64)
    assert (model[0].weight.view(8, 2, 16) != 0).sum(1).eq(1).all()
    assert int(model[2].weight.count_nonzero()) == 64


def test_batch_norm_children_copy_their_parents_statistics() -> None:
    model = mlp(64, 5, 3, norm=True)
    train(model, SGD(model.parameters(), lr=0.01), torch.randn(9, 64))
    parent = copy.deepcopy(model)
    fpe.expand(model, alpha=2, example_inputs=torch.randn(4, 64))
    for name in ("weight", "bias", "running_mean", "running_var"):
        expected = getattr(parent[1], name).repeat_interleave(2)
        assert torch.equal(getattr(model[1], name), expected), name
    assert model[1].num_features == 10
    assert torch.equal(model[1].num_batches_tracked, parent[1].num_batches_tracked)


def test_convolutions_assign_whole_kernels_and_flattened_blocks() -> None:
    model, x = cnn(), torch.randn(2, 16, 8, 8)
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    train(model, optimizer, x)
    before, parent = fpe.count_nonzeros(model), copy.deepcopy(model)
    report = fpe.expand(
        model, fpe.Expansion(alpha=2, prune="incoming"), sites=["0", "4"], optimizer=optimizer, example_inputs=x
    )
    assert [site.name for site in report.sites] == ["0", "4"]
    assert (model[0].out_channels, model[4].in_channels, model[4].out_channels, model[9].in_features) == (16, 16, 8, 32)
    mask = mask_of(model[0])
    assert mask is not None
    assert (mask.view(8, 2, 16, 9).sum(1) <= 1).all(), "an entry reaches two children"
    whole = mask.view(8, 2, 16, 9).any(3).sum(1)
    assert (whole <= 1).all(), "an input channel reaches two children"
    assert torch.equal(model[9].weight.view(6, 4, 2, 4), parent[9].weight.view(6, 4, 1, 4).expand(6, 4, 2, 4)), (
        "blocks of a flattened channel are adjacent"
    )
    assert fpe.count_nonzeros(model) == before
    train(model, optimizer, x)
    check_masks(model)


def test_a_split_without_pruning_of_one_hot_inputs_keeps_the_function() -> None:
    """One input at a time reaches one child alone; only the bias of its siblings is new."""
    model = mlp(16, 8, 8, bias=False)
    x = torch.eye(16)
    parent = copy.deepcopy(model)
    hidden = parent[:2](x)
    fpe.expand(model, fpe.Expansion(alpha=2, prune="outgoing"), example_inputs=x)
    assert torch.allclose(model[:2](x).view(16, 8, 2).sum(2), hidden)


def test_order_names_and_settings_of_parameters_stay() -> None:
    model = cnn()
    for parameter in model.parameters():
        parameter.note = "kept"  # type: ignore[attr-defined]
    model[4].requires_grad_(False)
    names = [name for name, _ in model.named_parameters()]
    grads = [parameter.requires_grad for parameter in model.parameters()]
    untouched = model[11].bias
    fpe.expand(model, alpha=2, sites=["0", "4", "9"], example_inputs=torch.randn(2, 16, 8, 8))
    assert [name for name, _ in model.named_parameters()] == names
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert all(parameter.note == "kept" for parameter in model.parameters())  # type: ignore[attr-defined]
    assert all(parameter.is_leaf and isinstance(parameter, nn.Parameter) for parameter in model.parameters())
    assert model[11].bias is untouched


def test_gradients_follow() -> None:
    model, x = mlp(64, 5, 3), torch.randn(4, 64)
    model(x).pow(2).sum().backward()
    parent = copy.deepcopy(model)
    for ours, theirs in zip(parent.parameters(), model.parameters(), strict=True):
        ours.grad = theirs.grad.clone()  # type: ignore[union-attr]
    fpe.expand(model, alpha=2, example_inputs=x)
    mask = mask_of(model[0])
    assert mask is not None
    assert torch.equal(model[0].weight.grad, parent[0].weight.grad.repeat_interleave(2, 0) * mask)
    assert torch.equal(model[0].bias.grad, parent[0].bias.grad.repeat_interleave(2))
    assert torch.equal(model[2].bias.grad, parent[2].bias.grad)


def test_three_splits_in_a_row() -> None:
    model, x = mlp(256, 4, 3), torch.randn(8, 256)
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    before, groups = fpe.count_nonzeros(model), []
    for alpha in (2, 3, 2):
        train(model, optimizer, x)
        previous = mask_of(model[0])
        report = fpe.expand(model, alpha=alpha, optimizer=optimizer, example_inputs=x)
        assert report.nonzeros_after == before
        mask = mask_of(model[0])
        assert mask is not None
        if previous is not None:
            family = mask.view(len(previous), alpha, 256)
            assert (family.sum(1) <= 1).all()
            assert not (family.any(1) & ~previous).any(), "a masked weight came back"
        groups.append(model[0].out_features)
    assert groups == [8, 24, 48]
    assert torch.equal(parents_of(model[0]), torch.arange(4).repeat_interleave(12))
    train(model, optimizer, x)
    check_masks(model)
    assert fpe.count_nonzeros(model) == before


def masks(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: mask for name, _, mask in masked_parameters(model)}


def test_the_draw_depends_on_seed_and_site_alone() -> None:
    x = torch.randn(2, 64)

    def split(seed: int, sites: str) -> dict[str, torch.Tensor]:
        model = mlp(64, 16, 16, 3)
        fpe.expand(model, fpe.Expansion(prune="incoming", seed=seed), sites=sites, example_inputs=x)
        return masks(model)

    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    alone, other = split(0, sites="0"), split(1, sites="0")
    assert torch.equal(torch.get_rng_state(), state[0]), "the global generator was used"
    assert np.random.get_state()[1].tolist() == state[1]
    torch.manual_seed(1234)
    assert torch.equal(split(0, sites="0")["0.weight"], alone["0.weight"])
    assert not torch.equal(other["0.weight"], alone["0.weight"])

    def draws(model: nn.Sequential, sites: str | None) -> torch.Tensor:
        fpe.expand(model, fpe.Expansion(alpha=2, prune="outgoing"), sites=sites, example_inputs=x)
        return masks(model)["0.weight"]

    # Where outgoing weights alone are pruned, a producer's mask is the draw itself.
    with pytest.warns(fpe.ExpansionWarning):
        both = draws(mlp(64, 16, 16, 64, bias=False), None)
    assert torch.equal(draws(mlp(64, 16, 16, 64, bias=False), "0"), both)


def test_sites_of_equal_size_draw_differently_and_compiled_ones_alike() -> None:
    names = ("net.0", "net.2", "net._orig_mod.0")
    first, second, compiled = (site_generator(0, fpe.Site(name, 8, 4, (), (), ())).initial_seed() for name in names)
    assert first != second
    assert first == compiled
    assert first != site_generator(1, fpe.Site("net.0", 8, 4, (), (), ())).initial_seed()


def test_feature_partition_leaves_the_generators_alone() -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    model = mlp(64, 8, 3)
    fpe.expand(model, fpe.Expansion(alpha=2, partition="feature"), example_inputs=torch.ones(2, 64))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]


def test_tied_by_use_sites_may_be_given_as_found() -> None:
    model, x = mlp(64, 8, 8, 3), torch.randn(2, 64)
    first = fpe.find_sites(model, x)[:1]
    report = fpe.expand(model, alpha=2, sites=first)
    assert [site.name for site in report.sites] == ["0"]
    assert report.nonzeros_before == report.nonzeros_after


def test_report_reads_as_a_table() -> None:
    report = fpe.expand(mlp(64, 8, 3), alpha=2, example_inputs=torch.randn(1, 64))
    head, row, total = str(report).splitlines()
    assert head.split() == ["site", "alpha", "width", "fan-in", "removed", "in/out"]
    assert row.split()[:6] == ["0", "2", "8", "->", "16", "64.0"]
    assert total == "non-zero parameters: 547 before, 547 after"


class Gate(nn.Module):
    """Units times a function of themselves: one square weight reads the units and computes them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(64, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return self.last(hidden * self.gate(hidden).sigmoid())


@pytest.mark.filterwarnings("ignore:Splitting first")
@pytest.mark.parametrize("fields", WAYS_TO_PRUNE.values(), ids=WAYS_TO_PRUNE)
def test_a_weight_that_produces_and_consumes_is_pruned_once(fields: dict[str, Any]) -> None:
    model, x = Gate(), torch.randn(4, 64)
    (site,) = fpe.find_sites(model, x)
    both = {axis.parameter for axis in site.producers} & {axis.parameter for axis in site.consumers}
    assert both == {"gate.weight"}, "the case is not the one that is meant"
    before = fpe.count_nonzeros(model)
    report = fpe.expand(model, fpe.Expansion(alpha=2, **fields), sites=[site])
    assert report.nonzeros_after == fpe.count_nonzeros(model) == before
    assert report.sites[0].removed_incoming >= 0
    assert report.sites[0].removed_outgoing >= 0
    check_masks(model)


class Joined(nn.Module):
    """Two layers compute some units each, and a third one gates them all."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(64, 6), nn.Linear(48, 4)
        self.gate, self.last = nn.Linear(10, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.cat([self.left(x), self.right(x[:, :48])], 1)
        return self.last(hidden * self.gate(hidden).sigmoid())


@pytest.mark.filterwarnings("ignore:Splitting left")
@pytest.mark.parametrize("partition", ["random", "shared", "overlapping"])
@pytest.mark.parametrize("prune", ["total", "outgoing", "columns"])
def test_producers_of_some_units_each_assign_their_own(partition: str, prune: str) -> None:
    model, x = Joined(), torch.randn(4, 64)
    sites = fpe.find_sites(model, x)
    assert [(site.width, len(site.producers)) for site in sites] == [(10, 3)]
    report = fpe.expand(model, fpe.Expansion(alpha=2, partition=partition, prune=prune), sites=sites)
    assert report.nonzeros_after == report.nonzeros_before
    mask = mask_of(model.right)
    assert mask is not None
    shared = mask.view(4, 2, 48).sum(1)
    assert bool((shared <= 1).all()) == (partition != "overlapping")
    if (partition, prune) == ("random", "outgoing"):
        assert torch.equal(shared, torch.ones(4, 48, dtype=shared.dtype)), "every input stays with one child"


class Res2(nn.Module):
    """A grouped convolution ties channels of its groups to each other, and other channels pass it by."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(32, 8, 1), nn.Conv2d(4, 4, 1, groups=2)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        several, rest = self.first(x).tanh().chunk(2, 1)
        return self.last(torch.cat([self.grouped(several).tanh(), rest], 1))


@pytest.mark.filterwarnings("ignore:Splitting")
def test_units_of_unequally_many_rows_are_split() -> None:
    model, x = Res2(), torch.randn(4, 32, 2, 2)
    sites = fpe.find_sites(model, x)
    rows = [producer.units.bincount().tolist() for producer in sites[0].producers if producer.units is not None]
    assert rows == [[2, 2, 1, 1, 1, 1]], "the case is not the one that is meant"
    with pytest.raises(ValueError, match=r'grouped by alpha=2 with prune="columns" takes 16 .* too little is left'):
        fpe.expand(model, fpe.Expansion(partition="shared", prune="columns"), sites=sites)
    report = fpe.expand(model, alpha=2, sites=sites)
    assert report.nonzeros_after == report.nonzeros_before
    assert model(x).shape == (4, 3, 2, 2)
    check_masks(model)
