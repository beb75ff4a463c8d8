"""Where a split tends to lose accuracy, and which number of children suits a site."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fpe_lightning.expansion.report import ExpansionWarning
from fpe_lightning.sites import Axis, Site, find_sites
from fpe_lightning.sites.sensible import sensible_sites
from fpe_lightning.sparse.masked import mask_of

SHARE = 0.75
"""Copies for each incoming weight, above which a split tends to lose."""
FEWEST = 16
"""Inputs of a child, below which a split tends to lose where there are several outputs."""
FEWEST_FOR_ONE = 5
"""The same where each neuron has one outgoing weight: a formula needs few inputs together."""

WIDE = 64
"""Neurons from which on no split gained more than a point over its dense parent."""
CHOICES = (4, 2)
"""Children of a neuron, the best first where none of them loses."""


@dataclass(frozen=True)
class Advice:
    """What to expect of one site.

    Attributes:
        site: The site.
        alpha: Children of each neuron; 1 where a split would hurt.
        rewire: Whether rewiring is worth its cost: wherever there are masks, after a split or from the start.
        inputs: Incoming weights of a neuron.
        copies: Parameters that each further child costs.
        masked: Bytes of the site's weights as masked ones, as a multiple of those now.
        folded: The same where incoming weights are folded.
        why: The reason, one sentence.
    """

    site: Site
    alpha: int
    rewire: bool
    inputs: float
    copies: float
    masked: float
    folded: float
    why: str

    def __str__(self) -> str:
        """One line for a person to read."""
        memory = f"memory x{self.masked:.2g} masked, x{self.folded:.2g} folded" if self.alpha > 1 else "as it is"
        rewire = "and rewire" if self.rewire else "no rewiring"
        return f"{self.site.name}: alpha={self.alpha}, {rewire}; {memory}. {self.why}"


def advise_sites(model: nn.Module, example_inputs: Any) -> list[Advice]:
    """Say for each site of a model how many children suit it, and why.

    The rule is fitted to the studies' cells and tested by leaving data sets out: ``docs/results/when_it_pays.md``.

    Args:
        model: Any module.
        example_inputs: Inputs of its forward pass.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 94))
        >>> [each.alpha for each in advise_sites(model, torch.zeros(1, 512))]
        [4]
        >>> print(*advise_sites(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 26)), torch.zeros(1, 16)))
        0: alpha=1, no rewiring; as it is. A child would get 8 of 16 inputs, and each costs 27 copies: ...
    """
    sites, _ = sensible_sites(model, [(site, 2) for site in find_sites(model, example_inputs)])
    return [advice_of(model, site) for site in sites]


def advice_of(model: nn.Module, site: Site) -> Advice:
    """The advice for one site; see :func:`advise_sites`."""
    incoming, outgoing = _count(model, site.producers), _count(model, site.consumers)
    inputs, copies = incoming / site.width, (outgoing + _count(model, site.values)) / site.width
    alpha = next((each for each in CHOICES if not tends_to_lose(inputs, copies, each)), 1)
    if alpha == 1:
        why = (
            f"A child would get {inputs / min(CHOICES):.3g} of {inputs:.3g} inputs, and each costs {copies:.3g} "
            "copies: a split tends to lose."
        )
    elif site.width >= WIDE:
        why = f"{site.width} neurons are many: expect a tie with the dense parent, and a gain from rewiring alone."
    else:
        why = f"{site.width} neurons are few, and {inputs:.3g} inputs are enough for {alpha} children: expect a gain."
    stored, copied = incoming + outgoing, alpha * outgoing
    masked = (alpha * incoming * 5 / 4 + copied) / stored if alpha > 1 else 1.0
    folded = (incoming * 5 / 4 + copied) / stored if alpha > 1 else 1.0
    return Advice(site, alpha, alpha > 1, inputs, copies, masked, folded, why)


def _count(model: nn.Module, axes: Iterable[Axis]) -> int:
    """Entries of the parameters of some axes that may be non-zero."""
    total = 0
    parameters = dict(model.named_parameters())
    for name in dict.fromkeys(axis.parameter for axis in axes):
        owner, _, own = name.rpartition(".")
        mask = mask_of(model.get_submodule(owner), own)
        total += int(mask.sum()) if mask is not None else parameters[name].numel() if name in parameters else 0
    return total


def tends_to_lose(inputs: float, copies: float, alpha: int) -> bool:
    """Whether a split tends to be less accurate than its dense parent after equally long training.

    The rule separates gains from losses in the table of ``docs/results/when_it_pays.md``.

    Args:
        inputs: Incoming weights of a neuron before the split.
        copies: Parameters that each further child costs: its outgoing weights and its bias.
        alpha: Children of each neuron.

    Example:
        >>> tends_to_lose(512, 95, 4), tends_to_lose(16, 27, 2), tends_to_lose(24, 2, 2)
        (False, True, False)
    """
    return _loses(inputs / alpha, (alpha - 1) * copies / inputs, copies)


def _loses(child: float, share: float, copies: float) -> bool:
    return child < (FEWEST_FOR_ONE if copies <= 2 else FEWEST) or share > SHARE


def warn_if_costly(what: str, incoming: int, excess: int, child: float, copies: float) -> None:
    """Warn where a split tends to lose accuracy.

    Args:
        what: The site, or the sites that are pruned together.
        incoming: Their incoming weights before the split.
        excess: Copies that the split adds.
        child: Inputs of a child before weights are pruned, at the site where these are fewest.
        copies: Parameters that each further child costs.
    """
    if incoming and _loses(child, excess / incoming, copies):
        warnings.warn(
            f"Splitting {what} adds {excess} copies to {incoming} incoming weights ({excess / incoming:.0%}), and as "
            f"many weights are pruned; before that a child gets {child:.3g} inputs. With few inputs and many outputs a "
            "split tends to lose accuracy; consider a smaller alpha.",
            ExpansionWarning,
            stacklevel=4,
        )
