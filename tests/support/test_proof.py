"""The duplication proof accepts true sites only, and leaves the model alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from fpe_lightning.sites import find_sites
from tests.support.nets import Net
from tests.support.proof import duplicate, prove_site, prove_sites, randomize

EXAMPLE = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))


def flattened() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24, 5))


def test_a_true_site_holds_with_power() -> None:
    model = flattened()
    (site,) = find_sites(model, EXAMPLE)
    proof = prove_site(model, site, EXAMPLE)
    assert proof.holds
    assert proof.error < 1e-12 < 1e-3 < proof.power


def test_a_true_site_holds_where_every_other_unit_is_silent() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    random = copy.deepcopy(model).double()
    randomize(random, seed=0)
    examples = torch.randn(500, 1, 8, generator=torch.Generator().manual_seed(0))
    active = random[0](examples.double()).squeeze(1) > 0
    for silent in (0, 1):
        chosen = ~active[:, silent::2].any(1) & active[:, 1 - silent :: 2].any(1)
        example = examples[chosen][0]
        (site,) = find_sites(model, example)
        assert prove_site(model, site, example).holds


def test_a_wrong_order_of_columns_does_not_hold() -> None:
    model = flattened()
    (site,) = find_sites(model, EXAMPLE)
    wrong = replace(site, consumers=(replace(site.consumers[0], run=1),))
    assert not prove_site(model, wrong, EXAMPLE).holds


def test_an_output_that_the_site_does_not_reach_is_no_proof() -> None:
    model = Net(lambda self, x: 0 * self.net(x) + 1, net=flattened())
    (site,) = find_sites(model, EXAMPLE)
    proof = prove_site(model, site, EXAMPLE)
    assert (proof.error, proof.power, proof.holds) == (0, 0, False)


def test_three_copies_compute_the_same_function() -> None:
    model = flattened().double().eval()
    wide = duplicate(model, find_sites(model, EXAMPLE.double()), alpha=3)
    assert (wide[0].out_channels, wide[1].num_features, wide[4].in_features) == (12, 12, 288)
    torch.testing.assert_close(wide(EXAMPLE.double()), model(EXAMPLE.double()))


def test_the_model_and_the_random_numbers_are_left_alone() -> None:
    model = flattened()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    prove_sites(model, find_sites(model, EXAMPLE), EXAMPLE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
