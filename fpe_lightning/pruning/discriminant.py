"""Make room in both layers by what the children turn out to be good for, and refit the classifier that reads them.

Copies of an outgoing weight are equal, and so are their magnitudes: a budget of magnitudes drops the small ones of all
children together, and the large ones never. What a class should read is a matter of the children, which are no copies
of each other. Here the classifier is fitted anew to the children by linear discriminant analysis, in closed form from
training samples; the copies that matter least to the fit go, and the fit stays. It needs samples and their classes,
nothing else, and a parent that has been trained for a while: a classifier fitted to untrained neurons is a poor one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from fpe_lightning.pruning.magnitude import remove_smallest
from fpe_lightning.sparse.masked import mask_of


@runtime_checkable
class BudgetRule(Protocol):
    """A budget of the caller's own, for a site of one linear layer before an activation and one after it."""

    def keep(self, incoming: Tensor, bias: Tensor | None, alive: Tensor, outgoing: int, excess: int) -> list[Tensor]:
        """Choose what stays.

        Args:
            incoming: ``(children, inputs)``, their weights; zero where ``alive`` is not.
            bias: ``(children,)``, or None.
            alive: Bool ``(children, inputs)``.
            outgoing: Outputs of the layer that reads the children.
            excess: How many weights have to go.

        Returns:
            Bool ``(children, inputs)`` and ``(outputs, children)`` with ``excess`` fewer entries than ``alive`` and a
            dense outgoing layer have.
        """

    def settle(self, producer: nn.Linear, consumer: nn.Linear) -> None:
        """Change weights of the two layers under their new masks, in place."""


class DiscriminantRefit:
    """Half of the room is made by outgoing weights, chosen by a fit of the classifier to the children, which stays.

    Incoming weights go by magnitude. Of the outgoing ones those go whose contribution to their class varies least over
    the samples, weight times standard deviation of the child, after the fit; every child keeps at least one of them.
    Ties go to the weight that comes first.

    Args:
        inputs: ``(n, inputs)``, training samples as the layer that is split sees them.
        targets: ``(n,)`` bool or integer class numbers.
        activation: What stands between the layers.
        samples: At most as many samples are looked at.
        shrinkage: What is added to the variance within classes, as a share of each child's whole variance.

    Raises:
        ValueError: If inputs and targets do not fit, or a class has no samples among those looked at.

    Example:
        >>> import fpe_lightning as fpe
        >>> x = torch.randn(300, 20, generator=Generator().manual_seed(0))
        >>> y = torch.arange(300) % 3
        >>> model = nn.Sequential(nn.Linear(20, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> report = fpe.expand(model, alpha=2, budget=DiscriminantRefit(x, y), example_inputs=x[:2])
        >>> report.nonzeros_before == report.nonzeros_after, report.sites[0].removed_outgoing
        (True, 8)
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        samples: int = 4096,
        shrinkage: float = 0.1,
    ) -> None:
        if targets.dim() != 1 or targets.is_floating_point() or len(inputs) != len(targets):
            raise ValueError(
                f"`targets` are class numbers, bool or integer, one for each of the {len(inputs)} samples; found "
                f"{targets.dtype} {tuple(targets.shape)}."
            )
        chosen = torch.randperm(len(inputs), generator=Generator().manual_seed(0))[:samples]
        self.inputs, self.targets = inputs[chosen].double(), targets[chosen].long()
        self.activation, self.shrinkage = activation, shrinkage
        self.counts = self.targets.bincount(minlength=int(targets.max()) + 1)
        if not bool((self.counts > 0).all()):
            missing = int((self.counts == 0).sum())
            raise ValueError(f"{missing} classes have no sample among {len(chosen)}: give more `samples`.")

    def keep(self, incoming: Tensor, bias: Tensor | None, alive: Tensor, outgoing: int, excess: int) -> list[Tensor]:
        """See :class:`BudgetRule`."""
        children = len(incoming)
        from_outgoing = min(excess // 2, (outgoing - 1) * children)
        (kept,) = remove_smallest([incoming], [alive], excess - from_outgoing)
        weight, _, spread = self.fit(incoming * kept, bias, outgoing)
        saliency = weight.abs() * spread
        saliency[saliency.argmax(0), torch.arange(children)] = torch.inf
        stays = torch.ones(outgoing * children, dtype=torch.bool)
        stays[saliency.flatten().sort(stable=True).indices[:from_outgoing]] = False
        return [kept, stays.view(outgoing, children)]

    @torch.no_grad()
    def settle(self, producer: nn.Linear, consumer: nn.Linear) -> None:
        """Write the fit into the layer that reads the children."""
        bias = None if producer.bias is None else producer.bias.detach().cpu()
        weight, offset, _ = self.fit(producer.weight.detach().cpu(), bias, consumer.out_features)
        mask = mask_of(consumer)
        consumer.weight.copy_(weight if mask is None else weight * mask.cpu())
        if consumer.bias is not None:
            consumer.bias.copy_(offset)

    def fit(self, incoming: Tensor, bias: Tensor | None, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
        """Fit a linear classifier to the children.

        Args:
            incoming: ``(children, inputs)``.
            bias: ``(children,)``, or None.
            outputs: One for each class, or one alone that tells two classes apart.

        Returns:
            Weights ``(outputs, children)``, biases ``(outputs,)`` and each child's standard deviation ``(children,)``,
            float64. What all outputs have in common is taken off, as a softmax does not see it.

        Raises:
            ValueError: If the outputs do not fit the classes.
        """
        classes = len(self.counts)
        if outputs != classes and (outputs, classes) != (1, 2):
            raise ValueError(f"A layer of {outputs} outputs does not tell {classes} classes apart: it cannot be refit.")
        hidden = self.activation(self.inputs @ incoming.double().T + (0 if bias is None else bias.double()))
        mean, spread = hidden.mean(0), hidden.std(0, correction=0)
        centred = hidden - mean
        means = torch.zeros(classes, hidden.shape[1], dtype=torch.float64).index_add_(0, self.targets, centred)
        means /= self.counts.unsqueeze(1)
        inside = centred - means[self.targets]
        within = inside.T @ inside / len(hidden) + torch.diag(self.shrinkage * spread.square() + 1e-6)
        weight = torch.linalg.solve(within, means.T).T
        offset = -(weight * means).sum(1) / 2 - weight @ mean
        if outputs == 1:
            return weight[1:] - weight[:1], offset[1:] - offset[:1], spread
        return weight - weight.mean(0), offset - offset.mean(), spread
