"""Networks that train together end where separate runs end, splits in the middle included."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.networks import MLP, WideSparseMLP
from fpe_lightning.sparse.model_masks import check_masks
from studies.dropconnect import DropConnectMLP
from studies.stacked import Batches, Stack, gradient_of, train_together
from studies.stacked_optimizer import update

bce = nn.functional.binary_cross_entropy_with_logits


def adam(network: nn.Module, lr: float = 3e-3) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=lr)


def data(groups: int, n: int = 64, inputs: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(groups, n, inputs, generator=generator).sign()
    return x, (x[..., :3].sum(2) > 0).float().unsqueeze(1)


def train_alone(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, epochs: int) -> None:
    for _ in range(epochs):
        optimizer.zero_grad()
        bce(network(x).T, y).backward()
        optimizer.step()


def split(network: MLP, optimizer: torch.optim.Optimizer, seed: int, state: str) -> None:
    fpe.expand(
        network,
        fpe.ByShape(alpha=2, optimizer_state=state, seed=seed),
        optimizer=optimizer,
        example_inputs=torch.zeros(2, 12),
    )


@pytest.mark.parametrize("state", ["keep", "reset"])
@pytest.mark.parametrize("hidden", [4, [6, 4]])
def test_each_network_equals_a_run_of_its_own_with_a_split_in_the_middle(hidden: int | list[int], state: str) -> None:
    torch.manual_seed(0)
    x, y = data(groups=2)
    together = [MLP(12, hidden, 1) for _ in range(6)]
    alone = copy.deepcopy(together)
    optimizers, own = [adam(network) for network in together], [adam(network) for network in alone]

    train_together(together, optimizers, x, y, bce, epochs=40)
    for seed, (network, optimizer) in enumerate(zip(together, optimizers, strict=True)):
        split(network, optimizer, seed, state)
    if state == "reset":
        assert all(
            network.layers[0].weight not in each.state for network, each in zip(together, optimizers, strict=True)
        )
    train_together(together, optimizers, x, y, bce, epochs=40)

    for seed, (network, optimizer) in enumerate(zip(alone, own, strict=True)):
        group = seed // 3
        train_alone(network, optimizer, x[group], y[group], 40)
        split(network, optimizer, seed, state)
        train_alone(network, optimizer, x[group], y[group], 40)
        torch.testing.assert_close(together[seed].state_dict(), network.state_dict(), rtol=1e-4, atol=1e-5)
        for parameter, twin in zip(network.parameters(), together[seed].parameters(), strict=True):
            torch.testing.assert_close(optimizers[seed].state[twin], optimizer.state[parameter], rtol=1e-3, atol=1e-6)
        check_masks(together[seed])
    assert not torch.equal(together[0].layers[0].weight, together[1].layers[0].weight)


def test_two_classes_by_cross_entropy_and_weight_decay_equal_separate_runs() -> None:
    torch.manual_seed(0)
    x, y = data(groups=1)
    labels = y.squeeze(1).long()
    together: list[MLP] = [WideSparseMLP(12, 4, 2, alpha=2, seed=seed) for seed in range(3)]
    alone = copy.deepcopy(together)
    optimizers = [torch.optim.AdamW(network.parameters(), weight_decay=0.1) for network in together]
    train_together(together, optimizers, x, labels, nn.functional.cross_entropy, epochs=30)
    for network, twin in zip(alone, together, strict=True):
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.1)
        for _ in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[0]), labels[0]).backward()
            optimizer.step()
        torch.testing.assert_close(twin.state_dict(), network.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_each_network_in_mini_batches_equals_a_run_of_its_own_with_a_split_in_the_middle(shared: bool) -> None:
    torch.manual_seed(0)
    groups, n, seeds = 2, 50, [7, 3]
    x = torch.randn(1 if shared else groups, n, 12).expand(groups, n, 12)
    labels = x[..., :3].argmax(2)
    together = [MLP(12, 4, 3) for _ in range(6)]
    alone = copy.deepcopy(together)
    optimizers, own = [adam(network) for network in together], [adam(network) for network in alone]
    train_together(
        together, optimizers, x, labels, nn.functional.cross_entropy, epochs=6, batches=Batches(16, seeds), at_once=3
    )
    for seed, (network, optimizer) in enumerate(zip(together, optimizers, strict=True)):
        split(network, optimizer, seed, "keep")
    later = Batches(16, seeds, first_epoch=6)
    train_together(together, optimizers, x, labels, nn.functional.cross_entropy, epochs=6, batches=later)

    for seed, (network, optimizer) in enumerate(zip(alone, own, strict=True)):
        group = seed // 3
        for epoch in range(12):
            if epoch == 6:
                split(network, optimizer, seed, "keep")
            order = Batches(16, seeds).order(group, epoch, n)
            assert torch.equal(order.sort().values, torch.arange(n))
            for rows in order.split(16):  # the last has 2
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x[group, rows]), labels[group, rows]).backward()
                optimizer.step()
        torch.testing.assert_close(together[seed].state_dict(), network.state_dict(), rtol=1e-4, atol=1e-5)
        check_masks(together[seed])


def test_dropconnect_drops_the_weights_of_each_network_on_its_own() -> None:
    torch.manual_seed(0)
    x, y = data(groups=1)
    together = [DropConnectMLP(12, [6, 4], 1, keep=0.5, seed=seed) for seed in range(2)]
    alone, twin = copy.deepcopy(together[1]), DropConnectMLP(12, [6, 4], 1, keep=0.5, seed=1)
    train_together(together, [adam(network) for network in together], x, y, bce, epochs=10)
    optimizer = adam(alone)
    for _ in range(10):
        optimizer.zero_grad()
        *hidden, classifier = alone.linear_layers()
        z = x[0]
        for layer, drop in zip(hidden, twin.draw(), strict=True):
            z = nn.functional.linear(z, layer.weight * drop, layer.bias).relu()
        bce(classifier(z).T, y[0]).backward()
        optimizer.step()
    torch.testing.assert_close(together[1].state_dict(), alone.state_dict(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"in \(0, 1\], found 0"):
        DropConnectMLP(12, [6], 1, keep=0)
    with pytest.raises(ValueError, match="drop weights and networks that do not"):
        train_together([together[0], MLP(12, [6, 4], 1)], [adam(together[0])] * 2, x, y, bce, epochs=1)


def test_how_many_stand_in_one_stack_does_not_matter() -> None:
    torch.manual_seed(0)
    x, y = data(groups=4)
    few = [MLP(12, 4, 1) for _ in range(8)]
    many = copy.deepcopy(few)
    train_together(few, [adam(network) for network in few], x, y, bce, epochs=30, at_once=2)
    train_together(many, [adam(network) for network in many], x, y, bce, epochs=30, at_once=100)
    for one, other in zip(few, many, strict=True):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-4, atol=1e-5)


def test_a_network_that_diverges_leaves_the_others_alone() -> None:
    torch.manual_seed(0)
    x, y = data(groups=1)
    networks = [MLP(12, 4, 1) for _ in range(2)]
    healthy = copy.deepcopy(networks[1])
    nn.init.constant_(networks[0].layers[0].weight, float("nan"))
    train_together(networks, [adam(network) for network in networks], x, y, bce, epochs=20)
    train_alone(healthy, adam(healthy), x[0], y[0], 20)
    assert bool(networks[0].layers[0].weight.isnan().any())
    torch.testing.assert_close(networks[1].state_dict(), healthy.state_dict(), rtol=1e-4, atol=1e-5)


def test_progress_adds_up_to_epochs_times_networks() -> None:
    x, y = data(groups=3)
    networks = [MLP(12, 4, 1) for _ in range(6)]
    seen: list[int] = []
    train_together(networks, [adam(each) for each in networks], x, y, bce, 120, at_once=4, advance=seen.append)
    assert sum(seen) == 120 * 6


def test_what_is_written_out_has_the_bits_of_torch() -> None:
    torch.manual_seed(0)
    outputs, targets = 3 * torch.randn(6, 1, 50), (torch.rand(6, 1, 50) < 0.5).float()
    by_hand = gradient_of(bce, outputs, targets)
    assert torch.equal(by_hand, gradient_of(lambda x, y: bce(x, y), outputs, targets))

    values = [torch.randn(5, 7), torch.randn(5, 1)]
    copies = [value.clone() for value in values]
    kwargs: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}
    ours, torchs = torch.optim.Adam(values, fused=True, **kwargs), torch.optim.Adam(copies, fused=True, **kwargs)
    for _ in range(5):
        for value, copied in zip(values, copies, strict=True):
            value.grad = torch.randn_like(value)
            copied.grad = value.grad.clone()
        update(ours)
        torchs.step()
    for value, copied in zip(values, copies, strict=True):
        assert torch.equal(value, copied)
        assert all(torch.equal(ours.state[value][key], torchs.state[copied][key]) for key in ours.state[value])


def test_what_cannot_stand_in_one_stack_is_refused() -> None:
    pair = [MLP(12, 4, 1), MLP(12, 4, 1)]
    optimizers = [adam(network) for network in pair]
    other = MLP(12, 5, 1)
    with pytest.raises(ValueError, match="networks of one shape, found 2 shapes"):
        Stack([pair[0], other], [optimizers[0], adam(other)])
    with pytest.raises(ValueError, match="an optimizer for each network, found 1 for 2"):
        Stack(pair, optimizers[:1])
    with pytest.raises(ValueError, match="ReLU between them, found Tanh"):
        Stack([tanh := MLP(12, 4, 1, activation="tanh")], [adam(tanh)])
    with pytest.raises(ValueError, match="found a layer without bias"):
        Stack([bare := MLP(12, 4, 1, bias=False)], [adam(bare)])
    fpe.expand(
        grouped := MLP(12, 4, 1), fpe.Expansion(partition="shared", layout="grouped"), example_inputs=torch.zeros(2, 12)
    )
    with pytest.raises(ValueError, match="holds masked weights, found blocks"):
        Stack([grouped], [adam(grouped)])
    with pytest.raises(ValueError, match="Optimizer 1 of a stack differs"):
        Stack(pair, [optimizers[0], adam(pair[1], lr=0.1)])
    with pytest.raises(ValueError, match="found RMSprop"):
        Stack(pair[:1], [torch.optim.RMSprop(pair[0].parameters())])
    with pytest.raises(ValueError, match="hold all parameters of its network"):
        Stack(pair[:1], [torch.optim.Adam(pair[0].layers[0].parameters())])
    x, y = data(groups=1)
    train_alone(pair[0], optimizers[0], x[0], y[0], 1)
    with pytest.raises(ValueError, match="some have state where others have none"):
        Stack(pair, optimizers)
    train_alone(pair[1], optimizers[1], x[0], y[0], 2)
    with pytest.raises(ValueError, match="equally far, found `step`"):
        Stack(pair, optimizers)
    with pytest.raises(ValueError, match="at least 1, found 0"):
        Batches(0, [1])
    with pytest.raises(ValueError, match="2 networks cannot share 3 groups"):
        train_together(pair, optimizers, *data(groups=3), bce, epochs=1)
