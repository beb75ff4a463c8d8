"""Find the sites of a LightningModule from its example inputs, its recorded calls, or a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from fpe_lightning.sites.calls import sites_of_calls
from fpe_lightning.sites.recorder import Call
from fpe_lightning.sites.select import sites_of
from fpe_lightning.sites.site import Site
from fpe_lightning.sparse.convert import stored_masked


def sites_of_module(
    pl_module: pl.LightningModule, example_inputs: Any, calls: Sequence[Call], batch: Any
) -> list[Site] | None:
    """Find the sites of a LightningModule from the first known kind of inputs, under the module's own names.

    Args:
        pl_module: The module.
        example_inputs: Inputs of its ``forward``; None takes its ``example_input_array``.
        calls: Recorded calls of its networks in a training step; used if there are no example inputs.
        batch: The next training batch; used if there are no calls either.

    Returns:
        The sites; None if only the batch is known, and the module does not run on it.

    Raises:
        MisconfigurationException: If there are no sites, or the module does not run on its example inputs or calls.
    """
    example = getattr(pl_module, "example_input_array", None) if example_inputs is None else example_inputs
    guess = batch[0] if isinstance(batch, (list, tuple)) else batch
    try:
        with torch.compiler.set_stance("force_eager"):
            if example is None and calls:
                return sites_of_calls(pl_module, calls)
            with stored_masked(pl_module):
                return sites_of(pl_module, guess if example is None else example)
    except (TypeError, ValueError) as error:
        if example is None and not calls:
            return None
        raise MisconfigurationException(f"ExpansionCallback cannot split: {error}") from error
