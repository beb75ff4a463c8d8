"""The sites of a LightningModule, found in the networks that its step calls, on the values that they get."""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from fpe_lightning.sites.candidates import Refusal
from fpe_lightning.sites.find import check_plain, search_sites
from fpe_lightning.sites.found import Found
from fpe_lightning.sites.recorder import CallWatcher
from fpe_lightning.sites.site import Axis, Site
from fpe_lightning.sites.tracing.containers import replaced
from fpe_lightning.sites.tracing.forward import Inputs
from fpe_lightning.sites.tracing.sandbox import holders_of
from fpe_lightning.sites.trial import sentence_of
from fpe_lightning.sparse.convert import stored_masked

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


@dataclass
class SiteSearch:
    """Finds sites while a step of a module runs, before each network computes.

    A network that cannot be traced as a whole is searched call by call inside. A network may also be called as a whole
    and in parts: what one call shows to reach an output, or reads together with something else, stays as it is.

    Args:
        root: The module.
        keep: Whether to keep copies of all arguments, in main memory, for :meth:`again`.

    Example:
        >>> class Root(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> root = Root()
        >>> search = SiteSearch(root)
        >>> search.start()
        >>> _ = root.net(torch.zeros(3, 4))
        >>> search.stop()
        >>> [site.name for site in search.found().sites]
        ['net.0']
    """

    root: nn.Module
    keep: bool = False
    _sites: list[tuple[str, Site]] = field(default_factory=list)
    _refusals: list[Refusal] = field(default_factory=list)
    _frozen: list[tuple[str, set[tuple[str, int]]]] = field(default_factory=list)
    _visited: dict[str, bool] = field(default_factory=dict)
    _calls: list[Call] = field(default_factory=list)
    _watcher: CallWatcher | None = None

    @property
    def seen(self) -> bool:
        """Whether a network with parameters was called."""
        return bool(self._visited)

    def start(self) -> None:
        """Watch calls from now on."""
        self.stop()
        self._watcher = CallWatcher(self.root, self._visit)

    def stop(self) -> None:
        """Take the hooks away."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None

    def _visit(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Search one network, at its first call; whether the calls inside of it are of no interest."""
        if next(module.parameters(), None) is None:  # losses and metrics
            return True
        if name not in self._visited:
            try:
                check_plain(module)
                with stored_masked(module):
                    found = search_sites(module, Inputs(args, kwargs))
            except Exception as error:  # a forward may raise anything, and an argument may refuse to be copied
                self._visited[name] = False
                reason = f"its call is searched in parts, as it cannot be traced as a whole ({sentence_of(error)})"
                self._refusals.append(Refusal(name or type(module).__name__, reason))
                return False
            self._visited[name] = True
            if self.keep:
                self._calls.append((name, *replaced((args, kwargs), lambda t: t.detach().to("cpu", copy=True))))
            self._sites += [(name, site.inside(name)) for site in found.sites]
            self._refusals += [Refusal(f"{name}.{each.name}".strip("."), each.reason) for each in found.refusals]
            prefix = f"{name}." if name else ""
            self._frozen.append((name, {(prefix + parameter, dim) for parameter, dim in found.frozen}))
        return self._visited[name]

    def again(self) -> SiteSearch | None:
        """Search the same calls once more, as after a split; None if they were not kept, or one raises now."""
        search = SiteSearch(self.root, self.keep)
        fine = [search._visit(name, self.root.get_submodule(name), args, kwargs) for name, args, kwargs in self._calls]
        return search if fine and all(fine) else None

    def found(self) -> Found:
        """The sites of all networks that were called, under the names that the root knows."""
        held = holders_of(self.root)
        refusals, kept = list(self._refusals), list[Site]()
        for call, site in self._sites:
            reason = self._reason_against(call, site, held)
            if reason is None:
                reason = _merge(kept, site)
            if reason is not None:
                refusals.append(Refusal(site.name, reason))
        names = {site.name for site in kept}
        return Found(tuple(kept), tuple(dict.fromkeys(each for each in refusals if each.name not in names)))

    def _reason_against(self, call: str, site: Site, held: dict[int, list[str]]) -> str | None:
        """Why the step as a whole does not allow a site that one of its calls does."""
        axes = {(axis.parameter, axis.dim) for axis in site.axes()}
        for other, frozen in self._frozen:
            if other != call and axes & frozen:
                return f"the call of {other or 'the module itself'} uses it in a way that must not change"
        for parameter in site.parameters():
            owner, _, name = parameter.rpartition(".")
            holders = held[id(getattr(self.root.get_submodule(owner), name))]
            if len(holders) > 1:
                return f"tied weights: {' and '.join(holders)} are one tensor"
        return None


