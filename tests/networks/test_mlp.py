"""MLPs at one budget: exact counts for all sizes, masks that hold and repeat, initial weights, refusals, loading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fpe_lightning as fpe
from fpe_lightning import count_nonzeros, load_expanded_state_dict
from fpe_lightning.networks import MLP, Expanded, WideSparseMLP
from fpe_lightning.networks.mlp import ACTIVATIONS
from fpe_lightning.networks.sparse_init import ALLOCATIONS
from fpe_lightning.sparse import mask_of, masked_parameters


def expanded(in_features: int, hidden: Any, out_features: int, *, seed: int = 0, **options: Any) -> Expanded:
    """An MLP that is split at construction by the rule of the paper."""
    return Expanded(MLP(in_features, hidden, out_features, **options), fpe.Paper(seed=seed))


SIZES = {
    "in_features": st.integers(96, 160),
    "hidden": st.lists(st.integers(2, 10), min_size=1, max_size=3),
    "out_features": st.integers(1, 3),
    "bias": st.booleans(),
    "batch_norm": st.booleans(),
}


def expected_count(
    in_features: int, hidden: list[int], out_features: int, bias: bool = True, batch_norm: bool = False
) -> int:
    """Parameters of a dense MLP, counted by hand."""
    count, inputs = 0, in_features
    for outputs in [*hidden, out_features]:
        count += inputs * outputs + (outputs if bias else 0)
        inputs = outputs
    return count + (2 * sum(hidden) if batch_norm else 0)


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries(SIZES))
def test_a_dense_mlp_counts_every_parameter(sizes: dict[str, Any]) -> None:
    network = MLP(**sizes)
    assert count_nonzeros(network) == expected_count(**sizes) == sum(p.numel() for p in network.parameters())


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries(SIZES), st.sampled_from(ALLOCATIONS), st.integers(1, 3), st.integers(0, 5))
def test_a_wide_sparse_mlp_keeps_the_dense_budget(
    sizes: dict[str, Any], allocation: str, alpha: int, seed: int
) -> None:
    network = WideSparseMLP(**sizes, alpha=alpha, allocation=allocation, seed=seed)
    assert count_nonzeros(network) == expected_count(**sizes)
    assert [layer.out_features for layer in network.linear_layers()[:-1]] == [alpha * w for w in sizes["hidden"]]
    if allocation != "even":
        assert mask_of(network.linear_layers()[-1], "weight") is None


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
@settings(max_examples=10, deadline=None)
@given(
    st.fixed_dictionaries(SIZES),
    st.integers(2, 3),
    st.sampled_from(["random", "shared"]),
    st.integers(0, 5),
)
def test_an_expanded_mlp_keeps_the_dense_budget(sizes: dict[str, Any], alpha: int, partition: str, seed: int) -> None:
    network = Expanded(MLP(**sizes), fpe.Paper(alpha=alpha, partition=partition, seed=seed))
    assert count_nonzeros(network) == expected_count(**sizes)
    assert (network.in_features, network.out_features) == (sizes["in_features"], sizes["out_features"])
    assert network(torch.zeros(3, sizes["in_features"])).shape == (3, sizes["out_features"])


def test_fan_in_allocation_gives_each_neuron_as_many_inputs_to_within_one() -> None:
    for layer in WideSparseMLP(40, [8, 8], 3, alpha=2, allocation="fan_in").linear_layers()[:-1]:
        mask = mask_of(layer, "weight")
        assert mask is not None
        fan_in = mask.sum(1)
        assert int(fan_in.max() - fan_in.min()) <= 1


def test_even_allocation_gives_layers_the_same_density_to_within_one_weight() -> None:
    layers = WideSparseMLP(40, [8, 8], 5, alpha=2, allocation="even").linear_layers()
    masks = [mask_of(layer, "weight") for layer in layers]
    kept = [int(mask.sum()) for mask in masks if mask is not None]
    total = sum(layer.weight.numel() for layer in layers)
    for layer, count in zip(layers, kept, strict=True):
        assert abs(count - layer.weight.numel() * sum(kept) / total) < 1


@pytest.mark.parametrize("make", [WideSparseMLP, expanded])
def test_masks_are_decided_by_the_seed_alone(make: Callable[..., nn.Module]) -> None:
    def masks(seed: int) -> list[torch.Tensor]:
        return [mask for name, mask in make(40, 8, 3, seed=seed).named_buffers() if "fpe_mask" in name]

    torch.manual_seed(1)
    first = masks(0)
    torch.manual_seed(2)
    assert first
    if make is WideSparseMLP:  # pruning in a split also looks at the weights
        assert all(torch.equal(a, b) for a, b in zip(first, masks(0), strict=True))
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, masks(0), strict=True))
    torch.manual_seed(1)
    assert any(not torch.equal(a, b) for a, b in zip(first, masks(1), strict=True))


def test_drawing_a_mask_leaves_the_global_random_state_alone() -> None:
    states = []
    for seed in (0, 1):
        torch.manual_seed(0)
        WideSparseMLP(40, 8, 3, seed=seed)
        states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[1])


def test_sparse_layers_are_drawn_within_the_bound_of_their_connectivity() -> None:
    layer = WideSparseMLP(400, 20, 5, alpha=4).linear_layers()[0]
    mask = mask_of(layer, "weight")
    assert mask is not None
    bound = (400 * float(mask.float().mean())) ** -0.5
    largest = float(layer.weight.detach().abs().max())
    assert 0.95 * bound < largest <= bound
    assert float(layer.bias.detach().abs().max()) <= bound


@pytest.mark.parametrize("make", [WideSparseMLP, expanded])
def test_masked_weights_stay_zero_under_adamw(make: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    network = make(40, 8, 3, batch_norm=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    before = count_nonzeros(network)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(network(torch.randn(16, 40)), torch.randint(3, (16,))).backward()
        optimizer.step()
    assert count_nonzeros(network) == before
    masked = list(masked_parameters(network))
    assert masked
    assert not any(parameter.detach()[~mask].any() for _, parameter, mask in masked)


@pytest.mark.parametrize("make", [WideSparseMLP, expanded])
def test_a_state_dict_goes_into_a_fresh_network_of_another_seed(make: Callable[..., nn.Module]) -> None:
    network, fresh = make(40, 8, 3, seed=0), make(40, 8, 3, seed=1)
    x = torch.randn(4, 40)
    assert not torch.equal(network(x), fresh(x))
    load_expanded_state_dict(fresh, network.state_dict())
    assert torch.equal(network(x), fresh(x))
    assert count_nonzeros(fresh) == count_nonzeros(network)


def test_a_split_network_goes_into_a_dense_one() -> None:
    network, dense = expanded(40, 8, 3), MLP(40, 8, 3)
    load_expanded_state_dict(dense, network.network.state_dict())
    x = torch.randn(4, 40)
    assert torch.equal(network(x), dense(x))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_layers_are_in_the_usual_order(activation: str) -> None:
    network = MLP(6, [5, 4], 3, activation, bias=False, batch_norm=True, dropout=0.5)
    block = ["Linear", "BatchNorm1d", ACTIVATIONS[activation].__name__, "Dropout"]
    assert [type(layer).__name__ for layer in network.layers] == [*block, *block, "Linear"]
    assert all(layer.bias is None for layer in network.linear_layers())
    assert (network.in_features, network.out_features) == (6, 3)


def test_an_integer_is_one_hidden_layer() -> None:
    assert [tuple(p.shape) for p in MLP(6, 5, 3).parameters()] == [tuple(p.shape) for p in MLP(6, [5], 3).parameters()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(0, 8, 3), "`in_features` takes integers of at least 1, found 0"),
        (lambda: MLP(4, [], 3), r"a hidden layer, found sizes \[4, 3\]"),
        (lambda: MLP(4, [8, 0], 3), r"`hidden` takes integers of at least 1, found \[8, 0\]"),
        (lambda: MLP(4, 8, 3, activation="rleu"), "Unknown activation 'rleu'; known: relu, gelu"),
        (lambda: MLP(4, 8, 3, dropout=1.5), "has to be between 0 and 1"),
        (
            lambda: WideSparseMLP(40, 8, 3, allocation="hiden"),
            "Unknown allocation 'hiden'; known: hidden, even, fan_in",
        ),
        (lambda: WideSparseMLP(40, 8, 3, alpha=0), "`alpha` has to be an integer of at least 1, found 0"),
        (lambda: WideSparseMLP(4, 8, 30, alpha=4), "zeros among .* leave .* use a smaller alpha"),
        (lambda: Expanded(MLP(40, 8, 3), fpe.Paper(alpha=0)), "alpha"),
        (lambda: Expanded(MLP(40, 8, 3), fpe.Paper(partition="rndom")), "rndom"),
        (lambda: Expanded(MLP(40, 8, 3), fpe.Paper(alpha=41)), "alpha=41 was asked for layers.0"),
    ],
)
def test_what_cannot_be_built_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_hidden_biases_of_wide_sparse_may_begin_at_zero() -> None:
    torch.manual_seed(0)
    drawn = WideSparseMLP(32, [6, 5], 3, alpha=2)
    torch.manual_seed(0)
    zero = WideSparseMLP(32, [6, 5], 3, alpha=2, zero_bias=True)
    for layer, other in zip(zero.linear_layers(), drawn.linear_layers(), strict=True):
        assert torch.equal(layer.weight, other.weight)
    assert not any(layer.bias.any() for layer in zero.linear_layers()[:-1])
    assert torch.equal(zero.linear_layers()[-1].bias, drawn.linear_layers()[-1].bias)
    assert count_nonzeros(zero) == count_nonzeros(drawn)
