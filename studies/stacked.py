"""Small networks of one shape train together, as one stacked batch.

A small network spends most of a training step on the overhead of calling tensor operations. Here the weights of many
networks (seeds, arms) stand in one tensor ``(networks, out, in)``, every product is a batched one, and the optimizer
steps on the stack. Each network ends where a run of its own would have ended, to within rounding.

The networks stay ordinary modules with optimizers of their own, so a split in the middle needs nothing new::

    train_together(networks, optimizers, inputs, targets, loss, epochs=300)
    for network, optimizer in zip(networks, optimizers):
        fpe.expand(network, alpha=2, partition="random", optimizer=optimizer, sites=sites)
    train_together(networks, optimizers, inputs, targets, loss, epochs=1700)

The backward pass is written out: its buffers are made once and used in every step, which is most of the gain over
automatic differentiation where the batch is large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fpe_lightning.networks import MLP
from fpe_lightning.sparse.layout import layout_of
from fpe_lightning.sparse.masked import mask_of, set_mask
from studies.batches import Batches as Batches
from studies.dropconnect import DropConnectMLP
from studies.stacked_optimizer import stack_optimizers, unstack_optimizer, update

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs ``(networks, out, n)`` and their targets to the mean over everything, as torch's loss functions do."""

# The overload by name: choosing one in every call would cost more than the operation.
relu_backward = torch.ops.aten.threshold_backward.grad_input