def _merge(kept: list[Site], site: Site) -> str | None:
    """Add a site to those of other calls; where they overlap, the one that takes in all axes of the other counts."""
    axes = {_extent(axis) for axis in site.axes()}
    for other in [each for each in kept if any(_overlap(a, b) for a in each.axes() for b in site.axes())]:
        known = {_extent(axis) for axis in other.axes()}
        if axes <= known:
            return None
        kept.remove(other)
        if not known <= axes:
            return f"two calls of the step use it in different ways (see {other.name})"
    kept.append(site)
    return None


def _extent(axis: Axis) -> tuple[str, int, int, int]:
    return axis.parameter, axis.dim, axis.start, axis.length


def _overlap(one: Axis, other: Axis) -> bool:
    same = (one.parameter, one.dim) == (other.parameter, other.dim)
    return same and one.start < other.start + other.length and other.start < one.start + one.length


def sites_of_step(pl_module: nn.Module, batch: Any) -> list[Site]:
    """The sites of a LightningModule, from one training step of a copy of it.

    Args:
        pl_module: The module; it stays as it is.
        batch: As ``training_step`` takes it.

    Raises:
        ValueError: If it is no LightningModule, the step runs neither alone nor in a Trainer, or calls no network.
    """
    if lightning_of(pl_module) is None:
        raise ValueError(f"`example_batch` is for a LightningModule, found {type(pl_module).__name__}.")
    # A Trainer calls everything, but some modules cannot be set up on one process without their training data.
    for step in (_step_alone, _step_in_trainer):
        twin = copy.deepcopy(pl_module)
        search = SiteSearch(twin)
        search.start()
        try:
            with torch.random.fork_rng():
                step(twin, batch)
        except Exception as error:  # a user's step may raise anything
            failure = error
            continue
        finally:
            search.stop()
        if search.seen:
            return list(search.found().sites)
        raise ValueError(f"`training_step` of {type(pl_module).__name__} calls no network on `example_batch`.")
    raise ValueError(
        f"`training_step` of {type(pl_module).__name__} does not run on `example_batch` ({failure}); pass "
        "`example_inputs` for its forward, or sites found with `find_sites`."
    )


def _step_alone(pl_module: Any, batch: Any) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="You are trying to `self.log")
        pl_module.training_step(batch, 0)


def _step_in_trainer(pl_module: nn.Module, batch: Any) -> None:
    """One step, also for modules that optimize by hand."""
    package = lightning_of(pl_module)
    environments = importlib.import_module(f"{package.__name__}.plugins.environments")
    trainer = package.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[environments.LightningEnvironment()],
    )
    batches: Any = [batch]
    trainer.fit(pl_module, DataLoader(batches, batch_size=None))


def lightning_of(module: nn.Module) -> Any:
    """The Lightning package whose ``LightningModule`` a module is; None for any other module.

    Nothing is imported: where a module is a LightningModule, its package is loaded already.

    Example:
        >>> lightning_of(nn.Linear(4, 2)) is None
        True
    """
    for kind in type(module).__mro__:
        if kind.__name__ == "LightningModule" and kind.__module__.split(".")[0] in ("lightning", "pytorch_lightning"):
            return sys.modules[kind.__module__.partition(".core")[0]]
    return None
