"""As many children as suit each site, by the rule of :mod:`fpe_lightning.expansion.advice`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import nn
from typing_extensions import override

from fpe_lightning.expansion.advice import advice_of
from fpe_lightning.expansion.by_shape import ByShape
from fpe_lightning.expansion.config import BaseExpansion, Paper, SiteExpansion
from fpe_lightning.sites import Site


@dataclass(frozen=True, kw_only=True)
class Auto(BaseExpansion):
    """Four children, two, or none for each site, as its shapes say; ``alpha="auto"`` is short for it.

    Layers are split as :class:`~fpe_lightning.expansion.by_shape.ByShape` splits them, and small ones prune incoming
    weights alone. A site where a split tends to lose stays as it is.

    Args:
        optimizer_state: ``"keep"`` copies the state of split parameters to the children, ``"reset"`` drops it.
        seed: Every draw depends on it, on the site's name and its width, and on nothing else.

    Example:
        >>> import torch
        >>> import fpe_lightning as fpe
        >>> model = nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 94))
        >>> fpe.expand(model, fpe.Auto(), example_inputs=torch.zeros(1, 512)).sites[0].alpha
        4
    """

    alpha: int = field(default=2, init=False)

    @override
    def of_sites(self, model: nn.Module, sites: Sequence[Site], others: Sequence[Site] = ()) -> list[SiteExpansion]:
        """The sites that gain from a split.

        Raises:
            ValueError: If none does.
        """
        found = [advice_of(model, site) for site in sites]
        if sites and all(each.alpha == 1 for each in found):
            raise ValueError(f'alpha="auto" splits nothing here. {" ".join(map(str, found))} Give a number to split.')
        splits: list[SiteExpansion] = []
        for alpha in dict.fromkeys(each.alpha for each in found if each.alpha > 1):
            own = [each.site for each in found if each.alpha == alpha]
            rest = [*others, *(each.site for each in found if each.alpha not in (1, alpha))]
            by_shape = ByShape(alpha=alpha, optimizer_state=self.optimizer_state, seed=self.seed)
            splits += by_shape.of_sites(model, own, rest)
        return [
            replace(each, expansion=replace(each.expansion, prune="incoming"))
            if type(each.expansion) is Paper
            else each
            for each in splits
        ]
