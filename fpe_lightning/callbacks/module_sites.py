"""The sites of a LightningModule while it trains: found in its first step, and kept until they are split."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fpe_lightning.sites.calls import SiteSearch
from fpe_lightning.sites.find import check_plain, search_sites
from fpe_lightning.sites.found import Found
from fpe_lightning.sites.plain import Plain, from_plain, to_plain
from fpe_lightning.sparse.convert import stored_masked


class ModuleSites:
    """Finds the sites of a LightningModule, from whatever is known of its inputs.

    That is, in this order: the example inputs of the callback or of the module, the calls of its networks in a
    training step, those of the sanity check, and a guess that its forward takes the first part of a batch.

    Args:
        example_inputs: The inputs of the module's ``forward``; None takes its ``example_input_array``, if any.
    """

    def __init__(self, example_inputs: Any = None) -> None:
        self.example_inputs = example_inputs
        self._search: SiteSearch | None = None
        self.forget()

    def forget(self) -> None:
        """Drop all that is known."""
        self.stop()
        self._last: SiteSearch | None = None
        self._found: Found | None = None
        self._sanity: Found | None = None
        self._saved: Plain | None = None
        self._plain: Plain | None = None
        self._fresh = False

    def start(self, pl_module: pl.LightningModule, more: bool = True) -> None:
        """Search the calls of the step that comes next, unless the sites are known already.

        Args:
            pl_module: The module.
            more: Whether there are splits to come. If not, the sites are kept for
                :func:`~fpe_lightning.checkpoints.expand_file.expand_checkpoint`, which reads them from a checkpoint.

        Raises:
            TypeError: If the example inputs are of another type.
            ValueError: If the module does not run on the example inputs.
        """
        self.stop()
        # A lazy layer has no shapes before its first call.
        if self._found is not None or self._saved is not None or any(map(is_lazy, pl_module.parameters())):
            return
        example = self._example(pl_module)
        if example is None:
            self._search = SiteSearch(pl_module, keep=more)
            self._search.start()
        elif more:
            self._keep(_at(pl_module, example), pl_module)

    def finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Found | None:
        """End the search of a training step.

        Returns:
            The sites, if they were found before or in this step and not returned yet.
        """
        search = self._search
        self.stop()
        if search is not None and search.seen:
            plain = to_plain(search.found(), pl_module)
            if trainer.world_size > 1:  # processes see other values, and have to split alike
                plain = trainer.strategy.broadcast(plain)
            self._keep(from_plain(plain, pl_module) or search.found(), pl_module)
            self._last = search
        fresh, self._fresh = self._fresh, False
        return self._found if fresh else None

    def _keep(self, found: Found, pl_module: nn.Module) -> None:
        self._found, self._fresh = found, True
        self._plain = to_plain(found, pl_module)

    def finish_sanity(self) -> None:
        """End the search of a sanity check, whose calls may be fewer than those of a training step."""
        search = self._search
        self.stop()
        self._sanity = search.found() if search is not None and search.seen else None

    def update(self, trainer: pl.Trainer, more: bool) -> None:
        """Find the sites of a module that was split, in the calls that are known; else in those of the next step."""
        # The inputs of the last search serve again, at the new widths; without any the next step tells.
        last = self._last
        self.forget()
        if last is None:
            return
        with torch.compiler.set_stance("force_eager"), trainer.precision_plugin.forward_context():
            search = last.again()
        if search is not None:
            self._keep(search.found(), search.root)
            self._fresh, self._last = False, search if more else None

    def stop(self) -> None:
        """End the search, whatever it found."""
        if self._search is not None:
            self._search.stop()
            self._search = None

    def known(self, pl_module: pl.LightningModule, batch: Any) -> Found | None:
        """The sites for a split before a batch; None if nothing is known of the inputs.

        Raises:
            TypeError: If the example inputs are of another type.
            ValueError: If the module does not run on the example inputs.
        """
        # Sites that a checkpoint brought are checked against the model, as a file may say anything.
        saved = self._plain or self._saved
        if saved is not None:  # it may be of the module before a split
            self._found = from_plain(saved, pl_module)
            self._plain, self._saved = (saved if self._found is not None else None), None
        if self._found is None:
            self._found = self._sanity
        example = self._example(pl_module)
        if self._found is None and example is not None:
            self._found = _at(pl_module, example)
        if self._found is None:
            try:
                # Most modules take the first part of a batch; a guess that fails costs one batch of delay.
                guess = _at(pl_module, batch[0] if isinstance(batch, (list, tuple)) else batch)
            except (TypeError, ValueError):
                return None
            return guess if guess.sites else None
        return self._found

    def _example(self, pl_module: pl.LightningModule) -> Any:
        given = self.example_inputs
        return getattr(pl_module, "example_input_array", None) if given is None else given

    def state_dict(self) -> Plain | None:
        """The sites in plain types, or None if there are none yet."""
        # A checkpoint within a step must not lose what the step has told so far.
        if self._search is not None and self._search.seen:  # saved at the end of the step, before this search ended
            return to_plain(self._search.found(), self._search.root)
        return self._plain or self._saved

    def load_state_dict(self, saved: Plain | None) -> None:
        """Take over saved sites; they are checked before they are used."""
        self.forget()
        self._saved = saved


def _at(pl_module: pl.LightningModule, inputs: Any) -> Found:
    check_plain(pl_module)
    with torch.compiler.set_stance("force_eager"), stored_masked(pl_module):
        return search_sites(pl_module, inputs)
