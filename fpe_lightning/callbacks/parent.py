"""A copy of a LightningModule that trains on the same batches, with optimizers, schedules and metrics of its own."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchmetrics import Metric

from fpe_lightning.callbacks.lightnings import MisconfigurationException

PREFIX = "parent/"
"""What the names of the parent's metrics start with."""

_OPTIONS = ("sync_dist", "batch_size", "add_dataloader_idx", "reduce_fx")
"""Arguments of ``LightningModule.log`` that say how values are reduced; the others say where they are shown."""


class Parent:
    """Trains a copy of a module by the module's own hooks, one batch at a time.

    The copy draws its random numbers outside of the run's generators, so that the run stays as it is without a copy.

    Args:
        module: The copy. It calls ``configure_optimizers``, ``training_step`` and the other hooks of its class.
        trainer: The trainer of the module that was copied.
        log: Takes what the copy logs: name, value and the arguments of ``LightningModule.log``.
    """

    def __init__(self, module: pl.LightningModule, trainer: pl.Trainer, log: Callable[..., None]) -> None:
        self.module, self._trainer, self._send = module, trainer, log
        module.trainer = trainer
        module.log = self._log  # type: ignore[method-assign]
        self._metrics: dict[str, dict[str, Metric]] = {}
        self._stage, self._in_batch = "train", False
        self.names: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
        """Names that the copy logs, without prefix, by stage."""
        core = importlib.import_module(f"{_package(trainer)}.core.optimizer")
        self.optimizers, self.schedulers = core._init_optimizers_and_lr_schedulers(module)
        self._begins = True

    def follow(self, module: nn.Module, optimizers: list[Any], schedulers: list[Any]) -> None:
        """Take over modes, optimizer states and schedules from the module that was copied."""
        for ours, theirs in zip(self.module.modules(), module.modules(), strict=True):
            ours.training = theirs.training
        for ours, theirs in zip(self.optimizers, optimizers, strict=True):
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        for ours, theirs in zip(self.schedulers, schedulers, strict=True):
            ours.scheduler.load_state_dict(copy.deepcopy(theirs.scheduler.state_dict()))

    def train(self, batch: Any, batch_idx: int, step: bool) -> None:
        """Train on one batch.

        Args:
            batch: A batch on the module's device.
            batch_idx: Its number in the epoch.
            step: Whether the optimizer steps after it, or gradients go on accumulating.
        """
        module, trainer = self.module, self._trainer
        (optimizer,) = self.optimizers
        losses: list[Tensor] = []

        def closure() -> Tensor | None:
            if self._begins:
                optimizer.zero_grad()
            with trainer.precision_plugin.train_step_context():
                output: Any = module.training_step(batch, *self._number(module.training_step, batch_idx))
            loss: Tensor | None = output["loss"] if isinstance(output, dict) else output
            if loss is None:
                return None
            (loss / trainer.accumulate_grad_batches).backward()
            losses.append(loss.detach())
            if step:
                self._average_gradients()
                value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
                module.configure_gradient_clipping(optimizer, value, algorithm)
            return loss

        with isolate_rng(), self._batch("train"):
            module.on_train_batch_start(batch, batch_idx)
            if step:
                module.optimizer_step(trainer.current_epoch, batch_idx, optimizer, closure)
                self._schedule("step", batch_idx + 1, plateau=None)
            else:
                closure()
            if trainer.is_last_batch:
                # Lightning steps these before checkpoints of the last step, and plateau schedules after validation.
                self._schedule("epoch", trainer.current_epoch + 1, plateau=False)
            module.on_train_batch_end({"loss": losses[-1]} if losses else None, batch, batch_idx)
        self._begins = step

    @torch.no_grad()
    def evaluate(self, stage: str, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        """Run ``validation_step`` or ``test_step`` on one batch, in evaluation mode."""
        run = getattr(self.module, f"{stage}_step")
        context = getattr(
            self._trainer.precision_plugin, "val_step_context" if stage == "validation" else "test_step_context"
        )
        modes = [each.training for each in self.module.modules()]
        self.module.eval()
        with isolate_rng(), self._batch(stage), context():
            run(batch, *self._number(run, batch_idx, dataloader_idx))
        for each, mode in zip(self.module.modules(), modes, strict=True):
            each.training = mode

    def hook(self, name: str) -> None:
        """Call a hook of the module around epochs, and log the metrics that an epoch gathered."""
        self._stage = name.split("_")[1]
        with isolate_rng():
            getattr(self.module, name)()
        if name.endswith("epoch_end"):
            for key, metric in self._metrics.pop(self._stage, {}).items():
                self._send(key, metric.compute(), on_step=False, on_epoch=True)
                metric.reset()

    def end_epoch(self) -> None:
        """Step the schedules that follow a metric of the epoch."""
        self._schedule("epoch", self._trainer.current_epoch + 1, plateau=True)

    def share_buffers(self) -> None:
        """Give all processes the first one's buffers, as DDP does: running averages differ with the data."""
        if self._trainer.world_size > 1:
            for buffer in self.module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights, on the CPU: those of one epoch should not fill an accelerator."""
        return {name: value.detach().cpu().clone() for name, value in self.module.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer states and schedules."""
        return {
            "module": dict(self.module.state_dict()),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "schedulers": [each.scheduler.state_dict() for each in self.schedulers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.module.load_state_dict(state["module"])
        for optimizer, each in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(each)
        for scheduler, each in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.scheduler.load_state_dict(each)

    @contextmanager
    def _batch(self, stage: str) -> Iterator[None]:
        self._stage, self._in_batch = stage, True
        try:
            yield
        finally:
            self._in_batch = False

    def _log(
        self, name: str, value: Any, *_: Any, on_step: bool | None = None, on_epoch: bool | None = None, **options: Any
    ) -> None:
        """What ``self.log`` of the copy does: the defaults of its own hooks, and another name."""
        self.names[self._stage].add(name)
        name = PREFIX + name
        if isinstance(value, Metric):
            # Lightning looks for the metric among the attributes of the module that logs.
            self._metrics.setdefault(self._stage, {})[name] = value
            return
        training = self._in_batch and self._stage == "train"
        on_step = training if on_step is None else on_step
        on_epoch = not training if on_epoch is None else on_epoch
        keep = {
            key: each
            for key, each in options.items()
            if key in ("sync_dist", "batch_size", "add_dataloader_idx", "reduce_fx")
        }
        self._send(name, value, on_step=on_step, on_epoch=on_epoch, **keep)

    @staticmethod
    def _number(step: Callable[..., Any], *numbers: int) -> list[int]:
        """The numbers of batch and loader that a step takes, as Lightning passes them."""
        names = list(inspect.signature(step).parameters)
        return list(numbers[: 2 if "dataloader_idx" in names else min(1, len(names) - 1)])

    def _average_gradients(self) -> None:
        """Average gradients over processes; a gradient that one process lacks counts as zero."""
        if self._trainer.world_size == 1:
            return
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self._trainer.world_size

    def _schedule(self, interval: str, count: int, plateau: bool | None) -> None:
        """Step the schedules of an interval: those that follow a metric, those that do not, or, for None, both."""
        for config in self.schedulers:
            if config.interval != interval or count % config.frequency:
                continue
            if plateau is not None and plateau != config.reduce_on_plateau:
                continue
            value = None
            if config.reduce_on_plateau:
                value = self._trainer.callback_metrics.get(PREFIX + str(config.monitor))
                if value is None:
                    raise MisconfigurationException(
                        f"A schedule of the parent follows {config.monitor!r}, and the parent has not logged "
                        "it: log it in the module itself, or leave CompareWithParent out."
                    )
            self.module.lr_scheduler_step(config.scheduler, value)


def copy_of(pl_module: pl.LightningModule) -> pl.LightningModule:
    """A deep copy of a module, or one sentence why there is none."""
    # Makers of optimizers and schedules are shared: those that LightningCLI gives a module cannot be copied.
    values = [value for module in pl_module.modules() for value in vars(module).values()]
    makers: dict[int, Any] = {id(value): value for value in values if isinstance(value, functools.partial)}
    try:
        return copy.deepcopy(pl_module, makers)
    except Exception as error:
        raise MisconfigurationException(
            f"CompareWithParent copies the module, and {type(pl_module).__name__} cannot be copied ({error}): make it "
            "work with `copy.deepcopy`, or leave the callback out."
        ) from error


def _package(trainer: pl.Trainer) -> str:
    """``lightning.pytorch`` or ``pytorch_lightning``, whichever the trainer comes from."""
    for kind in type(trainer).__mro__:
        for package in ("lightning.pytorch", "pytorch_lightning"):
            if kind.__module__.startswith(package):
                return package
    return "lightning.pytorch"
