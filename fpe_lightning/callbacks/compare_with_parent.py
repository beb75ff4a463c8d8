"""Train the unsplit parent next to the split network, on the same batches, and show both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from typing_extensions import override

from fpe_lightning.callbacks.comparison import (
    Comparison,
    comparison_caption,
    comparison_figure,
    comparison_table,
    monitored,
    monitoring_checkpoint,
)
from fpe_lightning.callbacks.lightnings import Callback, MisconfigurationException, loaded
from fpe_lightning.callbacks.parent import PREFIX, Parent, copy_of
from fpe_lightning.expansion.report import ExpansionReport
from fpe_lightning.extras import require
from fpe_lightning.sites.site import Site
from fpe_lightning.sparse.model_masks import count_nonzeros


class CompareWithParent(Callback):
    """Answers in the run itself whether the split paid: the unsplit parent trains on, on the same batches.

    Right before the first split, the callback copies the module, its optimizer's state and its schedules. From then on
    the copy trains on each batch after the split network does, and is validated and tested with it. It logs what the
    module logs, under names that start with ``parent/``. Later splits leave the parent as it is. The run itself does
    not change: its weights are bit by bit those of a run without this callback.

    A table at the end of ``fit`` and of ``test`` has one row for the dense parent, one for the split network, and their
    difference. A figure of the monitored metric over the epochs goes to ``compare_with_parent.png`` in the folder of
    the run. Where the trainer tests the best checkpoint of the network, the parent is tested at its own best epoch.

    The parent costs a second forward and backward pass and a second optimizer step for each batch, the memory of a
    dense copy with its optimizer state, and as much again for its best weights. Checkpoints hold both. What the module
    writes to ``self.logger.experiment`` on its own is written once more by the parent. With an averaging callback, the
    network is validated with averaged weights and the parent with its own.

    Args:
        monitor: Metric to compare at its best value, such as ``"val/accuracy"``; None takes the one of
            ``ModelCheckpoint``, and the last values where nothing is monitored.
        mode: Whether the best value of ``monitor`` is the largest (``"max"``) or the smallest (``"min"``); None takes
            that of ``ModelCheckpoint``, or ``"max"``.

    Raises:
        MisconfigurationException: In ``setup``, for manual optimization, float16 with a gradient scaler, or a strategy
            that shards weights.

    Example:
        >>> from fpe_lightning.callbacks import CompareWithParent, ExpansionCallback
        >>> callbacks = [ExpansionCallback(alpha=4, epoch=2), CompareWithParent(monitor="val/accuracy")]
        >>> trainer = pl.Trainer(callbacks=callbacks, logger=False, enable_checkpointing=False)
    """

    def __init__(self, monitor: str | None = None, mode: str | None = None) -> None:
        require("template", "`CompareWithParent`", "rich", "matplotlib")
        super().__init__()
        if mode not in (None, "min", "max"):
            raise MisconfigurationException(f"`mode` of CompareWithParent is 'min' or 'max', found {mode!r}.")
        if monitor is not None and not isinstance(monitor, str):
            raise MisconfigurationException(f"`monitor` of CompareWithParent is a metric's name, found {monitor!r}.")
        self.monitor, self.mode = monitor, mode
        self.figure_path: Path | None = None
        """Where the figure of the last fit is."""
        self.table_after_fit = True
        """Whether ``fit`` ends with the table; a command line that tests next switches it off."""
        self._reset()

    @property
    def compares(self) -> bool:
        """Whether there is a parent: from the first split on."""
        return self._parent is not None

    def _reset(self) -> None:
        self._parent: Parent | None = None
        self._template: pl.LightningModule | None = None
        self._loaded: dict[str, Any] | None = None
        self._comparison = Comparison()
        self._best: dict[str, torch.Tensor] | None = None
        self._latest: dict[str, torch.Tensor] | None = None
        self._steps = 0

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse set-ups whose parent would train in another way than the network."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                f"CompareWithParent trains the parent by `training_step`, and {type(pl_module).__name__} steps its "
                "optimizers itself (`automatic_optimization = False`): leave the callback out."
            )
        sharding = loaded("strategies", "FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")
        if isinstance(trainer.strategy, sharding):
            raise MisconfigurationException(
                f"CompareWithParent copies whole weights, and {type(trainer.strategy).__name__} shards them: use one "
                "device or DDP, or leave the callback out."
            )
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise MisconfigurationException(
                "CompareWithParent does not scale the parent's gradients as `precision='16-mixed'` needs: use "
                "'bf16-mixed', or leave the callback out."
            )
        self._reset()
        # A run that resumes after a split loads the parent into this copy; weights are loaded before any other hook.
        self._template = copy_of(pl_module)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state, template, self._loaded, self._template = self._loaded, self._template, None, None
        if state is None:
            return
        self._comparison = Comparison.from_state(state["comparison"])
        self._best = state["best"]
        self._steps = trainer.global_step
        if state["parent"] is None:
            return
        assert template is not None
        template.to(pl_module.device)
        self._parent = Parent(template, trainer, pl_module.log)
        try:
            self._parent.load_state_dict(state["parent"])
        except RuntimeError as error:
            raise MisconfigurationException(
                "The checkpoint holds a dense parent of another size than the module that this run builds: build the "
                "module as the first run did, or leave CompareWithParent out."
            ) from error
        self._parent.module.train()

    def on_before_expansion(self, trainer: pl.Trainer, pl_module: pl.LightningModule, sites: list[Site]) -> None:
        """Copy the module before its first split."""
        if self._parent is not None:
            return
        self._parent = Parent(copy_of(pl_module), trainer, pl_module.log)
        self._parent.follow(pl_module, trainer.optimizers, trainer.lr_scheduler_configs)
        self._comparison.nonzeros = (count_nonzeros(pl_module), count_nonzeros(pl_module))
        self._steps = trainer.global_step

    def on_after_expansion(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: ExpansionReport) -> None:
        """Note the moment of the split, widths and non-zeros."""
        comparison = self._comparison
        comparison.splits.append((trainer.current_epoch, trainer.global_step))
        for site in report.sites:
            before = comparison.widths.get(site.name, (site.width_before, 0))[0]
            comparison.widths[site.name] = (before, site.width_after)
        comparison.nonzeros = (comparison.nonzeros[0], count_nonzeros(pl_module))

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._parent is not None:
            # The parent steps when the network does, whatever decides about accumulation.
            self._parent.train(batch, batch_idx, step=trainer.global_step != self._steps)
            self._steps = trainer.global_step

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._hook("on_train_epoch_start")

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._hook("on_train_epoch_end")
        if self._parent is not None:
            self._parent.end_epoch()

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._parent is not None and not trainer.sanity_checking:
            self._parent.share_buffers()
        self._hook("on_validation_epoch_start", trainer)

    @override
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._parent is not None and not trainer.sanity_checking:
            self._parent.evaluate("validation", batch, batch_idx, dataloader_idx)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._hook("on_validation_epoch_end", trainer)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        values, alone = trainer.callback_metrics, self._parent is None
        epoch = trainer.current_epoch + (trainer.fit_loop.epoch_loop.batch_idx + 1) / trainer.num_training_batches
        for name in self._metrics(trainer):
            parent = name if alone else PREFIX + name
            if name in values and parent in values:
                self._comparison.add(name, epoch, float(values[name]), float(values[parent]))
        monitor, mode = monitored(trainer, self.monitor, self.mode)
        best = self._comparison.best(monitor, mode)
        if self._parent is not None and best is not None and self._comparison.curves[monitor][-1][2] == best[0]:
            self._best = self._parent.weights()

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._parent is None:
            return
        module = self._parent.module.to(pl_module.device)
        module.trainer = trainer
        self._parent.share_buffers()
        checkpoint = monitoring_checkpoint(trainer)
        if self._best is not None and checkpoint is not None and trainer.ckpt_path == checkpoint.best_model_path:
            self._latest = self._parent.weights()
            module.load_state_dict(self._best)

    @override
    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._hook("on_test_epoch_start")

    @override
    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._parent is not None:
            self._parent.evaluate("test", batch, batch_idx, dataloader_idx)

    @override
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._hook("on_test_epoch_end")

    @override
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._parent is None:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._print(
            trainer, {name: (values[PREFIX + name], values[name]) for name in values if PREFIX + name in values}
        )
        if self._latest is not None:
            self._parent.module.load_state_dict(self._latest)
            self._latest = None

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # every process takes part in finding it
        if self._parent is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        metric = next((name for name in self._metrics(trainer) if self._comparison.since_split(name)), None)
        # A run without a logger has a folder only where somebody named one.
        named = trainer.log_dir is not None or folder.resolve() != Path.cwd()
        if metric is not None and named and trainer.is_global_zero:
            self.figure_path = folder / "compare_with_parent.png"
            folder.mkdir(parents=True, exist_ok=True)
            comparison_figure(self._comparison, metric).savefig(self.figure_path)
        if self.table_after_fit:
            self._print(trainer, {})

    @override
    def state_dict(self) -> dict[str, Any]:
        parent = None if self._parent is None else self._parent.state_dict()
        return {"parent": parent, "best": self._best, "comparison": self._comparison.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def _hook(self, name: str, trainer: pl.Trainer | None = None) -> None:
        if self._parent is not None and not (trainer is not None and trainer.sanity_checking):
            self._parent.hook(name)

    def _metrics(self, trainer: pl.Trainer) -> list[str]:
        """The metrics to compare: the monitored one, or all that the parent logs in validation."""
        monitor, _ = monitored(trainer, self.monitor, self.mode)
        if monitor:
            return [monitor]
        return [] if self._parent is None else sorted(self._parent.names["validation"])

    def _print(self, trainer: pl.Trainer, tested: dict[str, tuple[float, float]]) -> None:
        """Print the table, on one process."""
        if not trainer.is_global_zero:
            return
        monitor, mode = monitored(trainer, self.monitor, self.mode)
        values = self._comparison.columns(self._metrics(trainer), monitor, mode)
        metric = next(iter(self._metrics(trainer)), None)
        table = comparison_table(self._comparison, values | tested, comparison_caption(self._comparison, metric))
        from rich.console import Console

        Console().print(table)
