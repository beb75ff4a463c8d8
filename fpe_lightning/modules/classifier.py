"""Train any network as a classifier."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from typing_extensions import override

from fpe_lightning.checkpoints.load_hook import restore_structure_on_load
from fpe_lightning.modules.totals import Totals

Batch = tuple[Tensor, Tensor]


class Classifier(pl.LightningModule):
    """A network trained by cross-entropy on batches ``(x, y)``.

    Logs ``loss`` and ``accuracy`` under ``train/``, ``val/`` and ``test/``, once per epoch. Checkpoints from before and
    after a split load in the same way, with ``load_from_checkpoint`` too.

    Args:
        network: Maps ``x`` to logits ``(batch, classes)``, or to one logit ``(batch, 1)`` for ``task="binary"``.
        optimizer: Creates the optimizer from the parameters.
        scheduler: Creates the learning rate scheduler from the optimizer.
        scheduler_interval: Whether the scheduler steps each ``"epoch"`` or each ``"step"``.
        metrics: More metrics, logged under ``val/`` and ``test/`` by these names, such as
            ``{"f1": MulticlassF1Score(10)}``; each takes logits ``(batch, classes)``, or ``(batch,)`` for the binary
            task, and labels ``(batch,)``.
        task: ``"multiclass"`` (softmax, class numbers) or ``"binary"`` (sigmoid, labels 0 and 1).

    Raises:
        MisconfigurationException: If ``task`` or ``scheduler_interval`` is unknown, or, at the start of a run, if the
            sizes of the network and of the data differ.

    Example:
        >>> from fpe_lightning.networks import MLP
        >>> model = Classifier(MLP(512, 8, 94))
        >>> model(torch.zeros(2, 512)).shape
        torch.Size([2, 94])
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        task: Literal["multiclass", "binary"] = "multiclass",
        metrics: dict[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("task", task, ("multiclass", "binary")),
            ("scheduler_interval", scheduler_interval, ("epoch", "step")),
        ):
            if value not in choices:
                raise MisconfigurationException(
                    f"`{name}` has to be {' or '.join(map(repr, choices))}, found {value!r}."
                )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Attribute 'network' is an instance of `nn.Module`")
            self.save_hyperparameters()
        if isinstance(self.hparams.get("network"), nn.Module):
            # Created in Python, not from a config: save plain types only, so that the checkpoint loads safely.
            objects = ["network", "optimizer", "scheduler", "metrics"]
            for name in objects:
                self.hparams.pop(name, None)
            self.save_hyperparameters(ignore=objects)
        self.network = network
        self.optimizer, self.scheduler = optimizer, scheduler
        self.scheduler_interval, self.task = scheduler_interval, task
        collection = MetricCollection(dict(metrics or {}))
        self.val_metrics, self.test_metrics = collection.clone(prefix="val/"), collection.clone(prefix="test/")
        self._train_totals, self._totals = Totals(), Totals()
        restore_structure_on_load(self)

    @override
    def setup(self, stage: str) -> None:
        """Check that the network and the data have the same sizes."""
        data = getattr(self.trainer, "datamodule", None)
        for ours, theirs, role in (
            ("in_features", "num_features", "inputs"),
            ("out_features", "num_outputs", "outputs"),
        ):
            # Both sides may lack the attribute; only two known and different sizes are an error.
            expected, found = getattr(self.network, ours, None), getattr(data, theirs, None)
            if isinstance(expected, int) and isinstance(found, int) and expected != found:
                key = f"`--model.network.init_args.{ours}={found}`"
                known = ours in inspect.signature(type(self.network)).parameters
                raise MisconfigurationException(
                    f"The network has {expected} {role}, and {type(data).__name__} gives {found}: "
                    f"{f'set {key}' if known else f'build the network with {found}'}."
                )

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of inputs to logits."""
        return self.network(x)

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy, in nats.

        Args:
            logits: ``(batch, classes)``, or ``(batch, 1)`` for the binary task.
            y: ``(batch,)``, class numbers, or 0 and 1.
        """
        if self.task == "binary":
            return F.binary_cross_entropy_with_logits(logits.squeeze(-1), y.to(logits.dtype))
        return F.cross_entropy(logits, y)

    def predictions(self, logits: Tensor) -> Tensor:
        """Class numbers ``(batch,)`` of logits."""
        return (logits.squeeze(-1) > 0).long() if self.task == "binary" else logits.argmax(-1)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._step(batch)

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, self.val_metrics)

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, self.test_metrics)

    def _step(self, batch: Batch, metrics: MetricCollection | None = None) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = self.loss(logits, y)
        totals = self._train_totals if self.training else self._totals
        totals.add(loss, self.predictions(logits), y)
        if metrics:
            metrics.update(logits.squeeze(-1) if self.task == "binary" else logits, y.long())
            self.log_dict(metrics, on_step=False, on_epoch=True)
        return loss

    @override
    def on_train_epoch_end(self) -> None:
        self._log("train", self._train_totals)

    @override
    def on_validation_epoch_end(self) -> None:
        self._log("val", self._totals)

    @override
    def on_test_epoch_end(self) -> None:
        self._log("test", self._totals)

    def _log(self, stage: str, totals: Totals) -> None:
        loss, accuracy = totals.pop(self.all_gather if self.trainer.world_size > 1 else None)
        self.log_dict({f"{stage}/loss": loss, f"{stage}/accuracy": accuracy}, prog_bar=stage == "val")

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Class numbers ``(batch,)``; labels in the batch, if any, are ignored."""
        return self.predictions(self(batch[0] if isinstance(batch, (list, tuple)) else batch))

    @torch.no_grad()
    def accuracy(self, batches: Iterable[Batch]) -> float:
        """Accuracy over some batches, in [0, 1], outside the Trainer's loops; the module keeps its mode."""
        totals = Totals()
        training = self.training
        self.eval()
        for x, y in batches:
            logits, labels = self(x.to(self.device)), y.to(self.device)
            totals.add(self.loss(logits, labels), self.predictions(logits), labels)
        self.train(training)
        return float(
            totals.pop(self.all_gather if self._trainer is not None and self.trainer.world_size > 1 else None)[1]
        )

    @override
    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": self.scheduler_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}
