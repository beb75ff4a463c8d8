"""The pruning rule that refits the classifier to the children."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.partitions import Affinity
from fpe_lightning.pruning import DiscriminantRefit, SiteWeights


def data(classes: int = 3, n: int = 240) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    return torch.randn(n, 20, generator=generator) + 2 * nn.functional.one_hot(y, 20), y


def network(outputs: int = 3, hidden: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def test_both_layers_are_pruned_and_every_child_keeps_an_output() -> None:
    (x, y), model = data(), network()
    report = fpe.expand(model, fpe.Expansion(alpha=2, prune=DiscriminantRefit().fit(x, y)), example_inputs=x[:2])
    assert fpe.count_nonzeros(model) == report.nonzeros_before == 99
    # 12 copies and 4 biases are added: half of them go in either layer.
    assert (report.sites[0].removed_incoming, report.sites[0].removed_outgoing) == (8, 8)
    assert bool(model[2].fpe_mask_weight.any(0).all())
    assert not bool(model[2].weight[~model[2].fpe_mask_weight].any())


def test_one_output_is_never_taken_from_a_child() -> None:
    x, y = data(classes=2)
    model = network(outputs=1)
    report = fpe.expand(model, fpe.Expansion(alpha=2, prune=DiscriminantRefit().fit(x, y)), example_inputs=x[:2])
    assert (report.sites[0].removed_incoming, report.sites[0].removed_outgoing) == (8, 0)


def test_the_fit_is_the_linear_discriminant_of_the_children() -> None:
    x, y = data(classes=2)
    refit = DiscriminantRefit(activation=lambda hidden: hidden, shrinkage=0.0).fit(x, y)
    weight, offset, spread = refit.classifier(torch.eye(20), None, outputs=1)
    first, second = (x[y == label].double() for label in (0, 1))
    apart = second.mean(0) - first.mean(0)
    within = (first.T.cov(correction=0) + second.T.cov(correction=0)) / 2
    torch.testing.assert_close(weight[0], torch.linalg.solve(within, apart), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(spread, x.double().std(0, correction=0))
    # The border lies half-way between the means of two classes of equal size.
    assert abs(float(weight[0] @ (first.mean(0) + second.mean(0)) / 2 + offset)) < 1e-4


def test_the_fit_is_what_stays_under_the_mask() -> None:
    (x, y), model = data(), network()
    refit = DiscriminantRefit().fit(x, y)
    fpe.expand(model, fpe.Expansion(alpha=2, prune=refit), example_inputs=x[:2])
    weight, offset, _ = refit.classifier(model[0].weight.detach(), model[0].bias.detach(), 3)
    torch.testing.assert_close(model[2].weight, (weight * model[2].fpe_mask_weight).float())
    torch.testing.assert_close(model[2].bias, offset.float())


def test_it_is_the_same_every_time() -> None:
    (x, y), models = data(), [network(), network()]
    for model in models:
        fpe.expand(model, fpe.Expansion(alpha=2, prune=DiscriminantRefit().fit(x, y), seed=3), example_inputs=x[:2])
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_cannot_be_refit_is_refused_and_nothing_changes() -> None:
    x, y = data()
    with pytest.raises(ValueError, match=r"`targets` are class numbers, .* found torch.float32 \(240,\)"):
        DiscriminantRefit().fit(x, y.float())
    with pytest.raises(ValueError, match="2 classes have no sample among 1: give more `samples`"):
        DiscriminantRefit(samples=1).fit(x, y)
    model = network(outputs=5)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="A layer of 5 outputs does not tell 3 classes apart"):
        fpe.expand(model, fpe.Expansion(alpha=2, prune=DiscriminantRefit().fit(x, y)), example_inputs=x[:2])
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    normed = nn.Sequential(nn.Linear(20, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(
        ValueError, match="DiscriminantRefit needs one linear layer before and one after, and no norm between"
    ):
        fpe.expand(normed, fpe.Expansion(alpha=2, prune=DiscriminantRefit().fit(x, y)), example_inputs=x[:2])


class KeepsAll:
    """A rule that prunes nothing."""

    def keep(self, weights: SiteWeights, excess: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return weights.incoming_masks, weights.outgoing_masks


def test_a_rule_that_misses_the_count_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match="The pruning rule KeepsAll removes 0 weights of 0 where 16 have to go"):
        fpe.expand(model, fpe.Expansion(alpha=2, prune=KeepsAll()), example_inputs=torch.zeros(2, 20))
    assert model[0].weight.shape == (4, 20)


def test_an_affinity_divides_what_each_neuron_still_reads() -> None:
    affinity = torch.zeros(6, 6)
    affinity[0, 1] = affinity[1, 0] = affinity[2, 3] = affinity[3, 2] = 1
    alive = torch.tensor([[True, True, True, True, False, False], [False, False, True, True, True, True]])
    child = Affinity(affinity)(torch.zeros(2, 6, 1), alive, 2, torch.Generator().manual_seed(0))
    first, second = child.tolist()
    assert first[0] == first[1] != first[2] == first[3]
    assert second[2] == second[3] != second[4] == second[5]
