"""Split neurons in the middle of training, in any Lightning project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn
from typing_extensions import override

from fpe_lightning.arguments import check_strings
from fpe_lightning.callbacks.distributed import check_strategy
from fpe_lightning.callbacks.lightnings import MisconfigurationException
from fpe_lightning.callbacks.module_sites import ModuleSites
from fpe_lightning.callbacks.pruning import check_pruned_sites, check_pruning
from fpe_lightning.callbacks.result import Result
from fpe_lightning.callbacks.resume import Progress, plain_arguments, times_split
from fpe_lightning.callbacks.schedule import ExpansionTrigger, Schedule
from fpe_lightning.callbacks.split import check_module, notify, refused_as_misconfiguration, split_module, teachers_of
from fpe_lightning.callbacks.structure_on_load import StructureOnLoad
from fpe_lightning.callbacks.training_samples import TrainingSamples
from fpe_lightning.epochs import begin_epoch
from fpe_lightning.expansion import BaseExpansion, ExpansionReport, resolve_expansion
from fpe_lightning.expansion.optimizer import hand_over
from fpe_lightning.expansion.students import sites_of_students
from fpe_lightning.expansion.teachers import watch
from fpe_lightning.expansion.wrappers import holders_of
from fpe_lightning.sites.candidates import Refusal
from fpe_lightning.sites.found import Found, summary_of
from fpe_lightning.sites.select import by_pattern, check_found, select_sites
from fpe_lightning.sites.sensible import choose_sites
from fpe_lightning.sparse.model_masks import check_masks


class ExpansionCallback(StructureOnLoad):
    """Fixed Parameter Expansion: split neurons while training, and keep the number of non-zero parameters.

    The split happens before a training batch. Weights, masks, gradients and optimizer state are carried over; learning
    rate schedulers, loggers and other callbacks are not touched. Callbacks that define
    ``on_before_expansion(trainer, pl_module, sites)`` or ``on_after_expansion(trainer, pl_module, report)`` are called
    around it. A checkpoint of any stage loads into a module of any stage, and a resumed run neither repeats nor
    misses a split.

    A run may resume with another schedule, seed or alpha: moments that are over count as done as often as the weights
    were split. A new callback in another ``fit`` splits once more, at its own moments. The log says so in both cases.

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
        averages: Names or globs of parts of the module that follow another part: by a moving average, as the teachers
            of BYOL, MoCo and DINO do, or by ``load_state_dict``, as a DQN target does. They are split with it, with the
            same masks. Most need no name: a part is found where nothing trains it, and it has the structure and much of
            the weights of another part, or changes in training.
        max_splits: With a trigger, how often to split at most.
        example_inputs: The inputs of the LightningModule's ``forward``. Seldom needed: the callback uses the module's
            ``example_input_array``, then the calls of its networks in the first step, then the batch. A split that is
            due before the very first batch happens one batch later where none of these suffices.
        plain_file: Where to write the trained model at the end of ``fit`` as ordinary layers, which nothing of this
            package is needed for: a ``state_dict`` without masks, and how to build the module that takes it. None for
            nowhere.

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
        alpha: int | Literal["auto"] | None = None,
        seed: int | None = None,
        epoch: int | Sequence[int] | None = None,
        step: int | Sequence[int] | None = None,
        fraction: float | Sequence[float] | None = None,
        trigger: ExpansionTrigger | None = None,
        sites: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        averages: str | Sequence[str] = (),
        max_splits: int = 1,
        example_inputs: Any = None,
        plain_file: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.schedule = Schedule(epoch, step, fraction, trigger, max_splits)
        self.result = Result(plain_file)
        try:
            check_strings("sites", sites)
            check_strings("exclude", exclude)
            check_strings("averages", averages, "names or globs of parts of the module")
            self.expansion = resolve_expansion(expansion, alpha, seed)
        except (TypeError, ValueError) as error:
            raise MisconfigurationException(str(error)) from error
        self.sites, self.exclude = sites, exclude
        self.averages = [averages] if isinstance(averages, str) else list(averages)
        self.reports: list[ExpansionReport] = []
        """One report for each split of this process, oldest first."""
        self.left_out: list[Refusal] = []
        """The widths that the last split left as they are, with reasons."""
        arguments = plain_arguments(self.expansion, self.schedule, sites=sites, exclude=exclude)
        # Made once, because Lightning asks for it before every hook. A Trainer takes no two callbacks of one key.
        self._state_key = self._generate_state_key(**arguments)
        self.progress = Progress(self.schedule, arguments)
        self._widths = ModuleSites(example_inputs)
        self._samples = TrainingSamples()
        self._unchecked = False
        self._at_setup: dict[str, nn.Parameter] = {}
        self._watched: dict[str, float] = {}
        self._found: tuple[dict[str, Any] | None, ...] = ()
        self._split_before: int | None = None

    def _reset(self) -> None:
        self.reports.clear()
        self.left_out.clear()
        self.progress.reset()
        self._widths.forget()
        self._samples.clear()

    @property
    @override
    def state_key(self) -> str:
        return self._state_key

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._clean_up()
        # From now on a key that other arguments leave as it is: a resumed run finds the state in any case.
        others = _expansion_callbacks(trainer)
        self._state_key = "ExpansionCallback" + (f" {others.index(self) + 1}" if others.index(self) else "")
        self._found, self.progress.loaded = (), None
        if stage == "fit":
            check_strategy(trainer, pl_module)
            self.schedule.check(trainer)
            self.result.check(trainer)
            if trainer.current_epoch == trainer.global_step == 0:
                self._reset()
            self._at_setup = dict(pl_module.named_parameters())
        super().setup(trainer, pl_module, stage)

    @override
    def _clean_up(self) -> None:
        self._widths.stop()
        super()._clean_up()

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_pruning(trainer, pl_module, self._first_epoch)
        # LightningCLI makes optimizers before the weights are loaded, and their structure with them.
        hand_over(holders_of(trainer.optimizers), self._at_setup, pl_module)
        self._at_setup = {}
        check_module(trainer, pl_module, self.expansions(), self.averages)

    @override
    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.schedule.moments[:1] == [0]:  # a split before the first training step, which would say more
            self._widths.start(pl_module)

    @override
    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._widths.finish_sanity()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.schedule.check_steps(trainer, pl_module)
        self._watched = watch(pl_module, trainer.optimizers)
        self._split_before = times_split(pl_module)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        begin_epoch(trainer)
        if self._split_before is not None:  # the first batch of a fit
            others = [each.progress for each in _expansion_callbacks(trainer) if each is not self]
            self.progress.start(trainer, batch_idx, self._split_before, others)
            self._split_before = None
        if self.progress.more and any(each.needs_data for each in self.expansions()):
            self._samples.add(trainer, batch)
        for _ in range(self.progress.pending or self.schedule.due(trainer, batch_idx, self.progress.done)):
            with refused_as_misconfiguration():
                found = self._widths.known(pl_module, batch)
            if found is None:
                break
            self._split(trainer, pl_module, found)
            self.progress.pending = False
        with refused_as_misconfiguration():
            self._widths.start(pl_module, more=self.progress.more)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        found = self._widths.finish(trainer, pl_module)
        if found is not None and self.progress.more:
            with refused_as_misconfiguration():  # now, and not after epochs
                check_found(pl_module, found)
                sites = select_sites(found.sites, self.sites, self.exclude)
                by_pattern(sites, self._by_name())
            named = [self.sites] if isinstance(self.sites, str) else self.sites or ()
            check_pruned_sites(trainer, pl_module, sites, self._first_epoch, named)
        if self._unchecked:
            check_masks(pl_module)
            self._unchecked = False

    def on_after_expansion(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: ExpansionReport) -> None:
        """Look at the widths again, whichever callback split some."""
        self._widths.update(trainer, more=self.progress.more)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_masks(pl_module)
        # Decided before checkpoints are saved: a resumed run has no metrics to decide by.
        self.progress.pending = self.schedule.asks(trainer, pl_module, self.progress.done)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.progress.warn_of_missing(trainer)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.result.tell(pl_module, checkpoint)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.result.write(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.progress.state_dict() | {"widths": self._widths.state_dict()} | self._samples.state_dict()

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        # Lightning gives each callback the state of its key; other arguments, or more callbacks, may have moved it.
        states = checkpoint.get("callbacks", {})
        saved = {key: states[key] for key in states if key.startswith("ExpansionCallback")}
        state = self.progress.state_among(saved, [each.progress for each in _expansion_callbacks(trainer)])
        self._found = (state,)
        if state is not None and self._state_key not in saved:
            self.load_state_dict(state)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for state in self._found:
            if state is None:
                return
            state_dict = state
        self.progress.load_state_dict(state_dict)
        self._widths.load_state_dict(state_dict.get("widths"))
        self._samples.load_state_dict(state_dict)

    def _by_name(self) -> Mapping[str, BaseExpansion]:
        return self.expansion if isinstance(self.expansion, Mapping) else {"*": self.expansion}

    def expansions(self) -> list[BaseExpansion]:
        """The ways to expand: one, or those of a mapping."""
        return list(self._by_name().values())

    @property
    def _first_epoch(self) -> int:
        """The epoch of the first split; 0 where it is not known."""
        return int(min(self.schedule.moments, default=0)) if self.schedule.kind == "epoch" else 0

    def _fitted(self, trainer: pl.Trainer) -> dict[str, BaseExpansion]:
        """The ways to expand, with the data that their partitions and pruning rules need."""
        data = self._samples.of(trainer) if any(each.needs_data for each in self.expansions()) else None
        clauses = getattr(getattr(trainer, "datamodule", None), "clauses", None)
        return {name: each.fit(data, clauses) for name, each in self._by_name().items()}

    def _split(self, trainer: pl.Trainer, pl_module: pl.LightningModule, found: Found) -> None:
        with refused_as_misconfiguration():
            check_found(pl_module, found)
            teachers = teachers_of(trainer, pl_module, self.averages, self._watched)
            pairs, unsuited = choose_sites(pl_module, found.sites, self._by_name(), self.sites, self.exclude)
            pairs, followed = sites_of_students(pairs, teachers, self.sites or ())
            chosen = [site for site, _ in pairs]
            notify(trainer, "on_before_expansion", pl_module, chosen)
            report = split_module(trainer, pl_module, self._fitted(trainer), chosen, teachers)
        self.progress.done += 1
        if not self.progress.more:
            self._samples.clear()
        self._unchecked = True
        self.reports.append(report)
        rank_zero_info(f"Split before epoch {trainer.current_epoch}, step {trainer.global_step}:\n{report}")
        self.left_out = [*unsuited, *followed, *found.refusals]
        if left_out := summary_of(self.left_out):
            rank_zero_info(f"Not split: {left_out}. `ExpansionCallback.left_out` lists names and reasons.")
        notify(trainer, "on_after_expansion", pl_module, report)


def _expansion_callbacks(trainer: pl.Trainer) -> list[ExpansionCallback]:
    return [each for each in trainer.callbacks if isinstance(each, ExpansionCallback)]  # type: ignore[attr-defined]
