"""Split neurons in the middle of training, in any Lightning project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from fpe_lightning.callbacks.distributed import check_ranks_agree, check_strategy, rewrap
from fpe_lightning.callbacks.recorder import Call, CallRecorder, rebuild
from fpe_lightning.callbacks.schedule import ExpansionTrigger, Schedule
from fpe_lightning.expansion.budget import BUDGETS
from fpe_lightning.expansion.checkpoint import restore_structure_on_load
from fpe_lightning.expansion.expand import LAYOUTS, expand
from fpe_lightning.expansion.find import find_sites
from fpe_lightning.expansion.partition import Partition, resolve_partition
from fpe_lightning.expansion.report import ExpansionReport
from fpe_lightning.expansion.select import check_alpha, select_sites, sites_of
from fpe_lightning.expansion.sites import Attribute, Axis, Producer, Site
from fpe_lightning.expansion.tracing.forward import Inputs
from fpe_lightning.sparse.masked import check_masks


class ExpansionCallback(pl.Callback):
    """Fixed Parameter Expansion: split neurons while training, and keep the number of non-zero parameters.

    The split happens before a training batch. Weights, masks, gradients and optimizer state are carried over; learning
    rate schedulers, loggers and other callbacks are not touched. Callbacks that define
    ``on_before_expansion(trainer, pl_module, sites)`` or ``on_after_expansion(trainer, pl_module, report)`` are called
    around it. A checkpoint of any stage loads into a module of any stage, and a resumed run neither repeats nor
    misses a split.

    Args:
        alpha: Children of each neuron, or a mapping from site names (or globs) to it.
        epoch: One or several epochs, counted from 0, at whose first batch to split.
        step: One or several numbers of optimizer steps after which to split.
        fraction: One or several fractions of the run, in [0, 1), after which to split.
        trigger: An object that decides by itself, such as
            :class:`~fpe_lightning.callbacks.schedule.SaturationTrigger`.
        partition: See :func:`~fpe_lightning.expansion.expand.expand`.
        sites: Names or globs of the sites to split, relative to the LightningModule; None for all.
        budget: See :func:`~fpe_lightning.expansion.expand.expand`.
        seed: See :func:`~fpe_lightning.expansion.expand.expand`.
        groups: For ``partition="clause"``; None takes the ``groups`` of the datamodule.
        layout: See :func:`~fpe_lightning.expansion.expand.expand`.
        optimizer_state: ``"follow"``, or ``"reset"`` to begin the state of split parameters anew.
        max_splits: With a trigger, how often to split at most.
        example_inputs: What the LightningModule's ``forward`` takes. Seldom needed: the callback looks at the module's
            ``example_input_array``, then at how the first step calls its networks, then at the batch.

    Raises:
        MisconfigurationException: In the constructor for bad arguments, in ``setup`` for a split that the run never
            reaches or a strategy that cannot split, at the split if the model cannot be split as asked.

    Example:
        >>> callback = ExpansionCallback(alpha=4, epoch=2)
        >>> trainer = pl.Trainer(callbacks=[callback], max_epochs=30, logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        alpha: int | Mapping[str, int] = 2,
        epoch: int | Sequence[int] | None = None,
        step: int | Sequence[int] | None = None,
        fraction: float | Sequence[float] | None = None,
        trigger: ExpansionTrigger | None = None,
        partition: str | Partition = "random",
        sites: str | Sequence[str] | None = None,
        budget: str = "total",
        seed: int = 0,
        groups: Sequence[Sequence[int]] | None = None,
        layout: str = "auto",
        optimizer_state: str = "follow",
        max_splits: int = 1,
        example_inputs: Any = None,
    ) -> None:
        super().__init__()
        self.schedule = Schedule(epoch, step, fraction, trigger, max_splits)
        try:
            check_alpha(alpha)
            if partition != "clause" or groups is not None:
                resolve_partition(partition, groups)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        for name, value, known in (
            ("budget", budget, BUDGETS),
            ("layout", layout, LAYOUTS),
            ("optimizer_state", optimizer_state, ("follow", "reset")),
        ):
            if value not in known:
                raise MisconfigurationException(f"Unknown `{name}` {value!r}; known: {', '.join(known)}.")
        self.alpha, self.partition, self.sites, self.budget, self.seed = alpha, partition, sites, budget, seed
        self.groups, self.layout, self.optimizer_state = groups, layout, optimizer_state
        self.example_inputs = example_inputs
        self.reports: list[ExpansionReport] = []
        """One report for each split of this process, oldest first."""
        self._done = 0
        self._calls: list[Call] = []
        self._recorder: CallRecorder | None = None
        self._restoring: RemovableHandle | None = None
        self._unchecked = False

    @property
    @override
    def state_key(self) -> str:
        schedule = self.schedule
        return self._generate_state_key(
            alpha=self.alpha, kind=schedule.kind, moments=schedule.moments, sites=self.sites, seed=self.seed
        )

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            check_strategy(trainer)
            self.schedule.check(trainer)
        # Weights are loaded before any callback's state, so the structure has to come from the weights themselves.
        self._restoring = restore_structure_on_load(pl_module)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop_recording()
        if self._restoring is not None:
            self._restoring.remove()
            self._restoring = None

    @override
    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start_recording(pl_module)

    @override
    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_recording()

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        while self.schedule.due(trainer, pl_module, batch_idx, self._done):
            self._split(trainer, pl_module, batch)
        if not self._calls and self._done < self.schedule.count:
            self._start_recording(pl_module)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop_recording()
        if self._unchecked:
            check_masks(pl_module)
            self._unchecked = False

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_masks(pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"done": self._done, "calls": self._calls}
        if hasattr(self.schedule.trigger, "state_dict"):
            state["trigger"] = self.schedule.trigger.state_dict()
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._done, self._calls = state_dict["done"], state_dict["calls"]
        if hasattr(self.schedule.trigger, "load_state_dict"):
            self.schedule.trigger.load_state_dict(state_dict["trigger"])

    def _start_recording(self, pl_module: pl.LightningModule) -> None:
        if self._recorder is None and not self._calls:
            self._recorder = CallRecorder(pl_module)

    def _stop_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.stop()
            self._calls = self._recorder.calls
            self._recorder = None

    def _split(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        groups = self.groups
        if self.partition == "clause" and groups is None:
            groups = getattr(getattr(trainer, "datamodule", None), "groups", None)
        try:
            chosen = select_sites(self.find_sites(pl_module, batch), self.alpha, self.sites)
            sites = [site for site, _ in chosen]
            _notify(trainer, "on_before_expansion", pl_module, sites)
            report = expand(
                pl_module,
                alpha={site.name: factor for site, factor in chosen},
                partition=self.partition,
                groups=groups,
                sites=sites,
                budget=self.budget,
                seed=self.seed,
                layout=self.layout,
                optimizer=trainer.optimizers,
                optimizer_state=self.optimizer_state,
            )
        except ValueError as error:
            raise MisconfigurationException(f"ExpansionCallback cannot split: {error}") from error
        check_ranks_agree(trainer, pl_module)
        rewrap(trainer)
        # Compiled code is specialised on shapes; without this it would give up after a few splits and run uncompiled.
        torch._dynamo.reset()
        self._done += 1
        self._unchecked = True
        self.reports.append(report)
        rank_zero_info(f"Split before epoch {trainer.current_epoch}, step {trainer.global_step}:\n{report}")
        _notify(trainer, "on_after_expansion", pl_module, report)

    def find_sites(self, pl_module: pl.LightningModule, batch: Any) -> list[Site]:
        """Find the module's sites from whatever is known of its inputs; names are relative to the module.

        Args:
            pl_module: The module.
            batch: The batch about to be trained on; used where nothing else is known.
        """
        example = self.example_inputs
        if example is None:
            example = getattr(pl_module, "example_input_array", None)
        if example is None and self._calls:
            return [site for call in self._calls for site in _sites_of_call(pl_module, call)]
        if example is None:
            example = batch[0] if isinstance(batch, (list, tuple)) else batch
        return sites_of(pl_module, example)


def _sites_of_call(pl_module: pl.LightningModule, call: Call) -> list[Site]:
    """The sites of one network, found with a call noted before, under the names that the LightningModule knows."""
    network = pl_module.get_submodule(call["module"])
    args, kwargs = rebuild(call["args"], pl_module.device), rebuild(call["kwargs"], pl_module.device)
    prefix = f"{call['module']}." if call["module"] else ""
    return [prefixed(site, prefix) for site in find_sites(network, Inputs(args, kwargs))]


def prefixed(site: Site, prefix: str) -> Site:
    """The same site seen from a module further up.

    Example:
        >>> prefixed(Site("0", 8, 4, (), (), (Axis("2.weight", 1, 0, 8),)), "net.").consumers[0].parameter
        'net.2.weight'
    """

    def move(axis: Any) -> Any:
        return replace(axis, parameter=prefix + axis.parameter)

    def move_attribute(attribute: Attribute) -> Attribute:
        return replace(attribute, module=(prefix + attribute.module).rstrip("."))

    producers: tuple[Producer, ...] = tuple(map(move, site.producers))
    values: tuple[Axis, ...] = tuple(map(move, site.values))
    consumers: tuple[Axis, ...] = tuple(map(move, site.consumers))
    attributes = tuple(map(move_attribute, site.attributes))
    name = (prefix + site.name).rstrip(".")
    return replace(site, name=name, producers=producers, values=values, consumers=consumers, attributes=attributes)


def _notify(trainer: pl.Trainer, hook: str, pl_module: pl.LightningModule, argument: Any) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, hook):
            getattr(callback, hook)(trainer, pl_module, argument)
