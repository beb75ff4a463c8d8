"""Split neurons in the middle of training, in any Lightning project."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from fpe_lightning.callbacks.averages import averages_of, check_averages
from fpe_lightning.callbacks.distributed import check_strategy, splitting
from fpe_lightning.callbacks.fsdp2.strategy import check_fsdp2
from fpe_lightning.callbacks.module_sites import sites_of_module
from fpe_lightning.callbacks.pruning import check_pruning
from fpe_lightning.callbacks.schedule import ExpansionTrigger, Schedule, StatefulTrigger
from fpe_lightning.callbacks.training_samples import TrainingSamples
from fpe_lightning.checkpoints.restore import restore_structure_on_load
from fpe_lightning.expansion import AnyExpansion, BaseExpansion, ExpansionReport, expand, resolve_expansion
from fpe_lightning.expansion.optimizer import hand_over
from fpe_lightning.sites.recorder import Call, CallRecorder
from fpe_lightning.sites.select import by_pattern, select_sites
from fpe_lightning.sites.site import Site
from fpe_lightning.sparse.model_masks import check_masks


class ExpansionCallback(pl.Callback):
    """Fixed Parameter Expansion: split neurons while training, and keep the number of non-zero parameters.

    The split happens before a training batch. Weights, masks, gradients and optimizer state are carried over; learning
    rate schedulers, loggers and other callbacks are not touched. Callbacks that define
    ``on_before_expansion(trainer, pl_module, sites)`` or ``on_after_expansion(trainer, pl_module, report)`` are called
    around it. A checkpoint of any stage loads into a module of any stage, and a resumed run neither repeats nor
    misses a split.

    Args:
        expansion: How to expand, such as ``fpe.Paper(alpha=4)``, or a mapping from names or globs of sites to such
            objects. None expands by shape.
        alpha: Children of each neuron, where no ``expansion`` is given.
        seed: Every draw depends on it, where no ``expansion`` is given.
        epoch: One or several epochs, counted from 0, at whose first batch to split.
        step: One or several numbers of optimizer steps after which to split.
        fraction: One or several fractions of the run, in [0, 1), after which to split.
        trigger: An object that decides by itself, such as ``SaturationTrigger()``.
        sites: Names or globs of the sites to split, relative to the LightningModule; None for all.
        exclude: Names or globs of sites that are left as they are.
        max_splits: With a trigger, how often to split at most.
        example_inputs: The inputs of the LightningModule's ``forward``. Seldom needed: the callback uses the module's
            ``example_input_array``, then the calls of its networks in the first step, then the batch. A split that is
            due before the very first batch happens one batch later where none of these suffices.

    Raises:
        MisconfigurationException: In the constructor for bad arguments, in ``setup`` for a split that the run never
            reaches or a strategy that cannot split, at the split if the model cannot be split as asked.

    Example:
        >>> callback = ExpansionCallback(alpha=4, epoch=2)
        >>> trainer = pl.Trainer(callbacks=[callback], max_epochs=30, logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        expansion: BaseExpansion | Mapping[str, BaseExpansion] | None = None,
        *,
        alpha: int | None = None,
        seed: int | None = None,
        epoch: int | Sequence[int] | None = None,
        step: int | Sequence[int] | None = None,
        fraction: float | Sequence[float] | None = None,
        trigger: ExpansionTrigger | None = None,
        sites: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        max_splits: int = 1,
        example_inputs: Any = None,
    ) -> None:
        super().__init__()
        self.schedule = Schedule(epoch, step, fraction, trigger, max_splits)
        try:
            self.expansion = resolve_expansion(expansion, alpha, seed)
        except (TypeError, ValueError) as error:
            raise MisconfigurationException(str(error)) from error
        self.sites, self.exclude = sites, exclude
        self.example_inputs = example_inputs
        self.reports: list[ExpansionReport] = []
        """One report for each split of this process, oldest first."""
        kind, moments = self.schedule.kind, self.schedule.moments
        # Made once: Lightning asks for it before every hook. A function's address is another one in the next process.
        expansion_key = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self.expansion))
        self._state_key = self._generate_state_key(
            expansion=expansion_key, kind=kind, moments=moments, sites=sites, exclude=exclude
        )
        self._samples = TrainingSamples()
        self._reset()
        self._recording = ExitStack()
        self._restoring: list[RemovableHandle] = []
        self._unchecked = False
        self._at_setup: dict[str, nn.Parameter] = {}

    def _reset(self) -> None:
        self.reports.clear()
        self._done = 0
        self._pending = False
        self._calls: list[Call] = []
        self._sanity_calls: list[Call] = []
        self._samples.clear()

    @property
    @override
    def state_key(self) -> str:
        return self._state_key

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._clean_up()
        if stage == "fit":
            check_strategy(trainer, pl_module)
            self.schedule.check(trainer)
            if trainer.current_epoch == trainer.global_step == 0:
                self._reset()
            self._at_setup = dict(pl_module.named_parameters())
        # Weights are loaded before any callback's state, so the structure has to come from the weights themselves.
        # Callbacks set up later copy the module together with this hook.
        self._restoring = [restore_structure_on_load(each) for each in (pl_module, *averages_of(trainer, pl_module))]

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._clean_up()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._clean_up()

    def _clean_up(self) -> None:
        self._recording.close()
        for handle in self._restoring:
            handle.remove()
        self._restoring = []

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_averages(trainer)
        moments = self.schedule.moments if self.schedule.kind == "epoch" else []
        check_pruning(trainer, pl_module, int(min(moments, default=0)))
        # LightningCLI makes optimizers before the weights are loaded, and their structure with them.
        hand_over(trainer.optimizers, self._at_setup, pl_module)
        self._at_setup = {}
        check_fsdp2(trainer, pl_module, [getattr(each, "layout", "masked") for each in self.expansions()])

    @override
    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._record(pl_module, self._sanity_calls)

    @override
    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._recording.close()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.schedule.check_steps(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._done < self.schedule.count and any(each.needs_data for each in self.expansions()):
            self._samples.add(trainer, batch)
        for _ in range(self._pending or self.schedule.due(trainer, batch_idx, self._done)):
            calls = self._calls or self._sanity_calls
            sites = sites_of_module(pl_module, self.example_inputs, calls, batch)
            if sites is None:
                break
            self._split(trainer, pl_module, sites)
            self._pending = False
        if not self._calls and self._done < self.schedule.count:
            self._record(pl_module, self._calls)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._recording.close()
        if self._unchecked:
            check_masks(pl_module)
            self._unchecked = False

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_masks(pl_module)
        # Decided before checkpoints are saved: a resumed run has no metrics to decide by.
        self._pending = self.schedule.asks(trainer, pl_module, self._done)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        missing = self.schedule.count - self._done
        if missing and self.schedule.trigger is None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"The run ended after epoch {trainer.current_epoch - 1}, step {trainer.global_step}, before {missing} "
                f"of {self.schedule.count} splits of ExpansionCallback were due: `{self.schedule.kind}="
                f"{self.schedule.moments[self._done]}` was not reached."
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        trigger = self.schedule.trigger
        state: dict[str, Any] = {"done": self._done, "pending": self._pending, "calls": self._calls}
        state |= self._samples.state_dict()
        if isinstance(trigger, StatefulTrigger):
            state["trigger"] = trigger.state_dict()
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        trigger = self.schedule.trigger
        self._done, self._pending, self._calls = state_dict["done"], state_dict["pending"], state_dict["calls"]
        self._samples.load_state_dict(state_dict)
        if isinstance(trigger, StatefulTrigger):
            trigger.load_state_dict(state_dict["trigger"])

    def _record(self, pl_module: pl.LightningModule, calls: list[Call]) -> None:
        """Note calls until :attr:`_recording` is closed, where nothing else tells what networks take."""
        if self.example_inputs is None and getattr(pl_module, "example_input_array", None) is None:
            self._recording.close()
            self._recording.callback(CallRecorder(pl_module, calls).stop)

    def expansions(self) -> list[BaseExpansion]:
        """The ways to expand: one, or those of a mapping."""
        return list(self.expansion.values()) if isinstance(self.expansion, Mapping) else [self.expansion]

    def _fitted(self, trainer: pl.Trainer) -> AnyExpansion:
        """The expansion, with the data that its partitions and pruning rules need."""
        data = self._samples.of(trainer) if any(each.needs_data for each in self.expansions()) else None
        clauses = getattr(getattr(trainer, "datamodule", None), "clauses", None)
        if isinstance(self.expansion, Mapping):
            return {name: each.fit(data, clauses) for name, each in self.expansion.items()}
        return self.expansion.fit(data, clauses)

    def _split(self, trainer: pl.Trainer, pl_module: pl.LightningModule, found: list[Site]) -> None:
        try:
            chosen = select_sites(found, self.sites, self.exclude)
            if isinstance(self.expansion, Mapping):
                chosen = [site for site, _ in by_pattern(chosen, self.expansion, strict=self.sites is not None)]
            _notify(trainer, "on_before_expansion", pl_module, chosen)
            # Layouts are timed in the precision that steps are computed in.
            timed = any(getattr(each, "layout", None) == "auto" for each in self.expansions())
            precision = trainer.precision_plugin.forward_context() if timed else nullcontext()
            with splitting(trainer, pl_module, chosen), precision:
                report = expand(
                    pl_module,
                    self._fitted(trainer),
                    sites=chosen,
                    optimizer=trainer.optimizers,
                    averages=averages_of(trainer, pl_module),
                )
        except ValueError as error:
            raise MisconfigurationException(f"ExpansionCallback cannot split: {error}") from error
        # Compiled code is specialised on shapes; without this it would give up after a few splits and run uncompiled.
        torch._dynamo.reset()
        self._done += 1
        self._unchecked = True
        self.reports.append(report)
        rank_zero_info(f"Split before epoch {trainer.current_epoch}, step {trainer.global_step}:\n{report}")
        _notify(trainer, "on_after_expansion", pl_module, report)


def _notify(trainer: pl.Trainer, hook: str, pl_module: pl.LightningModule, argument: Any) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, hook):
            getattr(callback, hook)(trainer, pl_module, argument)