class Stack:
    """Networks of one shape and their optimizers, as one.

    Args:
        networks: ReLU networks with the same sizes, without norms and dropout; masks may differ.
        optimizers: One for each network, over all of its parameters, of one class and with the same options.
        watched: Whether to sum the gradients that weights without masks would have, in ``dense``.

    Raises:
        ValueError: If the networks or optimizers cannot stand in one stack.

    Example:
        >>> networks = [MLP(4, 3, 1), MLP(4, 3, 1)]
        >>> stack = Stack(networks, [torch.optim.Adam(network.parameters()) for network in networks])
        >>> [tuple(weight.shape) for weight in stack.weights]
        [(2, 3, 4), (2, 1, 3)]
    """

    def __init__(self, networks: Sequence[MLP], optimizers: Sequence[Optimizer], watched: bool = False) -> None:
        _check(networks, optimizers)
        self.networks, self.optimizers = list(networks), list(optimizers)
        layers = list(zip(*(network.linear_layers() for network in networks), strict=True))
        self.weights = [_stacked([layer.weight for layer in row]) for row in layers]
        # One column, so that a bias is added to outputs whose last axis is the samples.
        self.biases = [_stacked([layer.bias for layer in row]).detach().unsqueeze(2) for row in layers]
        self.masks = [_stacked_masks(row) for row in layers]
        self.parameters = [*self.weights, *self.biases]
        self._owned = [[each.weight for each in row] for row in layers] + [
            [each.bias for each in row] for row in layers
        ]
        self.optimizer = stack_optimizers(self.optimizers, self._owned, self.parameters)
        self._buffers: dict[int, list[tuple[Tensor, Tensor]]] = {}
        masked = [layer for layer, mask in enumerate(self.masks) if mask is not None and watched]
        self.dense = {layer: torch.zeros_like(self.weights[layer]) for layer in masked}

    def step(self, inputs: Tensor, transposed: Tensor, targets: Tensor, loss: Loss) -> None:
        """Take one optimizer step.

        Args:
            inputs: ``(groups, n, in)`` float32; consecutive networks share the inputs of a group.
            transposed: The same as ``(groups, in, n)``.
            targets: ``(networks, ...)``, as ``loss`` takes them.
            loss: See :data:`Loss`.
        """
        groups, n, _ = inputs.shape
        buffers = self._buffers_of(n)
        drops = self._drops()
        weights = [weight if drop is None else weight * drop for weight, drop in zip(self.weights, drops, strict=True)]
        hidden = self._forward(transposed, weights, buffers)
        gradient = gradient_of(loss, hidden[-1], targets)
        for layer in reversed(range(len(weights))):
            weight, mask, drop = weights[layer], self.masks[layer], drops[layer]
            self.biases[layer].grad = gradient.sum(2, keepdim=True)
            if layer == 0:
                grad = torch.bmm(gradient.view(groups, -1, n), inputs).view_as(weight)
            else:
                grad = torch.bmm(gradient, hidden[layer - 1].transpose(1, 2))
            if layer in self.dense:
                self.dense[layer].add_(grad)
            grad = grad if mask is None else grad.masked_fill_(~mask, 0)
            self.weights[layer].grad = grad if drop is None else grad.mul_(drop)
            if layer:
                buffer = buffers[layer - 1][1]
                # One output makes an outer product, for which a matrix product is several times slower.
                product = torch.mul if weight.shape[1] == 1 else torch.bmm
                product(weight.transpose(1, 2), gradient, out=buffer)
                gradient = relu_backward(buffer, hidden[layer - 1], 0, grad_input=buffer)
        update(self.optimizer)

    def _drops(self) -> list[Tensor | None]:
        """Factors of the weights of this step; None for a layer that drops nothing."""
        drawn = [network.draw() for network in self.networks if isinstance(network, DropConnectMLP)]
        hidden = [torch.stack(row) for row in zip(*drawn, strict=True)] if drawn else [None] * (len(self.weights) - 1)
        return [*hidden, None]

    def _buffers_of(self, n: int) -> list[tuple[Tensor, Tensor]]:
        """Room for the outputs of every layer and their gradients, ``(networks, out, n)`` each."""
        if n not in self._buffers:
            shapes = [(*weight.shape[:2], n) for weight in self.weights]
            self._buffers[n] = [(torch.empty(shape), torch.empty(shape)) for shape in shapes]
        return self._buffers[n]

    def _forward(self, transposed: Tensor, weights: list[Tensor], buffers: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The outputs of every layer, ``(networks, out, n)`` each, in buffers that the next step overwrites."""
        groups, _, n = transposed.shape
        values: list[Tensor] = []
        last = len(weights) - 1
        for layer, (weight, bias, (out, _)) in enumerate(zip(weights, self.biases, buffers, strict=True)):
            if layer == 0:
                torch.bmm(weight.view(groups, -1, weight.shape[2]), transposed, out=out.view(groups, -1, n))
            else:
                torch.bmm(weight, values[-1], out=out)
            values.append(out.add_(bias) if layer == last else out.add_(bias).relu_())
        return values

    def masks_of(self, layer: int) -> Tensor:
        """The masks of a layer that has some, bool ``(networks, out, in)``."""
        masks = self.masks[layer]
        assert masks is not None
        return masks

    def remask(self, layer: int, network: int, mask: Tensor, changed: Tensor) -> None:
        """Give the weights of one layer of one network another mask.

        Args:
            layer: Of a mask already.
            network: The network.
            mask: Bool, ``(out * in,)``.
            changed: Entries of the mask that are new or gone; weights and moments there become zero.
        """
        masks, weight = self.masks_of(layer), self.weights[layer]
        masks[network] = mask.view_as(masks[network])
        for each in (weight, *self.optimizer.state.get(weight, {}).values()):
            if each.shape == weight.shape:
                each[network].masked_fill_(changed.view_as(each[network]), 0)

    @torch.no_grad()
    def unstack(self) -> None:
        """Write weights, masks and optimizer states back into the networks and optimizers that came in."""
        for layer in self.dense:
            for network, mask in zip(self.networks, self.masks_of(layer), strict=True):
                set_mask(network.linear_layers()[layer], "weight", mask.clone())
        for own, stacked in zip(self._owned, self.parameters, strict=True):
            for parameter, value in zip(own, stacked, strict=True):
                parameter.copy_(value.view_as(parameter))
        unstack_optimizer(self.optimizer, self.parameters, self.optimizers, self._owned)


def train_together(
    networks: Sequence[MLP],
    optimizers: Sequence[Optimizer],
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    epochs: int,
    at_once: int = 16,
    advance: Callable[[int], None] | None = None,
    batches: Batches | None = None,
    after: Callable[[Stack, int], None] | None = None,
) -> None:
    """Train networks of one shape for some epochs, in place, each as if it were alone.

    Args:
        networks: See :class:`Stack`; consecutive networks share the data of a group.
        optimizers: One for each network.
        inputs: ``(groups, n, in)`` float32; the number of groups divides the number of networks. An expanded view
            serves where all groups have the same samples.
        targets: ``(groups, ..., n)``, repeated for the networks of a group, as the second argument of ``loss``.
        loss: See :data:`Loss`.
        epochs: Passes over all ``n`` samples.
        at_once: Networks of a stack; more do not fit into the processor's cache and gain nothing. Groups stay whole.
        advance: Called with the number of finished epochs times networks, now and then, for a progress bar.
        batches: How each group goes through its samples; None takes all of them in one step.
        after: Called at the end of each epoch with the stack and the number of finished epochs. The stack's ``dense``
            then holds the gradients of that epoch, in each masked layer as if there were no mask.

    Raises:
        ValueError: If the networks cannot stand in one stack, or do not fit the groups.

    Example:
        >>> networks = [MLP(4, 3, 1), MLP(4, 3, 1)]
        >>> optimizers = [torch.optim.Adam(network.parameters()) for network in networks]
        >>> inputs, targets = torch.randn(1, 8, 4), torch.ones(1, 1, 8)
        >>> train_together(networks, optimizers, inputs, targets, nn.functional.binary_cross_entropy_with_logits, 3)
        >>> [int(optimizer.state[network.layers[0].weight]["step"]) for network, optimizer in zip(networks, optimizers)]
        [3, 3]
    """
    groups = len(inputs)
    if not networks or len(networks) % groups:
        raise ValueError(f"{len(networks)} networks cannot share {groups} groups of samples evenly.")
    each = len(networks) // groups
    together = max(1, at_once // each)
    for first in range(0, groups, together):
        part = slice(first, first + together)
        members = slice(first * each, (first + together) * each)
        stack = Stack(networks[members], optimizers[members], watched=after is not None)
        run = (
            _all_at_once(stack, inputs[part], targets[part], loss)
            if batches is None
            else (_in_batches(stack, inputs[part], targets[part], loss, batches, range(groups)[part]))
        )
        often = 50 if batches is None else 1
        for epoch in range(1, epochs + 1):
            run(epoch - 1)
            if after is not None:
                after(stack, epoch)
                for gradient in stack.dense.values():
                    gradient.zero_()
            if advance and (epoch % often == 0 or epoch == epochs):
                advance(len(stack.networks) * (epoch % often or often))
        stack.unstack()


def gradient_of(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The gradient of each network's own mean loss.

    Args:
        loss: See :data:`Loss`; its mean is over all networks, so the sum of their own means is that many times it.
        outputs: ``(networks, out, n)``.
        targets: As ``loss`` takes them.

    Returns:
        ``(networks, out, n)``.

    Example:
        >>> gradient_of(nn.functional.binary_cross_entropy_with_logits, torch.zeros(2, 1, 2), torch.ones(2, 1, 2))[0]
        tensor([[-0.2500, -0.2500]])
    """
    if loss is nn.functional.binary_cross_entropy_with_logits:
        # The result of automatic differentiation, to the same bits, without the value of the loss.
        return outputs.sigmoid().sub_(targets).mul_(len(outputs)).div_(outputs.numel())
    leaf = outputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, targets) * len(outputs), leaf)
    return gradient


