"""Prune a site by a rule that is no order of magnitudes, and let such rules change the values that are left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fpe_lightning.expansion.config import SiteExpansion
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.site_weights import (
    bias_of,
    own_bias,
    restrict_rows,
    rows_in_place,
    site_weights,
    weights_of,
)
from fpe_lightning.pruning import FinalizingRule, PruningRule
from fpe_lightning.sites import Site


def prune_by_rule(draft: Draft, site: Site, alpha: int, rule: PruningRule, excess: int) -> None:
    """Prune one site by a rule that sees its weights.

    Args:
        draft: The expansion, in which the site is widened already.
        site: The site.
        alpha: Children of each neuron.
        rule: The rule.
        excess: How many weights have to go.

    Raises:
        ValueError: If the rule refuses, or returns other masks than it was asked for.
    """

    def value_of(name: str) -> Tensor:
        return draft.tensors[name].value if name in draft.tensors else draft.model.get_parameter(name).detach()

    weights, before = site_weights(draft, site, alpha, value_of), draft.change()
    with _naming(site, rule):
        # A weight that stands on both sides, as in a recurrent layer, has one mask that two answers would change.
        both = {axis.parameter for axis in site.producers} & {axis.parameter for axis in site.consumers}
        if both:
            raise ValueError(f"`{min(both)}` computes and reads its neurons, and would go twice; use a Magnitude.")
        # The rule may be a stranger's: shapes and the count are checked, and nothing has changed so far.
        incoming, outgoing = rule.keep(weights, excess)
        expected = [mask.shape for mask in (*weights.incoming_masks, *weights.outgoing_masks)]
        found = [(mask.shape, mask.dtype) for mask in (*incoming, *outgoing)]
        if found != [(shape, torch.bool) for shape in expected]:
            raise ValueError(
                f"it has to return bool masks of shapes {_sizes(expected)}, found {_sizes(s for s, _ in found)}."
            )
    # Rules see outgoing weights as (outputs, children); a draft has the children first.
    for axis, mask in zip(weights_of(site), [*incoming, *(each.transpose(0, 1) for each in outgoing)], strict=True):
        restrict_rows(draft, axis, mask, alpha)
    removed = before - draft.change()
    if removed != excess:
        raise ValueError(
            f"The pruning rule {type(rule).__name__} removes {removed} weights of {site.name} where {excess} have to "
            "go."
        )


@contextmanager
def _naming(site: Site, rule: PruningRule) -> Iterator[None]:
    """Say which site a rule refuses."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{site.name} cannot be pruned by {type(rule).__name__}: {error}") from error


def _sizes(shapes: Iterable[torch.Size]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)


def finalized_values(draft: Draft, model: nn.Module, splits: Sequence[SiteExpansion]) -> dict[str, Tensor]:
    """The values that finalizing rules give to parameters of a model, or of an average of it.

    Args:
        draft: The expansion, with its last masks; it is not changed.
        model: The model of the draft, or a module of its structure.
        splits: The sites, each with its expansion.

    Returns:
        A tensor of the new shape for each parameter that a rule changes, by name.
    """
    values: dict[str, Tensor] = {}

    def value_of(name: str) -> Tensor:
        # Two sites may touch one parameter: the second rule sees the values of the first.
        if name in values:
            return values[name]
        tensor = model.get_parameter(name).detach()
        return draft.tensors[name].follow(tensor) if name in draft.tensors else tensor

    for split in splits:
        if not isinstance(split.prune, FinalizingRule):
            continue
        site, alpha = split.site, split.alpha
        before = site_weights(draft, site, alpha, value_of)
        with _naming(site, split.prune):
            after = split.prune.finalize(before)
            old, new = ([*each.incoming, *each.outgoing] for each in (before, after))
            if [each.shape for each in new] != [each.shape for each in old]:
                raise ValueError(f"it has to return weights of shapes {_sizes(e.shape for e in old)}.")
            if not all(bool(each.isfinite().all()) for each in new):
                raise ValueError("the weights that it returns hold NaN or infinity.")
        rows = [*after.incoming, *(each.transpose(0, 1) for each in after.outgoing)]
        for axis, weights in zip(weights_of(site), rows, strict=True):
            value = value_of(axis.parameter).clone()
            stretch = rows_in_place(draft, value, axis, alpha)
            # Written into the stretch of this site alone; masks have the last word.
            stretch.copy_(weights.reshape(stretch.shape))
            values[axis.parameter] = value.masked_fill_(~draft[axis.parameter].whole_mask(), 0)
        for axis, bias in zip(weights_of(site), [*after.biases, *after.outgoing_biases], strict=True):
            if bias is not None:
                value = value_of(bias_of(axis)).clone()
                own_bias(draft, value, axis, alpha).copy_(bias)
                values[bias_of(axis)] = value
    return values
