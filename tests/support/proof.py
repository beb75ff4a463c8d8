"""Prove a site: doubling its units must not change what the model computes.

The proof widens a copy by itself, on purpose, to check what ``expand`` puts in place. Only the places of copies and the
integers that grow come from the package, and a mistake in these shows in the outputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fpe_lightning.sites.attributes import changed_values
from fpe_lightning.sites.runs import sizes_of
from fpe_lightning.sites.site import Site
from fpe_lightning.sites.tracing.containers import tensors_in
from fpe_lightning.sites.tracing.forward import Inputs
from fpe_lightning.sites.tracing.sandbox import modules_by_name, owners_of, state_of

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Proof:
    """What came of widening a site by duplication.

    Attributes:
        error: Largest output difference between the widened and the original model, relative to the largest output.
        power: The same difference when the columns of every other unit are not divided: what a mistake looks like.
            Where those units are all silent (behind a ReLU), it is the others that are not divided.
    """

    error: float
    power: float

    @property
    def holds(self) -> bool:
        """Whether the outputs are equal to rounding, and the check would have seen a mistake."""
        return self.error < TOLERANCE and self.power > 1000 * self.error and self.power > 0


def duplicate(
    model: nn.Module, sites: Sequence[Site], alpha: int = 2, *, undivided: int | None = None, share: bool = False
) -> nn.Module:
    """A copy of a model in which every unit of some sites exists ``alpha`` times.

    Rows of producers and per-unit values are copied; columns of consumers are copied and divided by ``alpha``, so that
    the copy computes the same function.

    Args:
        model: The model.
        sites: Sites of ``find_sites(model, ...)``.
        alpha: Number of copies of each unit.
        undivided: Leave the columns of even (0) or odd (1) units as they are, so that the copy computes another
            function. (All columns undivided would not do: many networks normalise a common factor away.)
        share: Let the copy hold the model's own tensors where nothing is widened, to save memory.

    Returns:
        The widened copy.

    Example:
        >>> from fpe_lightning.sites.find import find_sites
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> duplicate(net, find_sites(net, torch.zeros(2, 8)))
        Sequential(
          (0): Linear(in_features=8, out_features=32, bias=True)
          (1): ReLU()
          (2): Linear(in_features=32, out_features=3, bias=True)
        )
    """
    state, pairs = state_of(model), [(site, alpha) for site in sites]
    wider = sizes_of(pairs, {name: tensor.shape for name, tensor in state.items()})
    # What is replaced below need not be copied first.
    widened = copy.deepcopy(model, {id(state[name]): state[name] for name in (state if share else wider)})
    owners, modules = owners_of(widened), modules_by_name(widened)
    divided = {(axis.parameter, axis.dim, axis.start): axis for site in sites for axis in site.consumers}
    for parameter, sizes in wider.items():
        old = state[parameter]
        data = old.detach().clone()
        for (name, dim, start), axis in divided.items():
            if name == parameter and axis.units is not None:
                factors = torch.where(axis.units % 2 == (-1 if undivided is None else undivided), 1.0, 1 / alpha)
                shape = [-1 if position == dim else 1 for position in range(data.dim())]
                data.narrow(dim, start, axis.length).mul_(factors.to(data).view(shape))
        for dim, index in sizes.items():
            data = data.index_select(dim, index.to(data.device))
        new = nn.Parameter(data, old.requires_grad) if isinstance(old, nn.Parameter) else data
        for module_name, attribute in owners[parameter]:
            module = modules[module_name]
            holder: dict[str, Any] = module._parameters if attribute in module._parameters else module._buffers
            holder[attribute] = new
    for (module_name, attribute), value in changed_values(pairs, modules).items():
        vars(modules[module_name])[attribute] = value
    return widened


def prove_site(model: nn.Module, site: Site, example_inputs: Any, seed: int = 0) -> Proof:
    """Double the units of a site in a copy with random parameters, and compare outputs in float64.

    Args:
        model: The model; untouched.
        site: A site of ``find_sites(model, example_inputs)``.
        example_inputs: As for ``find_sites``.
        seed: Seed of the random parameters.

    Returns:
        Error of the widened copy, and power of the comparison.

    Example:
        >>> from fpe_lightning.sites.find import find_sites
        >>> net, example = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), torch.ones(2, 8)
        >>> [prove_site(net, site, example).holds for site in find_sites(net, example)]
        [True]
    """
    return prove_sites(model, [site], example_inputs, seed)


def prove_sites(model: nn.Module, sites: Sequence[Site], example_inputs: Any, seed: int = 0) -> Proof:
    """Like ``prove_site``, with all units of several sites doubled at once.

    Args:
        model: The model; untouched.
        sites: Sites of ``find_sites(model, example_inputs)``.
        example_inputs: As for ``find_sites``.
        seed: Seed of the random parameters.

    Returns:
        Error of the widened copy, and power of the comparison.
    """
    inputs = Inputs.of(example_inputs)
    args, kwargs = tree_map_only(
        Tensor, lambda t: t.double() if t.is_floating_point() else t, (inputs.args, inputs.kwargs)
    )
    original = copy.deepcopy(model).double().eval()
    randomize(original, seed)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            # One after the other: joint sites of a wide model fill the memory.
            reference = _outputs(original, args, kwargs, seed)

            def difference(undivided: int | None) -> float:
                widened = duplicate(original, sites, undivided=undivided, share=True)
                return _difference(reference, _outputs(widened, args, kwargs, seed))

            proof = Proof(error=difference(None), power=difference(0))
            if proof.holds or proof.error >= TOLERANCE:
                return proof
            return Proof(proof.error, max(proof.power, difference(1)))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def randomize(model: nn.Module, seed: int) -> None:
    """Give every parameter and running statistic a random value, so that no zero or one hides a mistake.

    Args:
        model: Changed in place.
        seed: Seed.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in _free(model):
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            elif name.endswith(("running_mean", "bias")):
                tensor.copy_(0.1 * noise)
            elif tensor.dim() >= 2:
                tensor.copy_(noise / math.sqrt(max(1, tensor[0].numel())))
            else:
                tensor.copy_(1 + 0.2 * noise)


def _free(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            yield name, buffer


def _outputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return [tensor for tensor in tensors_in(model(*args, **kwargs)) if tensor.is_floating_point()]


def _difference(reference: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Largest difference relative to the largest output; infinite if shapes differ or something is not finite."""
    if not reference or [tensor.shape for tensor in reference] != [tensor.shape for tensor in other]:
        return math.inf
    relative = [
        ((a - b).abs().max() / a.abs().max().clamp_min(1e-30)).item() for a, b in zip(reference, other, strict=True)
    ]
    return max(relative) if all(math.isfinite(value) for value in relative) else math.inf