def _all_at_once(stack: Stack, inputs: Tensor, targets: Tensor, loss: Loss) -> Callable[[int], None]:
    """One epoch where all samples make one step; their layouts are made once."""
    x, y = inputs.contiguous(), targets.repeat_interleave(len(stack.networks) // len(inputs), 0)
    transposed = x.transpose(1, 2).contiguous()
    return lambda epoch: stack.step(x, transposed, y, loss)


def _in_batches(
    stack: Stack, inputs: Tensor, targets: Tensor, loss: Loss, batches: Batches, groups: range
) -> Callable[[int], None]:
    """One epoch in mini-batches; the last one may be smaller."""
    each, n = len(stack.networks) // len(inputs), inputs.shape[1]

    def epoch(number: int) -> None:
        orders = [batches.order(group, number, n).split(batches.size) for group in groups]
        for rows in zip(*orders, strict=True):
            x = torch.stack([own[chosen] for own, chosen in zip(inputs, rows, strict=True)])
            y = torch.stack([own[..., chosen] for own, chosen in zip(targets, rows, strict=True)])
            stack.step(x, x.transpose(1, 2), y.repeat_interleave(each, 0), loss)

    return epoch


def _check(networks: Sequence[MLP], optimizers: Sequence[Optimizer]) -> None:
    shapes = {tuple(tuple(parameter.shape) for parameter in network.parameters()) for network in networks}
    if len(shapes) != 1:
        raise ValueError(f"A stack needs networks of one shape, found {len(shapes)} shapes; stack each on its own.")
    if len({isinstance(network, DropConnectMLP) for network in networks}) != 1:
        raise ValueError("Networks that drop weights and networks that do not cannot stand in one stack.")
    if len(optimizers) != len(networks):
        raise ValueError(f"A stack needs an optimizer for each network, found {len(optimizers)} for {len(networks)}.")
    for network in networks:
        linears = network.linear_layers()
        others = {type(layer).__name__ for layer in network.layers if layer not in linears} - {"ReLU"}
        if others or any(layer.bias is None for layer in linears):
            found = ", ".join(sorted(others)) or "a layer without bias"
            raise ValueError(f"A stack holds linear layers with biases and ReLU between them, found {found}.")
        if any(layout_of(layer).packs for layer in linears):
            raise ValueError('A stack holds masked weights, found blocks; split with partition="random".')


def _stacked(parameters: Sequence[Tensor]) -> Tensor:
    return torch.stack([parameter.detach() for parameter in parameters])


def _stacked_masks(layers: Sequence[nn.Linear]) -> Tensor | None:
    masks = [mask_of(layer) for layer in layers]
    if all(mask is None for mask in masks):
        return None
    return torch.stack(
        [
            torch.ones_like(layer.weight, dtype=torch.bool) if mask is None else mask
            for layer, mask in zip(layers, masks, strict=True)
        ]
    )
