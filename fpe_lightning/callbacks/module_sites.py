"""The sites of a LightningModule, from whatever is known of its inputs."""

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
    """The sites of a LightningModule from whatever is known of its inputs, under the names that it knows.

    Args:
        pl_module: The module.
        example_inputs: What its ``forward`` takes; None takes its ``example_input_array``.
        calls: How its steps were seen to call its networks; used where neither is there.
        batch: The batch about to be trained on; used where nothing else is known.

    Returns:
        The sites; None where nothing but the batch is known, and the batch itself does not help.

    Raises:
        MisconfigurationException: If there are none, or the module does not run on what is known.
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
