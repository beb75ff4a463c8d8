"""Pruning rules from outside of the package: what they see, what becomes of what they return, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

import fpe_lightning as fpe
from fpe_lightning.pruning import SiteWeights, register_pruning, resolve_pruning
from fpe_lightning.pruning.magnitude import remove_smallest
from fpe_lightning.sparse import check_masks, mask_of
from tests.support.nets import cnn, equal, mlp, snapshot, train

Masks = tuple[Sequence[Tensor], Sequence[Tensor]]


class Smallest:
    """The paper's rule, written as anybody would."""

    def keep(self, weights: SiteWeights, excess: int) -> Masks:
        split_at = len(weights.incoming)
        kept = remove_smallest(
            [*weights.incoming, *weights.outgoing], [*weights.incoming_masks, *weights.outgoing_masks], excess
        )
        return kept[:split_at], kept[split_at:]


class Refits(Smallest):
    """Gives the outgoing weights, and both biases, other values."""

    def finalize(self, weights: SiteWeights) -> SiteWeights:
        assert all(
            bool((weight[~mask] == 0).all())
            for weight, mask in zip(weights.outgoing, weights.outgoing_masks, strict=True)
        )
        return replace(
            weights,
            outgoing=[2 * weight for weight in weights.outgoing],
            biases=[None if bias is None else bias + 1 for bias in weights.biases],
            outgoing_biases=[None if bias is None else bias - 1 for bias in weights.outgoing_biases],
        )


class Returns:
    """Returns what it is told to."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def keep(self, weights: SiteWeights, excess: int) -> Any:
        return self.found


class Finalizes(Smallest):
    """Returns outgoing weights that a function gives."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change

    def finalize(self, weights: SiteWeights) -> SiteWeights:
        return replace(weights, outgoing=[self.change(weight) for weight in weights.outgoing])


class Raises(Smallest):
    """Changes in place whatever it is given, in both methods, and gives up."""

    def __init__(self, late: bool) -> None:
        self.late = late

    def keep(self, weights: SiteWeights, excess: int) -> Masks:
        if self.late:
            return super().keep(weights, excess)
        return self._spoil(weights)

    def finalize(self, weights: SiteWeights) -> SiteWeights:
        return self._spoil(weights)

    def _spoil(self, weights: SiteWeights) -> Any:
        for tensor in (*weights.incoming, *weights.outgoing, *weights.biases, *weights.outgoing_biases):
            if tensor is not None:
                tensor.fill_(7)
        for mask in (*weights.incoming_masks, *weights.outgoing_masks):
            mask.logical_not_()
        raise ValueError("no samples left.")


class Keeps(Smallest):
    """Prunes another number of weights than it is asked to."""

    def __init__(self, more: int) -> None:
        self.more = more

    def keep(self, weights: SiteWeights, excess: int) -> Masks:
        return super().keep(weights, excess - self.more)


def trained(model: nn.Module, x: Tensor) -> AdamW:
    optimizer = AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, x)
    return optimizer


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("widths", [(64, 8, 3), (64, 8, 8, 3)])
def test_the_rule_of_the_paper_from_outside_is_the_rule_of_the_paper(widths: tuple[int, ...], norm: bool) -> None:
    outcomes: list[Any] = []
    for prune in ("total", Smallest()):
        model, x = mlp(*widths, norm=norm), torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
        optimizer = trained(model, x)
        for _ in range(2):
            report = fpe.expand(model, fpe.Paper(prune=prune), optimizer=optimizer, example_inputs=x)
            train(model, optimizer, x)
        outcomes.append([dict(model.state_dict()), optimizer.state_dict(), report])
    assert equal(outcomes[0][:2], outcomes[1][:2])
    assert outcomes[0][2] == outcomes[1][2]


