"""The sites of a LightningModule, found through the networks that its steps call."""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from fpe_lightning.sites.find import find_sites
from fpe_lightning.sites.recorder import Call, CallRecorder, rebuild
from fpe_lightning.sites.site import Site
from fpe_lightning.sites.tracing.forward import Inputs


def sites_of_calls(pl_module: nn.Module, calls: Sequence[Call]) -> list[Site]:
    """The sites of every network that was called, under the names that the LightningModule knows.

    A network may be called as a whole here and in parts there. What one call shows to reach an output stays as it is,
    even if another call would allow a split.

    Args:
        pl_module: The module.
        calls: From a :class:`~fpe_lightning.sites.recorder.CallRecorder`.

    Raises:
        ValueError: If a network does not run on the inputs that were noted.
    """
    sites: dict[str, Site] = {}
    refused: set[str] = set()
    device = next((parameter.device for parameter in pl_module.parameters()), torch.device("cpu"))
    for call in calls:
        network = pl_module.get_submodule(call["module"])
        args, kwargs = rebuild(call["args"], device), rebuild(call["kwargs"], device)
        prefix = f"{call['module']}." if call["module"] else ""
        found, refusals = find_sites(network, Inputs(args, kwargs), explain=True)
        for site in found:
            sites.setdefault((prefix + site.name).rstrip("."), site.inside(call["module"]))
        refused.update((prefix + refusal.name).rstrip(".") for refusal in refusals)
    # A module called by itself is refused by its parameter's name, as its own name is empty there.
    return [
        site
        for name, site in sites.items()
        if refused.isdisjoint([name, *(producer.parameter for producer in site.producers)])
    ]


def calls_of_step(pl_module: nn.Module, batch: Any) -> list[Call]:
    """How a LightningModule's training step calls its networks, seen on a copy of it.

    Args:
        pl_module: The module; it stays as it is.
        batch: As ``training_step`` takes it.

    Raises:
        ValueError: If it is no LightningModule, the step runs neither by itself nor in a Trainer, or calls no network.
    """
    if lightning_of(pl_module) is None:
        raise ValueError(f"`example_batch` is for a LightningModule, found {type(pl_module).__name__}.")
    # A Trainer calls everything, but not every module can be set up on one process without what it was trained with.
    for step in (_step_alone, _step_in_trainer):
        twin = copy.deepcopy(pl_module)
        recorder = CallRecorder(twin)
        try:
            with torch.random.fork_rng():
                step(twin, batch)
        except Exception as error:  # whatever a user's step raises
            failure = error
            continue
        finally:
            recorder.stop()
        if recorder.calls:
            return recorder.calls
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
