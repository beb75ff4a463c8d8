"""Print a short table at the end of a run: widths, non-zeros and accuracy before and after each split."""

from __future__ import annotations

import inspect
from typing import Any

import lightning.pytorch as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from typing_extensions import override

from fpe_lightning.callbacks.lightnings import Callback, instances
from fpe_lightning.expansion.report import ExpansionReport
from fpe_lightning.extras import require
from fpe_lightning.sites.site import Site
from fpe_lightning.sparse.model_masks import count_nonzeros


class RunSummary(Callback):
    """Prints a table after the test that follows a fit: widths, non-zeros, accuracy around splits, best and test.

    If the module has a method ``accuracy(batches)``, as :class:`~fpe_lightning.modules.classifier.Classifier` has, the
    callback measures accuracy on the validation data right before and right after a split, without training in between.

    Args:
        monitor: Name of the measured accuracy in the table.

    Example:
        >>> trainer = pl.Trainer(callbacks=[RunSummary()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, monitor: str = "val/accuracy") -> None:
        require("template", "`RunSummary`", "rich")
        super().__init__()
        self.monitor = monitor
        self.rows: list[tuple[str, str]] = []

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A resumed run continues the table of the run that it resumes.
        self.rows = self.rows or [("non-zero parameters at the start", f"{count_nonzeros(pl_module):,}")]

    def on_before_expansion(self, trainer: pl.Trainer, pl_module: pl.LightningModule, sites: list[Site]) -> None:
        """Measure the accuracy before the split."""
        self._measure(trainer, pl_module, f"{self.monitor} just before the split at epoch {trainer.current_epoch}")

    def on_after_expansion(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: ExpansionReport) -> None:
        """Note widths and non-zeros, and measure the accuracy after the split."""
        for site in report.sites:
            self.rows.append((f"width of {site.name}", f"{site.width_before} -> {site.width_after}"))
        self.rows.append(("non-zero parameters", f"{report.nonzeros_before:,} -> {report.nonzeros_after:,}"))
        self._measure(trainer, pl_module, f"{self.monitor} just after it, before any training")

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, what: str) -> None:
        loader, accuracy = trainer.val_dataloaders, getattr(pl_module, "accuracy", None)
        # Many modules keep a metric object under this name, which takes other arguments.
        if loader is None or not inspect.ismethod(accuracy):
            return
        # Iterating a DataLoader draws from the global generator, and training must not depend on that.
        with torch.random.fork_rng():
            self.rows.append((what, f"{accuracy(loader):.4f}"))

    @override
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        compared = any(getattr(each, "compares", False) for each in trainer.callbacks)  # type: ignore[attr-defined]
        if not self.rows or compared:  # the table of CompareWithParent says more
            return
        rows = [*self.rows, ("non-zero parameters at the end", f"{count_nonzeros(pl_module):,}")]
        checkpoint = next(iter(instances(trainer.callbacks, "callbacks", "ModelCheckpoint")), None)  # type: ignore[attr-defined]
        if checkpoint is not None and checkpoint.best_model_score is not None:
            rows.append((f"best {checkpoint.monitor}", f"{float(checkpoint.best_model_score):.4f}"))
        rows += [
            (name, f"{float(value):.4f}")
            for name, value in trainer.callback_metrics.items()
            if name.startswith("test/")
        ]
        _print(rows)
        self.rows = []

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"rows": [list(row) for row in self.rows]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Testing the best weights also loads this state; the rows of later splits must stay in the table.
        self.rows = self.rows or [(name, value) for name, value in state_dict["rows"]]


@rank_zero_only
def _print(rows: list[tuple[str, str]]) -> None:
    from rich.console import Console  # an extra; only this table needs it
    from rich.table import Table

    table = Table(title="Summary")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
