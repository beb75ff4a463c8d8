"""The weights of a site that is widened in a draft, as a pruning rule sees them: one row for each child."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fpe_lightning.expansion.assign import distinct
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.pruning import SiteWeights
from fpe_lightning.sites import Axis, Producer, Site


def rows_in_place(draft: Draft, tensor: Tensor, axis: Axis, alpha: int) -> Tensor:
    """A view of the widened stretch of a tensor with the children first, then inputs (or outputs), then the rest."""
    other = axis.input_dim if isinstance(axis, Producer) else 1 if axis.dim == 0 else 0
    stretch = tensor.narrow(axis.dim, draft[axis.parameter].start(axis), alpha * axis.length)
    return stretch.movedim((axis.dim, other), (0, 1))


def flat_rows(draft: Draft, tensor: Tensor, axis: Axis, alpha: int) -> Tensor:
    """The same as ``(children, inputs or outputs, k)``."""
    rows = rows_in_place(draft, tensor, axis, alpha)
    return rows.reshape(*rows.shape[:2], -1)


def restrict_rows(draft: Draft, axis: Axis, rows: Tensor, alpha: int) -> None:
    """Restrict a mask to ``rows`` within the widened stretch of an axis."""
    mask = draft[axis.parameter].whole_mask().clone()
    stretch = rows_in_place(draft, mask, axis, alpha)
    stretch.copy_(rows.reshape(stretch.shape))
    draft[axis.parameter].restrict(mask)


def weights_of(site: Site) -> list[Axis]:
    """The axes of producers, then those of consumers, each once."""
    return [*distinct(site.producers), *distinct(site.consumers)]


def bias_of(axis: Axis) -> str:
    """The name of the bias next to the weight of an axis."""
    return f"{axis.parameter.rpartition('.')[0]}.bias".lstrip(".")


def own_bias(draft: Draft, bias: Tensor, axis: Axis, alpha: int) -> Tensor:
    """Of the bias of a layer that computes other units too, those of the site; all of a layer that reads them."""
    if not isinstance(axis, Producer):
        return bias
    return bias.narrow(0, draft[axis.parameter].start(axis), alpha * axis.length)


def site_weights(draft: Draft, site: Site, alpha: int, value_of: Callable[[str], Tensor]) -> SiteWeights:
    """The weights of a site that is widened in a draft, on the CPU."""

    def rows(axis: Axis, tensor: Tensor) -> Tensor:
        return flat_rows(draft, tensor, axis, alpha).cpu()

    def bias(axis: Axis) -> Tensor | None:
        owner, _, name = axis.parameter.rpartition(".")
        if name != "weight" or draft.model.get_submodule(owner)._parameters.get("bias") is None:
            return None
        return own_bias(draft, value_of(bias_of(axis)), axis, alpha).cpu().clone()

    masks = [rows(axis, draft[axis.parameter].whole_mask()) for axis in weights_of(site)]
    weights = [rows(axis, value_of(axis.parameter)) * mask for axis, mask in zip(weights_of(site), masks, strict=True)]
    split_at, biases = len(distinct(site.producers)), [bias(axis) for axis in weights_of(site)]
    own = {bias_of(axis) for axis in site.producers}
    return SiteWeights(
        incoming=weights[:split_at],
        incoming_masks=masks[:split_at],
        outgoing=[weight.transpose(0, 1) for weight in weights[split_at:]],
        outgoing_masks=[mask.transpose(0, 1) for mask in masks[split_at:]],
        biases=biases[:split_at],
        outgoing_biases=biases[split_at:],
        between=[axis.parameter for axis in site.values if axis.parameter not in own],
    )
