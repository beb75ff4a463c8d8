"""Rewire masks while training, in any Lightning project: dynamic sparse training at a fixed number of non-zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from typing_extensions import override

from fpe_lightning.callbacks.averages import averages_of, holders_of_shadows
from fpe_lightning.callbacks.expansion import ExpansionCallback
from fpe_lightning.callbacks.lightnings import MisconfigurationException
from fpe_lightning.callbacks.rewire_log import RewireLog
from fpe_lightning.callbacks.rewire_ranks import check_masks_agree, check_strategy
from fpe_lightning.callbacks.rewire_schedule import RewireSchedule
from fpe_lightning.callbacks.structure_on_load import StructureOnLoad
from fpe_lightning.rewiring import GradientSums, RewireReport, Weight, movable_weights, rewire
from fpe_lightning.rewiring.update import check_arguments, nothing_masked
from fpe_lightning.rewiring.weights import check_layers, is_dense

MOMENTUM = 0.9


class Rewire(StructureOnLoad):
    """Move masked weights while training: drop the smallest, grow as many where the dense gradient is largest.

    The number of non-zeros stays the same at every step. Every masked weight takes part: of a split (before, at and
    after it, in either order of the callbacks), of a wide and sparse start (:func:`~fpe_lightning.sparsify`), and of
    folded weights, which stay folded. An update happens before a training batch, so that validation and checkpoints at
    the end of an epoch see weights that were trained. A split starts the window over. The share of weights that moves
    falls by a half cosine over the run.

    A masked layer computes its dense gradient in any case; the callback adds it to one sum a layer inside of the window
    before an update, and holds nothing outside of it. A shorter ``window`` saves that memory (4 bytes for each entry of
    the dense weight, of the parent's for a folded one) and the addition, for most of the run. See
    ``docs/rewiring.md`` for measured times.

    Every logger gets ``rewire/moved``, and ``moved``, ``overlap`` (with the first mask) and ``mean_fan_in`` of each
    weight, at each update; TensorBoard also a histogram of the fan-in, and at the end a figure of the mask over time.

    Args:
        method: ``"rigl"`` grows by gradient, ``"set"`` at random, which needs no window.
        fraction: Share of the weights of each layer that moves in the first update, in (0, 1).
        every: Optimizer steps between two updates. None means one epoch, at most 500 steps, and less in runs of fewer
            than 20 epochs.
        until: Share of the run after which masks stay, in (0, 1].
        layers: Names or globs of layers, relative to the LightningModule; None for all masked ones.
        growth: ``"gradient"``, ``"random"`` or ``"momentum"`` (a decaying sum); None leaves it to ``method``.
        window: Over which steps before an update gradients are summed: a number of optimizer steps (``8``), or a share
            of all steps between two updates (``1.0``: all).
        scope: ``"layer"`` keeps the number of each layer; ``"model"`` moves weights between layers, the classifier
            included, which suits inputs that are few.
        averages: Names or globs of parts of the module that follow another part, as in ``ExpansionCallback``. Averages
            (EMA) of other callbacks and most teachers are found without a name.
        seed: Of random growth.

    Raises:
        MisconfigurationException: In the constructor for bad arguments; at the start of training for a layer that the
            model has not, where nothing is masked and no ``ExpansionCallback`` is going to change that, for a weight
            that was asked for and whose layout cannot move, and for a strategy that shards weights.

    Example:
        >>> callback = Rewire(every=100, window=8)
        >>> trainer = pl.Trainer(callbacks=[callback], max_epochs=30, logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        method: str = "rigl",
        *,
        fraction: float = 0.3,
        every: int | None = None,
        until: float = 0.75,
        layers: str | Sequence[str] | None = None,
        growth: str | None = None,
        window: int | float = 1.0,
        scope: str = "layer",
        averages: str | Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        try:
            self.growth = check_arguments(method, fraction, growth, scope)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self.method, self.scope, self.seed = method, scope, seed
        self.schedule = RewireSchedule(every, until, window, fraction)
        self.layers = [layers] if isinstance(layers, str) else None if layers is None else list(layers)
        self.averages = [averages] if isinstance(averages, str) else list(averages)
        self._log = RewireLog()
        self.reports: list[RewireReport] = []
        """One report for each update of this process, oldest first."""
        self._reset()

    def _reset(self) -> None:
        self.reports.clear()
        self._log = RewireLog()
        self._steps = 0
        self._last = 0
        self._updates = 0
        self._before = 0
        self._sums: GradientSums | None = None
        self._window = 1
        self._saved: dict[str, Any] | None = None
        self._world: pl.Trainer | None = None
        self._told = False

    @property
    @override
    def state_key(self) -> str:
        return "Rewire" if self.layers is None else f"Rewire {self.layers}"

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        check_strategy(trainer)
        self.schedule.check(trainer)
        if trainer.current_epoch == trainer.global_step == 0:
            self._reset()
        self._world = trainer

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            check_layers(pl_module, self.layers)
        except ValueError as error:
            raise MisconfigurationException(f"Rewire cannot start: {error}") from error

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.schedule.check_steps(trainer)
        splits = any(isinstance(each, ExpansionCallback) for each in trainer.callbacks)  # type: ignore[attr-defined]
        self._weights(trainer, pl_module, needed=not splits)

    def on_after_expansion(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: Any) -> None:
        """Begin the window again with the new weights."""
        self._stop()
        self._sums = None
        self._weights(trainer, pl_module, needed=True)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        interval = self.schedule.interval(trainer)
        share = self.schedule.share(trainer, batch_idx)
        if self._saved is not None:
            self._sums = GradientSums(self._weights(trainer, pl_module))
            self._sums.load_state_dict(self._saved)
            self._window, self._saved = self._saved["window"], None
        if self._steps - self._last >= interval:
            if share:
                self._update(trainer, pl_module, share)
            self._last, self._sums = self._steps, None
        self._before = trainer.global_step
        if share and self.growth != "random":
            self._watch(trainer, pl_module, self._last + interval - self._steps, self.schedule.window_of(interval))

    def _watch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, left: int, window: int) -> None:
        """Let the backward passes of this batch add to the sums, if it is in the window."""
        if left > window:
            return
        if self._sums is None:
            self._sums = GradientSums(self._weights(trainer, pl_module), turns=left)
            self._window = left
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._sums.factor = 1.0 if scaler is None else 1.0 / scaler.get_scale()
        self._sums.start()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop()
        if trainer.global_step == self._before:  # gradients are accumulated
            return
        self._steps += 1
        if self._sums is None:
            return
        done = self._window - (self._last + self.schedule.interval(trainer) - self._steps)
        for total in self._sums.values():
            if self.growth == "momentum":
                total.decay(MOMENTUM)
            # The rows of folded weights take turns, of as many steps each.
            while total.turn < min(done * len(total.rows) // self._window, len(total.rows) - 1):
                if trainer.world_size > 1:
                    total.add_up(self._sum_of, keep=True)
                if not total.end_turn():
                    break

    def _stop(self) -> None:
        if self._sums is not None:
            self._sums.stop()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()
        super().on_exception(trainer, pl_module, exception)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop()
        super().teardown(trainer, pl_module, stage)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log.draw(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._updates and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"Rewire has moved nothing in {self._steps} optimizer steps: no weight was masked when an update was "
                f"due, every {self.schedule.interval(trainer)} steps until {self.schedule.until:.0%} of the run."
            )

    def _weights(self, trainer: pl.Trainer, pl_module: pl.LightningModule, needed: bool = False) -> list[Weight]:
        """The weights to rewire now; refuse what was asked for and cannot be."""
        try:
            weights, left_out = movable_weights(pl_module, self.layers, trainer.optimizers, dense=self.scope == "model")
            if needed and all(is_dense(each) for each in weights):
                raise ValueError(nothing_masked(left_out))
        except ValueError as error:
            raise MisconfigurationException(f"Rewire cannot rewire: {error}") from error
        if needed and left_out and not self._told:
            self._told = True
            reasons = "; ".join(f"`{name}`, as {reason}" for name, reason in left_out.items())
            rank_zero_info(f"Rewire leaves out {reasons}.")
        return [] if all(is_dense(each) for each in weights) else weights

    def _update(self, trainer: pl.Trainer, pl_module: pl.LightningModule, share: float) -> None:
        weights = self._weights(trainer, pl_module)
        if not weights or (self.growth != "random" and self._sums is None):
            return
        if trainer.world_size > 1:
            for total in (self._sums or {}).values():
                total.add_up(self._sum_of, keep=True)
        self._log.see(trainer, weights)
        report = rewire(
            pl_module,
            self._sums,
            method=self.method,
            fraction=share,
            growth=self.growth,
            scope=self.scope,
            layers=self.layers,
            optimizer=trainer.optimizers,
            averages=[
                *self.averages,
                *averages_of(trainer, pl_module),
                *holders_of_shadows(trainer, pl_module),
            ],
            seed=self.seed + self._updates,
        )
        self._updates += 1
        self.reports.append(report)
        check_masks_agree(trainer, weights)
        self._log.log(trainer, report, weights)

    def _sum_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        assert self._world is not None
        total = self._world.strategy.reduce(tensor, reduce_op="sum")
        assert isinstance(total, torch.Tensor)
        return total

    @override
    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"steps": self._steps, "last": self._last, "updates": self._updates}
        state["log"] = self._log.state_dict()
        if self._sums is not None:
            # One file for all processes: the first one keeps the sum of all, and the others begin at zero.
            if self._world is not None and self._world.world_size > 1:
                for total in self._sums.values():
                    total.add_up(self._sum_of, keep=self._world.is_global_zero)
            state["sums"] = self._sums.state_dict() | {"window": self._window}
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps, self._last, self._updates = (state_dict[key] for key in ("steps", "last", "updates"))
        self._log.load_state_dict(state_dict.get("log", {}))
        self._sums, self._saved = None, state_dict.get("sums")
        if self._saved is not None and self._world is not None and not self._world.is_global_zero:
            self._saved = GradientSums.emptied(self._saved)
