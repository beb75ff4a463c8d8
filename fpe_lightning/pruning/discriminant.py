"""Prune both layers by how useful the children are, and refit the classifier that reads them.

Copies of an outgoing weight are equal, and so are their magnitudes: an order of magnitudes prunes the small ones of all
children together, and the large ones never. But children differ, and a class should read those that tell it apart.
Here linear discriminant analysis fits the classifier to the children, in closed form from training samples. The copies
that matter least to the fit go, and the fit stays. The rule needs samples and their classes, and a parent that has
been trained for a while: a classifier fitted to untrained neurons is a poor one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional

from fpe_lightning.arguments import check_samples
from fpe_lightning.pruning.magnitude import remove_smallest
from fpe_lightning.pruning.pruning import FinalizingRule, SiteWeights


@dataclass(frozen=True)
class DiscriminantRefit(FinalizingRule):
    """Half of the pruned weights are outgoing ones, chosen by a fit of the classifier to the children.

    Incoming weights go by magnitude. Of the outgoing ones those go whose contribution to their class varies least over
    the samples: weight times standard deviation of the child, after the fit. Every child keeps at least one. Ties go
    to the weight that comes first. It prunes a site of one linear layer before an activation and one after it.

    Args:
        activation: The function between the layers.
        samples: At most as many samples are used.
        shrinkage: Added to the variance within classes, as a share of each child's whole variance.

    Example:
        >>> import fpe_lightning as fpe
        >>> from torch import nn
        >>> x = torch.randn(300, 20, generator=Generator().manual_seed(0))
        >>> y = torch.arange(300) % 3
        >>> model = nn.Sequential(nn.Linear(20, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> report = fpe.expand(model, fpe.Paper(prune=DiscriminantRefit()), data=(x, y), example_inputs=x[:2])
        >>> report.nonzeros_before == report.nonzeros_after, report.sites[0].removed_outgoing
        (True, 8)
    """

    activation: Callable[[Tensor], Tensor] = functional.relu
    samples: int = 4096
    shrinkage: float = 0.1
    _x: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    _y: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def fitted(self) -> bool:
        """Whether it has seen samples."""
        return self._x is not None

    def fit(self, x: Tensor, y: Tensor) -> DiscriminantRefit:
        """Return a copy that is fitted to training samples.

        Args:
            x: ``(n, inputs)``, as the layer that is split reads them.
            y: ``(n,)`` bool or integer class numbers, from 0.

        Raises:
            ValueError: If samples and classes do not fit, or a class has no samples among those used.
        """
        check_samples(x, y)
        # The same samples on every process, and in a run that resumes.
        chosen = torch.randperm(len(x), generator=Generator().manual_seed(0))[: self.samples]
        classes = y[chosen].long()
        present = classes.unique()
        missing = int(present.max()) + 1 - len(present)
        if int(present.min()) < 0 or missing:
            raise ValueError(f"{missing} classes have no sample among {len(chosen)}: give more `samples`.")
        found = replace(self)
        # The class is frozen, as it is a part of an expansion; the samples are no field of its constructor.
        object.__setattr__(found, "_x", x[chosen].double())
        object.__setattr__(found, "_y", classes)
        return found

    def keep(self, weights: SiteWeights, excess: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """See :class:`~fpe_lightning.pruning.pruning.PruningRule`.

        Raises:
            ValueError: If the site is no pair of linear layers, or the outputs do not fit the classes.
        """
        incoming, bias = self._pair(weights)
        alive, before = weights.incoming_masks[0][:, :, 0], weights.outgoing_masks[0][:, :, 0]
        outputs, children = before.shape
        # Half from each side, but each child keeps an outgoing weight.
        from_outgoing = min(excess // 2, (outputs - 1) * children)
        (kept,) = remove_smallest([incoming], [alive], excess - from_outgoing)
        # The classifier of the children as they will be tells which outgoing weights matter.
        weight, _, spread = self.classifier(incoming * kept, bias, outputs)
        saliency = weight.abs() * spread
        # The largest outgoing weight of each child stays.
        saliency[saliency.argmax(0), torch.arange(children)] = torch.inf
        stays = torch.ones(outputs * children, dtype=torch.bool)
        stays[saliency.flatten().sort(stable=True).indices[:from_outgoing]] = False
        return [kept.unsqueeze(2)], [(stays.view(outputs, children) & before).unsqueeze(2)]

    def finalize(self, weights: SiteWeights) -> SiteWeights:
        """Write the fit into the layer that reads the children."""
        incoming, bias = self._pair(weights)
        mask = weights.outgoing_masks[0]
        weight, offset, _ = self.classifier(incoming, bias, len(mask))
        biases = [None if before is None else offset for before in weights.outgoing_biases]
        return replace(weights, outgoing=[weight.unsqueeze(2) * mask], outgoing_biases=biases)

    def _pair(self, weights: SiteWeights) -> tuple[Tensor, Tensor | None]:
        """The incoming weights ``(children, inputs)`` and biases of a site of two linear layers."""
        kernels = [tensor.shape[2] for tensor in (*weights.incoming, *weights.outgoing)]
        if len(weights.incoming) != 1 or len(weights.outgoing) != 1 or kernels != [1, 1] or weights.between:
            raise ValueError("DiscriminantRefit needs one linear layer before and one after, and no norm between them.")
        return weights.incoming[0][:, :, 0], weights.biases[0]

    def classifier(self, incoming: Tensor, bias: Tensor | None, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
        """Fit a linear classifier to the children.

        Args:
            incoming: ``(children, inputs)``.
            bias: ``(children,)``, or None.
            outputs: One for each class, or one alone that tells two classes apart.

        Returns:
            Weights ``(outputs, children)``, biases ``(outputs,)`` and each child's standard deviation ``(children,)``,
            float64. The part that all outputs have in common is taken off, as a softmax does not see it.

        Raises:
            ValueError: If there are no samples yet, or the outputs do not fit the classes.
        """
        if self._x is None or self._y is None:
            raise ValueError(
                "DiscriminantRefit needs training samples: call `DiscriminantRefit().fit(x, y)`, or pass "
                "`data=(x, y)` to `expand`."
            )
        counts = self._y.bincount()
        classes = len(counts)
        if outputs != classes and (outputs, classes) != (1, 2):
            raise ValueError(f"A layer of {outputs} outputs does not tell {classes} classes apart: it cannot be refit.")
        hidden = self.activation(self._x @ incoming.double().T + (0 if bias is None else bias.double()))
        mean, spread = hidden.mean(0), hidden.std(0, correction=0)
        centred = hidden - mean
        # Means of the classes, and the covariance within classes, shrunk towards its diagonal.
        means = torch.zeros(classes, hidden.shape[1], dtype=torch.float64).index_add_(0, self._y, centred)
        means /= counts.unsqueeze(1)
        inside = centred - means[self._y]
        within = inside.T @ inside / len(hidden) + torch.diag(self.shrinkage * spread.square() + 1e-6)
        weight = torch.linalg.solve(within, means.T).T
        offset = -(weight * means).sum(1) / 2 - weight @ mean
        if outputs == 1:
            return weight[1:] - weight[:1], offset[1:] - offset[:1], spread
        return weight - weight.mean(0), offset - offset.mean(), spread