def test_kernels_of_convolutions_are_seen_whole() -> None:
    seen: list[SiteWeights] = []

    class Sees(Smallest):
        def keep(self, weights: SiteWeights, excess: int) -> Masks:
            seen.append(weights)
            return super().keep(weights, excess)

    one, other, x = cnn(), cnn(), torch.randn(2, 16, 8, 8)
    fpe.expand(one, fpe.Paper(prune=Sees()), sites=["0", "4"], example_inputs=x)
    fpe.expand(other, fpe.Paper(), sites=["0", "4"], example_inputs=x)
    assert equal(dict(one.state_dict()), dict(other.state_dict()))
    first, second = seen
    assert [tensor.shape for tensor in (*first.incoming, *first.outgoing)] == [(16, 16, 9), (4, 16, 9)]
    assert [tensor.shape for tensor in (*second.incoming, *second.outgoing)] == [(8, 16, 9), (6, 32, 1)]
    assert [[bias.shape[0] for bias in each.biases if bias is not None] for each in seen] == [[16], [8]]
    assert first.between == ["1.weight", "1.bias", "1.running_mean", "1.running_var"]


def test_a_rule_gives_values_to_the_model_and_to_averages_from_their_own() -> None:
    model, x = mlp(64, 8, 3), torch.randn(4, 64)
    optimizer = trained(model, x)
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.5)
    plain, plain_average = copy.deepcopy(model), copy.deepcopy(average)
    fpe.expand(plain, fpe.Paper(), averages=[plain_average], example_inputs=x)
    moments = copy.deepcopy(optimizer.state[model[2].bias])
    bias = model[2].bias
    report = fpe.expand(model, fpe.Paper(prune=Refits()), optimizer=optimizer, averages=[average], example_inputs=x)
    assert report.nonzeros_after == report.nonzeros_before == fpe.count_nonzeros(model)
    for found, expected in ((model, plain), (average, plain_average)):
        assert torch.equal(found[0].weight, expected[0].weight)
        assert torch.equal(found[0].bias, expected[0].bias + 1)
        assert torch.equal(found[2].weight, 2 * expected[2].weight)
        assert torch.equal(found[2].bias, expected[2].bias - 1)
        assert list(found.state_dict()) == list(expected.state_dict())
    assert model[2].bias is bias, "a parameter that is not widened stays the same object"
    assert equal(optimizer.state[bias], moments)
    train(model, optimizer, x)
    check_masks(model)


@pytest.mark.parametrize("late", [False, True], ids=["keep", "finalize"])
@pytest.mark.parametrize("splits", [0, 1])
def test_a_rule_that_raises_leaves_everything_as_it_was(late: bool, splits: int) -> None:
    model, x = mlp(64, 8, 8, 3, norm=True), torch.randn(4, 64)
    optimizer, average = trained(model, x), copy.deepcopy(model)
    for _ in range(splits):
        fpe.expand(
            model, fpe.Paper(prune="global"), sites="0", optimizer=optimizer, averages=[average], example_inputs=x
        )
        train(model, optimizer, x)
    before = [snapshot(model, optimizer), snapshot(average)]
    expansions = {"0": fpe.Paper(prune="incoming"), "*": fpe.Paper(prune=Raises(late))}
    with pytest.raises(ValueError, match=r"^3 cannot be pruned by Raises: no samples left\.$"):
        fpe.expand(model, expansions, optimizer=optimizer, averages=[average], example_inputs=x)
    assert equal(before, [snapshot(model, optimizer), snapshot(average)])


@pytest.mark.parametrize("more", [-1, 1, 5])
def test_a_rule_that_misses_the_count_is_refused_and_nothing_changes(more: int) -> None:
    model, x = mlp(64, 8, 3), torch.randn(4, 64)
    optimizer, average = trained(model, x), copy.deepcopy(model)
    before = [snapshot(model, optimizer), snapshot(average)]
    message = f"The pruning rule Keeps removes {32 - more} weights of 0 where 32 have to go"
    with pytest.raises(ValueError, match=message):
        fpe.expand(model, fpe.Paper(prune=Keeps(more)), optimizer=optimizer, averages=[average], example_inputs=x)
    assert equal(before, [snapshot(model, optimizer), snapshot(average)])


