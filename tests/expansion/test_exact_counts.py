"""Every combination of fields keeps the number of non-zeros exactly, or is refused and changes nothing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

import fpe_lightning as fpe
from fpe_lightning.partitions import Contiguous, Shared
from fpe_lightning.pruning import Magnitude
from fpe_lightning.sparse import check_masks, masked_parameters
from tests.support.nets import cnn, equal, mlp, snapshot, train

RULES: list[Any] = [
    *("total", "incoming", "outgoing", "global", "columns"),
    *(Magnitude(side=side, scope="model") for side in ("both", "outgoing")),  # type: ignore[arg-type]
]
PARTITIONS: list[Any] = [
    "random",
    "shared",
    "contiguous",
    "feature",
    "overlapping",
    Shared(groups=2),
    Contiguous(groups=2),
]

nets = st.tuples(st.integers(24, 48), st.lists(st.sampled_from([4, 6, 8]), min_size=1, max_size=3), st.integers(4, 9))


def _values(state: dict[str, Any]) -> list[Any]:
    """All but the order of optimizer states, and which objects buffers are: blocks are masked while a split lasts."""
    (optimizer,) = state["optimizers"]
    return [
        {**state, "objects": None, "optimizers": None},
        sorted(optimizer["state"]),
        *map(optimizer["state"].get, sorted(optimizer["state"])),
    ]


def split_twice(model: nn.Module, x: torch.Tensor, expansion: fpe.Expansion, second: fpe.Expansion) -> int:
    """Train, split, train, split, train; return how many splits there were before one was refused."""
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    train(model, optimizer, x)
    before = fpe.count_nonzeros(model)
    for done, each in enumerate((expansion, second)):
        state, held = snapshot(model, optimizer), list(model.parameters())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", fpe.ExpansionWarning)
                report = fpe.expand(model, each, optimizer=optimizer, example_inputs=x)
        except ValueError:
            assert equal(_values(state), _values(snapshot(model, optimizer)))
            assert all(now is then for now, then in zip(model.parameters(), held, strict=True))
            return done
        assert report.nonzeros_before == report.nonzeros_after == before == fpe.count_nonzeros(model)
        together = sum(site.removed_incoming + site.removed_outgoing for site in report.sites)
        assert together > 0 or each.outgoing == "partition" or not any(p.dim() == 1 for p in model.parameters())
        train(model, optimizer, x)
        check_masks(model)
        assert sum(int(p.count_nonzero()) for p in model.parameters()) <= before
    return 2


@settings(max_examples=25, deadline=None)
@given(
    sizes=nets,
    bias=st.booleans(),
    norm=st.booleans(),
    alpha=st.integers(2, 4),
    prune=st.sampled_from(["total", "incoming"]),
    partition=st.sampled_from(PARTITIONS),
    layout=st.sampled_from(["masked", "grouped"]),
    seed=st.integers(0, 99),
)
def test_outgoing_weights_that_are_partitioned(
    sizes: Any, bias: bool, norm: bool, alpha: int, prune: Any, partition: Any, layout: Any, seed: int
) -> None:
    inputs, hidden, outputs = sizes
    if partition in ("random", "overlapping"):
        layout = "masked"
    model, x = mlp(inputs, *hidden, outputs, bias=bias, norm=norm, seed=seed), torch.randn(4, inputs)
    first = fpe.Expansion(alpha=alpha, partition=partition, prune=prune, outgoing="partition", layout=layout, seed=seed)
    split_twice(model, x, first, fpe.Paper(outgoing="partition", prune=prune))


@pytest.mark.parametrize("prune", ["total", "incoming", "columns"])
def test_a_child_keeps_the_outgoing_weights_of_its_stretch(prune: Any) -> None:
    model = mlp(64, 8, 9, bias=False)
    before = model[2].weight.detach().clone()
    (site,) = fpe.expand(
        model, fpe.Expansion(prune=prune, outgoing="partition"), example_inputs=torch.zeros(2, 64)
    ).sites
    weight = model[2].weight.detach().view(9, 8, 2)
    assert torch.equal(weight.sum(2), before), "one copy of each outgoing weight stays"
    assert torch.equal(weight[:5, :, 1], torch.zeros(5, 8))
    assert torch.equal(weight[5:, :, 0], torch.zeros(4, 8))
    assert (site.removed_incoming, site.removed_outgoing) == (0, 72), "nothing has to be pruned for the copies"
    assert site.fan_in_after == 32


def test_fewer_outputs_than_children_are_refused() -> None:
    model = mlp(64, 8, 3)
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"assigns the 3 outputs of `2.weight` to alpha=4 children .* some would get none"
    ):
        fpe.expand(model, fpe.Expansion(alpha=4, outgoing="partition"), example_inputs=torch.zeros(2, 64))
    assert equal(before, snapshot(model))


@settings(max_examples=25, deadline=None)
@given(
    sizes=nets,
    bias=st.booleans(),
    norm=st.booleans(),
    alpha=st.integers(2, 3),
    side=st.sampled_from(["both", "incoming", "outgoing"]),
    partition=st.sampled_from(PARTITIONS),
    outgoing=st.sampled_from(["copy", "partition"]),
    seed=st.integers(0, 99),
)
def test_one_order_for_the_whole_model(
    sizes: Any, bias: bool, norm: bool, alpha: int, side: Any, partition: Any, outgoing: Any, seed: int
) -> None:
    inputs, hidden, outputs = sizes
    rule = Magnitude(side=side, scope="model")
    model, x = mlp(inputs, *hidden, outputs, bias=bias, norm=norm, seed=seed), torch.randn(4, inputs)
    expansion = fpe.Expansion(alpha=alpha, partition=partition, prune=rule, outgoing=outgoing, seed=seed)
    split_twice(model, x, expansion, fpe.Paper(prune=rule))


@pytest.mark.parametrize("side", ["both", "outgoing"])
def test_what_goes_is_smaller_than_what_stays_in_any_site(side: Any) -> None:
    model, x = mlp(64, 8, 8, 12), torch.zeros(2, 64)
    parent = [layer.weight.detach().clone() for layer in model if isinstance(layer, nn.Linear)]
    report = fpe.expand(model, fpe.Paper(prune=Magnitude(side=side, scope="model")), example_inputs=x)
    masks = {name: mask for name, _, mask in masked_parameters(model)}
    assert sum(int((~mask).sum()) for mask in masks.values()) > 0
    assert report.nonzeros_after == report.nonzeros_before
    if side == "outgoing":
        assert torch.equal(masks["0.weight"].view(8, 2, 64).sum(1), torch.ones(8, 64, dtype=torch.int64))
    # The classifier alone is read by nobody: its copies stay or go by magnitude, whatever its partition.
    copies = parent[2].abs().repeat_interleave(2, 1)
    gone, kept = copies[~masks["4.weight"]], copies[masks["4.weight"]]
    assert len(gone) > 0
    assert gone.max() <= kept.min()


def test_a_classifier_that_would_vanish_is_refused() -> None:
    model = mlp(64, 8, 8, 2)
    with torch.no_grad():
        model[4].weight.mul_(1e-6)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"for the whole model prunes all weights of `4\.weight`"):
        fpe.expand(model, fpe.Paper(prune=Magnitude(scope="model")), example_inputs=torch.zeros(2, 64))
    assert equal(before, snapshot(model))


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
@pytest.mark.parametrize("outgoing", ["copy", "partition"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_convolutions_keep_the_count_by_every_rule(rule: Any, outgoing: Any) -> None:
    model, x = cnn(), torch.randn(2, 16, 8, 8)
    assert split_twice(model, x, fpe.Expansion(prune=rule, outgoing=outgoing), fpe.Paper(prune="global")) > 0
