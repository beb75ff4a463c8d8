"""How masks change while a stack of networks trains: weights move, or go, after each epoch.

The networks of a stack keep masks in one tensor a layer, ``(networks, out, in)``, and so do the gradients that a dense
network would have, summed over the epoch. All functions work on one network of the stack at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from typing_extensions import override

from fpe_lightning.networks import MLP
from fpe_lightning.sparse.masked import mask_of, set_mask
from studies.stacked import Stack


@dataclass(frozen=True)
class Schedule:
    """A change of masks at the end of epochs.

    Attributes:
        until: Share of the training after which masks stay as they are.
        begin: Share of the training before which they do.
        every: Epochs from one change to the next; gradients are those of the last of them.
    """

    until: float = 0.75
    begin: float = 0.0
    every: int = 1

    def apply(self, stack: Stack, done: float, alpha: int, seeds: Sequence[int]) -> None:
        """Change the masks of a stack, once an epoch.

        Args:
            stack: Networks, whose dense gradients are those of the epoch.
            done: Finished share of the training.
            alpha: Children of each neuron, which stand next to each other.
            seeds: Of the networks.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Moves(Schedule):
    """Dynamic sparse training: the smallest weights move to better places, and their number stays.

    After Evci et al. (ICML 2020): the share falls from ``fraction`` to zero along a cosine.

    Attributes:
        growth: Places that get a weight: those of largest dense gradient of the epoch, or any, at random.
        fraction: Share of a layer's weights that move at first.
        scope: Weights move within each layer that has zeros, or from any layer to any, the classifier included.
        folded: Whether at most one child of a neuron reads an input, so that the children's weights fit the dense
            parent's matrix.
    """

    growth: Literal["gradient", "random"] = "gradient"
    fraction: float = 0.3
    scope: Literal["layer", "model"] = "layer"
    folded: bool = False

    @override
    def apply(self, stack: Stack, done: float, alpha: int, seeds: Sequence[int]) -> None:
        if not self.begin <= done < self.until:
            return
        passed = (done - self.begin) / (self.until - self.begin)
        share = self.fraction / 2 * (1 + math.cos(math.pi * passed))
        layers = [layer for layer, mask in enumerate(stack.masks) if mask is not None]
        for network, seed in enumerate(seeds):
            generator = Generator().manual_seed(1_000_003 * seed + round(1e6 * done))
            for group in [layers] if self.scope == "model" else [[layer] for layer in layers]:
                self._move(stack, network, group, share, alpha, generator)

    def _move(
        self, stack: Stack, network: int, layers: Sequence[int], share: float, alpha: int, generator: Generator
    ) -> None:
        masks = [stack.masks_of(layer)[network] for layer in layers]
        alive = torch.cat([mask.flatten() for mask in masks])
        count = min(int(share * int(alive.sum())), int((~alive).sum()))
        if count < 1:
            return
        magnitude = torch.cat([stack.weights[layer][network].flatten().abs() for layer in layers])
        drop = magnitude.masked_fill(~alive, math.inf).sort(stable=True).indices[:count]
        left = alive.clone()
        left[drop] = False
        sizes = [mask.numel() for mask in masks]
        scores = []
        for layer, mask, rest in zip(layers, masks, left.split(sizes), strict=True):
            score = stack.dense[layer][network].abs() if self.growth == "gradient" else _drawn(mask, generator)
            score = score.masked_fill(mask, -1)  # a weight that was dropped does not come back at once
            scores.append(_one_child(score, rest.view_as(mask), alpha) if self.folded and layer == 0 else score)
        grow = torch.cat([score.flatten() for score in scores]).sort(descending=True, stable=True).indices[:count]
        left[grow] = True
        changed = torch.zeros_like(left)
        changed[drop] = changed[grow] = True
        for layer, new, moved in zip(layers, left.split(sizes), changed.split(sizes), strict=True):
            stack.remask(layer, network, new, moved)


@dataclass(frozen=True)
class Shrink(Schedule):
    """Gradual magnitude pruning (Zhu and Gupta, 2017) of the hidden layer, from dense to the budget along a cubic."""

    begin: float = 0.1

    def density(self, done: float, last: float) -> float:
        """Share of the hidden layer's weights at a moment, where ``last`` of them are left in the end."""
        left = max(0.0, 1 - max(0.0, done - self.begin) / (self.until - self.begin))
        return last + (1 - last) * left**3

    @override
    def apply(self, stack: Stack, done: float, alpha: int, seeds: Sequence[int]) -> None:
        masks = stack.masks_of(0)
        size = masks[0].numel()
        keep = round(size * self.density(done, room(stack.weights[0].shape, len(stack.weights[1][0]), alpha) / size))
        for network, mask in enumerate(masks):
            order = stack.weights[0][network].abs().masked_fill(~mask, -1).flatten()
            new = torch.zeros_like(order, dtype=torch.bool)
            new[order.sort(descending=True, stable=True).indices[:keep]] = True
            stack.remask(0, network, new, new != mask.flatten())


def mask_all_(network: MLP, schedule: Schedule) -> None:
    """Give a mask, of all weights, to the layers without one that a schedule changes."""
    *hidden, last = network.linear_layers()
    everywhere = isinstance(schedule, Moves) and schedule.scope == "model"
    gradual = isinstance(schedule, Shrink)
    for layer in [*(hidden if everywhere or gradual else []), *([last] if everywhere else [])]:
        if mask_of(layer) is None:
            set_mask(layer, "weight", torch.ones_like(layer.weight, dtype=torch.bool))


def room(shape: Sequence[int], outputs: int, alpha: int) -> int:
    """Hidden weights that a wide network may have next to a dense classifier, to cost as much as its dense parent.

    Args:
        shape: Of the wide hidden layer's weights; the first but last number is that of its neurons.
        outputs: Of the classifier.
        alpha: How much wider it is.

    Example:
        >>> room((8, 64), 10, 2)
        212
    """
    *_, wide, inputs = shape
    narrow = wide // alpha
    return narrow * (inputs + 1 + outputs) - wide * (1 + outputs)


def _drawn(mask: Tensor, generator: Generator) -> Tensor:
    return torch.rand(mask.shape, generator=generator)


def _one_child(score: Tensor, alive: Tensor, alpha: int) -> Tensor:
    """Scores of free slots (parent, input), each at its best child; all other places get -1.

    Example:
        >>> score = torch.tensor([[1.0, 5.0], [2.0, 3.0]])
        >>> _one_child(score, torch.tensor([[False, False], [False, True]]), 2)
        tensor([[-1., -1.],
                [ 2., -1.]])
    """
    score, alive = score.unflatten(0, (-1, alpha)), alive.unflatten(0, (-1, alpha))
    best = torch.zeros_like(alive).scatter_(1, score.argmax(1, keepdim=True), True)
    return score.masked_fill(alive.any(1, keepdim=True) | ~best, -1).flatten(0, 1)