BOTH = ([torch.ones(16, 64, 1, dtype=torch.bool)], [torch.ones(3, 16, 1, dtype=torch.bool)])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ((BOTH[0], []), r"of shapes \(16, 64, 1\), \(3, 16, 1\), found \(16, 64, 1\)\."),
        (([mask[:8] for mask in BOTH[0]], BOTH[1]), r"found \(8, 64, 1\), \(3, 16, 1\)\."),
        (([mask.float() for mask in BOTH[0]], BOTH[1]), "it has to return bool masks of shapes"),
    ],
    ids=["a mask is missing", "another shape", "another type"],
)
def test_masks_that_do_not_fit_are_named_and_nothing_changes(found: Any, message: str) -> None:
    model = mlp(64, 8, 3)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"0 cannot be pruned by Returns: .*{message}"):
        fpe.expand(model, fpe.Paper(prune=Returns(found)), example_inputs=torch.zeros(2, 64))
    assert equal(before, snapshot(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight[:2], r"it has to return weights of shapes \(16, 64, 1\), \(3, 16, 1\)\."),
        (lambda weight: weight / 0, r"the weights that it returns hold NaN or infinity\."),
    ],
    ids=["another shape", "NaN"],
)
def test_values_that_do_not_fit_are_named_and_nothing_changes(change: Callable[[Tensor], Tensor], message: str) -> None:
    model = mlp(64, 8, 3)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"0 cannot be pruned by Finalizes: {message}"):
        fpe.expand(model, fpe.Paper(prune=Finalizes(change)), example_inputs=torch.zeros(2, 64))
    assert equal(before, snapshot(model))


def test_values_under_the_mask_stay_zero() -> None:
    model = mlp(64, 8, 3)
    fpe.expand(model, fpe.Paper(prune=Finalizes(torch.ones_like)), example_inputs=torch.zeros(2, 64))
    mask = mask_of(model[2])
    assert mask is not None
    assert torch.equal(model[2].weight, mask.float())
    check_masks(model)


class Fused(nn.Module):
    """One layer computes gates and values."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 8 + 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, 1)
        return self.down(gate.sigmoid() * value)


def test_a_rule_sees_a_bias_for_each_row_of_weights() -> None:
    models, x = [Fused(), Fused()], torch.randn(4, 64)
    models[1].load_state_dict(models[0].state_dict())
    fpe.expand(models[0], fpe.Paper(), example_inputs=x)
    fpe.expand(models[1], fpe.Paper(prune=Refits()), example_inputs=x)
    assert torch.equal(models[1].up.weight, models[0].up.weight)
    assert torch.equal(models[1].up.bias, models[0].up.bias + 1)
    assert torch.equal(models[1].down.bias, models[0].down.bias - 1)


def test_a_weight_that_computes_and_reads_its_neurons_is_named() -> None:
    model = Gate()
    before = snapshot(model)
    message = "first cannot be pruned by Smallest: `gate.weight` computes and reads its neurons, and would go twice"
    with pytest.raises(ValueError, match=message):
        fpe.expand(model, fpe.Paper(prune=Smallest()), example_inputs=torch.zeros(2, 64))
    assert equal(before, snapshot(model))


class Gate(nn.Module):
    """Units times a function of themselves: one square weight reads the units and computes them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(64, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.last(hidden * self.gate(hidden).sigmoid())


def test_a_mask_never_brings_weights_back() -> None:
    model, x = mlp(64, 8, 3), torch.randn(4, 64)
    fpe.expand(model, fpe.Paper(), example_inputs=x)
    before = mask_of(model[0])
    assert before is not None
    wide = ([torch.ones(32, 64, 1, dtype=torch.bool)], [torch.ones(3, 32, 1, dtype=torch.bool)])
    with pytest.raises(ValueError, match="The pruning rule Returns removes 0 weights of 0"):
        fpe.expand(model, fpe.Paper(prune=Returns(wide)), example_inputs=x)
    assert mask_of(model[0]) is before


def test_a_taken_name_and_what_is_no_rule_are_not_registered() -> None:
    with pytest.raises(ValueError, match="The pruning rule 'total' is registered already; choose another name"):
        register_pruning("total", Smallest())
    for rule in (3, Smallest, "totl"):
        with pytest.raises(ValueError, match=r"A pruning rule is a short name|Unknown pruning rule 'totl'"):
            register_pruning("test_no_rule", rule)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Unknown pruning rule 'test_no_rule'"):
        resolve_pruning("test_no_rule")
