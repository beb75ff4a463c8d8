"""``prune="global"``: one order of magnitudes over the incoming weights of all sites."""

from __future__ import annotations

import copy
import itertools
import warnings

import pytest
import torch
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.partitions import Contiguous
from fpe_lightning.sparse.masked import mask_of

pytestmark = pytest.mark.filterwarnings("ignore:Splitting 0 by alpha=2", "ignore:Splitting 2 by alpha=2")
X = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))


def deep(classes: int = 40, inputs: int = 64) -> nn.Sequential:
    """Many inputs, two narrow layers and a wide classifier, which the last hidden layer cannot pay copies of."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, classes))


def test_the_first_layer_pays_for_the_classifier() -> None:
    model = deep()
    parent = copy.deepcopy(model)
    with pytest.raises(ValueError, match="too little is left"):
        fpe.expand(copy.deepcopy(model), fpe.Expansion(alpha=2, prune="incoming"), example_inputs=X)
    report = fpe.expand(model, fpe.Expansion(alpha=2, prune="global"), example_inputs=X)
    assert report.nonzeros_before == report.nonzeros_after == fpe.count_nonzeros(model)
    assert mask_of(model[4]) is None, "the classifier stays dense"
    assert torch.equal(model[4].weight, parent[4].weight.repeat_interleave(2, 1))
    # 16 biases, 64 copies of the second layer's weights, 320 of the classifier's.
    assert sum(site.removed_incoming for site in report.sites) == 16 + 64 + 320
    assert [site.removed_outgoing for site in report.sites] == [report.sites[1].removed_incoming, 0]
    alive = [int(mask_of(model[index]).count_nonzero()) for index in (0, 2)]  # type: ignore[union-attr]
    assert alive == [64 * 8 - report.sites[0].removed_incoming, 128 - report.sites[1].removed_incoming]
    assert [site.fan_in_after for site in report.sites] == [alive[0] / 16, alive[1] / 16]


def test_what_goes_is_smaller_than_what_stays_in_any_layer() -> None:
    model = deep()
    parent = copy.deepcopy(model)
    fpe.expand(model, fpe.Expansion(alpha=2, prune="global"), example_inputs=X)
    kept = [model[index].weight.detach().abs()[mask_of(model[index])] for index in (0, 2)]
    first, second = (mask_of(model[index]) for index in (0, 2))
    assert first is not None
    assert second is not None
    gone = parent[0].weight.detach().abs()[~first.view(8, 2, 64).any(1)]
    assert len(gone) > 0
    # An entry of the second layer stands in one child of its neuron and twice along its inputs, which tie.
    copies = second.view(8, 2, 8, 2).sum((1, 3))
    gone = torch.cat([gone, parent[2].weight.detach().abs()[copies < 2]])
    assert gone.max() <= torch.cat(kept).min()


@pytest.mark.parametrize("partition", ["random", "shared", Contiguous(groups=2)])
def test_one_site_is_split_as_its_incoming_weights_alone_would_have_it(partition: str | Contiguous) -> None:
    first, second = deep(4), deep(4)
    reports = [
        fpe.expand(model, fpe.Expansion(alpha=2, partition=partition, prune=prune), sites=["0"], example_inputs=X)
        for model, prune in ((first, "global"), (second, "incoming"))
    ]
    assert reports[0] == reports[1]
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize(("alpha", "partition"), list(itertools.product([2, 3], ["random", "feature", "overlapping"])))
def test_repeated_splits_keep_the_budget_and_the_optimizer(alpha: int, partition: str) -> None:
    model, x = deep(8, inputs=256), torch.randn(4, 256)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = fpe.count_nonzeros(model)
    for factor in (alpha, 2):
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fpe.ExpansionWarning)
            fpe.expand(
                model,
                fpe.Expansion(alpha=factor, partition=partition, prune="global"),
                optimizer=optimizer,
                example_inputs=x,
            )
        assert fpe.count_nonzeros(model) == before
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
    assert model[2].weight.shape == (16 * alpha, 16 * alpha)


def test_grouped_blocks_hold_what_the_masked_layout_holds() -> None:
    masked, grouped = deep(8), deep(8)
    for model, layout in ((masked, "masked"), (grouped, "grouped")):
        fpe.expand(
            model,
            fpe.Expansion(alpha=2, partition="shared", prune="global", layout=layout),
            sites=["0"],
            example_inputs=X,
        )
    assert torch.allclose(masked(X), grouped(X), atol=1e-6)


def test_a_layer_that_would_vanish_is_refused_and_nothing_changes() -> None:
    model = deep(40)
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"for the whole model prunes all weights of `2\.weight`, whose magn"):
        fpe.expand(model, fpe.Expansion(alpha=2, prune="global"), example_inputs=X)
    assert model[0].out_features == 8
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_copies_that_cost_more_than_there_is_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Splitting 0 by alpha=2, 2 by alpha=2 adds 8080 copies.*too little is left"):
        fpe.expand(deep(1000), fpe.Expansion(alpha=2, prune="global"), example_inputs=X)


def test_a_costly_split_is_warned_of_once_for_all_sites() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fpe.expand(deep(40), fpe.Expansion(alpha=2, prune="global"), example_inputs=X)
    (only,) = caught
    assert str(only.message).startswith("Splitting 0 by alpha=2, 2 by alpha=2 adds 400 copies to 640 incoming weights")
    assert only.filename == __file__, "it points at the caller"
