"""Split neurons in the middle of training, in any Lightning project."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from fpe_lightning.callbacks.averages import averages_of, check_averages, holders_of_shadows
from fpe_lightning.callbacks.distributed import check_strategy, splitting
from fpe_lightning.callbacks.fsdp2.strategy import check_fsdp2
from fpe_lightning.callbacks.lightnings import Callback, MisconfigurationException
from fpe_lightning.callbacks.module_sites import ModuleSites
from fpe_lightning.callbacks.pruning import check_pruning
from fpe_lightning.callbacks.result import Result
from fpe_lightning.callbacks.resume import changes, done_with, outlook, state_of, times, times_split
from fpe_lightning.callbacks.schedule import ExpansionTrigger, Schedule, StatefulTrigger
from fpe_lightning.callbacks.training_samples import TrainingSamples
from fpe_lightning.checkpoints.restore import restore_structure_on_load, restores_structure_on_load
from fpe_lightning.expansion import AnyExpansion, BaseExpansion, ExpansionReport, expand, resolve_expansion
from fpe_lightning.expansion.optimizer import hand_over
from fpe_lightning.expansion.teachers import Teacher, find_teachers, resolve_averages, sites_of_students, watch
from fpe_lightning.expansion.wrappers import check_holds, holders_of
from fpe_lightning.sites.candidates import Refusal
from fpe_lightning.sites.found import Found, summary_of
from fpe_lightning.sites.select import by_pattern, check_found, select_sites
from fpe_lightning.sites.sensible import choose_sites
from fpe_lightning.sparse.model_masks import check_masks


class ExpansionCallback(Callback):
    """Fixed Parameter Expansion: split neurons while training, and keep the number of non-zero parameters.

    The split happens before a training batch. Weights, masks, gradients and optimizer state are carried over; learning
    rate schedulers, loggers and other callbacks are not touched. Callbacks that define
    ``on_before_expansion(trainer, pl_module, sites)`` or ``on_after_expansion(trainer, pl_module, report)`` are called
    around it. A checkpoint of any stage loads into a module of any stage, and a resumed run neither repeats nor
    misses a split.

    A run may resume with another schedule, seed or alpha. Moments of the new schedule that are over count as done as
    often as the weights were split, and later ones are still to come; a line of the log says so. A new callback in
    another ``fit`` of a module that is split already splits it once more, at the moments of its own schedule, and says
    so too; leave the callback out to train on without.

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
        alpha: int | None = None,
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
            self.expansion = resolve_expansion(expansion, alpha, seed)
        except (TypeError, ValueError) as error:
            raise MisconfigurationException(str(error)) from error
        self.sites, self.exclude = sites, exclude
        self.averages = [averages] if isinstance(averages, str) else list(averages)
        self._widths = ModuleSites(example_inputs)
        self.reports: list[ExpansionReport] = []
        """One report for each split of this process, oldest first."""
        self.left_out: list[Refusal] = []
        """The widths that the last split left as they are, with reasons."""
        kind, moments = self.schedule.kind, self.schedule.moments
        # A function's address is another one in the next process.
        given = {"expansion": re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self.expansion)), "kind": kind, "moments": moments}
        chosen = {"sites": sites, "exclude": exclude}
        chosen = {name: each if each is None or isinstance(each, str) else list(each) for name, each in chosen.items()}
        self._arguments: dict[str, Any] = given | chosen
        # Made once, because Lightning asks for it before every hook. A Trainer takes no two callbacks of one key.
        self._state_key = self._generate_state_key(**self._arguments)
        self._samples = TrainingSamples()
        self._reset()
        self._restoring: list[RemovableHandle] = []
        self._unchecked = False
        self._at_setup: dict[str, nn.Parameter] = {}
        self._watched: dict[str, float] = {}
        self._found: tuple[dict[str, Any] | None, ...] = ()
        self._loaded: dict[str, Any] | None = None
        self._starts = False
        self._split_before = 0

    def _reset(self) -> None:
        self.reports.clear()
        self.left_out.clear()
        self._done = 0
        self._pending = False
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
        self._found, self._loaded = (), None
        if stage == "fit":
            self._starts = True
            check_strategy(trainer, pl_module)
            self.schedule.check(trainer)
            self.result.check()
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
        self._widths.stop()
        for handle in self._restoring:
            handle.remove()
        self._restoring = []

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        check_averages(trainer, pl_module)
        moments = self.schedule.moments if self.schedule.kind == "epoch" else []
        check_pruning(trainer, pl_module, int(min(moments, default=0)))
        # LightningCLI makes optimizers before the weights are loaded, and their structure with them.
        hand_over(holders_of(trainer.optimizers), self._at_setup, pl_module)
        self._at_setup = {}
        layouts = [getattr(each, "layout", "masked") for each in self.expansions()]
        check_fsdp2(trainer, pl_module, layouts)
        with _as_misconfiguration():
            find_teachers(pl_module, trainer.optimizers, resolve_averages(pl_module, self.averages)[0])
            check_holds(pl_module, self._optimizers(trainer, pl_module))

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
        if self._starts:
            self._start(trainer, batch_idx)
        if self._done < self.schedule.count and any(each.needs_data for each in self.expansions()):
            self._samples.add(trainer, batch)
        for _ in range(self._pending or self.schedule.due(trainer, batch_idx, self._done)):
            with _as_misconfiguration():
                found = self._widths.known(pl_module, batch)
            if found is None:
                break
            self._split(trainer, pl_module, found)
            self._pending = False
        with _as_misconfiguration():
            self._widths.start(pl_module, more=self._done < self.schedule.count)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        found = self._widths.finish(trainer, pl_module)
        if found is not None and self._done < self.schedule.count:
            with _as_misconfiguration():  # now, and not after epochs
                check_found(pl_module, found)
                by_pattern(select_sites(found.sites, self.sites, self.exclude), self._by_name())
        if self._unchecked:
            check_masks(pl_module)
            self._unchecked = False

    def on_after_expansion(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: ExpansionReport) -> None:
        """Look at the widths again, whichever callback split some."""
        self._widths.update(trainer, more=self._done < self.schedule.count)

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
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.result.tell(pl_module, checkpoint)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.result.write(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        trigger = self.schedule.trigger
        state: dict[str, Any] = {"done": self._done, "pending": self._pending, "arguments": self._arguments}
        state["widths"] = self._widths.state_dict()
        state |= self._samples.state_dict()
        if isinstance(trigger, StatefulTrigger):
            state["trigger"] = trigger.state_dict()
        return state

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Copies that other callbacks made in their `setup` load their states after this.
        known = [each for each in averages_of(trainer, pl_module) if not restores_structure_on_load(each)]
        self._restoring += [restore_structure_on_load(each) for each in known]
        # Lightning gives each callback the state of its key; other arguments, or more callbacks, may have moved it.
        keys = sorted(key for key in checkpoint.get("callbacks", {}) if key.startswith("ExpansionCallback"))
        saved = [checkpoint["callbacks"][key] for key in keys if "arguments" in checkpoint["callbacks"][key]]
        others = _expansion_callbacks(trainer)
        state = state_of(saved, self._arguments, [each._arguments for each in others], others.index(self))
        self._found = (state,)
        if state is not None and self._state_key not in keys:
            self.load_state_dict(state)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for state in self._found:
            if state is None:
                return
            state_dict = state
        self._loaded = state_dict
        trigger = self.schedule.trigger
        self._done, self._pending = state_dict["done"], state_dict["pending"]
        self._widths.load_state_dict(state_dict.get("widths"))
        self._samples.load_state_dict(state_dict)
        if isinstance(trigger, StatefulTrigger) and "trigger" in state_dict:
            trigger.load_state_dict(state_dict["trigger"])

    def _start(self, trainer: pl.Trainer, batch_idx: int) -> None:
        """Before the first batch of a fit: find the place in the schedule, and say where it is not as expected."""
        self._starts = False
        if self._loaded is not None:
            if self._loaded["arguments"] == self._arguments:
                return
            self._done = done_with(self._loaded, self._arguments, self.schedule, trainer, batch_idx)
            what = changes(self._loaded["arguments"], self._arguments)
            before = f"The run resumes with other arguments of ExpansionCallback ({what}), after it was split "
            before += times(self._loaded["done"]) if self._loaded["done"] else "never"
        elif self._split_before and not self._done:
            others = [each for each in _expansion_callbacks(trainer) if each is not self]
            number = max(self._split_before - sum(each._done for each in others), 0)
            self._done = min(number, self.schedule.passed(trainer, batch_idx))
            before = f"The module was split {times(self._split_before)} before this ExpansionCallback saw it"
        else:
            return
        rank_zero_info(f"{before}: {outlook(self.schedule, self._done)}.")

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

    def _teachers(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Teacher]:
        """The parts of the module that follow another part: named, alike, or changed since training began."""
        now = watch(pl_module, trainer.optimizers)
        changed = [name for name, value in now.items() if name in self._watched and value != self._watched[name]]
        named = resolve_averages(pl_module, self.averages)[0]
        return find_teachers(pl_module, trainer.optimizers, named, changed)

    @staticmethod
    def _optimizers(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Optimizer]:
        """The optimizers of the module; one of several may train something else."""
        own = set(pl_module.parameters())
        some = [each for each in trainer.optimizers if any(not own.isdisjoint(g["params"]) for g in each.param_groups)]
        return some or trainer.optimizers

    def _by_name(self) -> Mapping[str, BaseExpansion]:
        return self.expansion if isinstance(self.expansion, Mapping) else {"*": self.expansion}

    def _split(self, trainer: pl.Trainer, pl_module: pl.LightningModule, found: Found) -> None:
        with _as_misconfiguration():
            check_found(pl_module, found)
            teachers = self._teachers(trainer, pl_module)
            pairs, unsuited = choose_sites(pl_module, found.sites, self._by_name(), self.sites, self.exclude)
            pairs, followed = sites_of_students(pairs, teachers, self.sites or ())
            chosen = [site for site, _ in pairs]
            _notify(trainer, "on_before_expansion", pl_module, chosen)
            # Layouts are timed in the precision that steps are computed in.
            timed = any(getattr(each, "layout", None) == "auto" for each in self.expansions())
            precision = trainer.precision_plugin.forward_context() if timed else nullcontext()
            with splitting(trainer, pl_module, chosen), precision:
                report = expand(
                    pl_module,
                    self._fitted(trainer),
                    sites=chosen,
                    optimizer=self._optimizers(trainer, pl_module),
                    averages=[
                        *averages_of(trainer, pl_module),
                        *(each.module for each in teachers),
                        *holders_of_shadows(trainer, pl_module),
                    ],
                )
        # Compiled code is specialised on shapes; without this it would give up after a few splits and run uncompiled.
        torch._dynamo.reset()
        self._done += 1
        if self._done == self.schedule.count:
            self._samples.clear()
        self._unchecked = True
        self.reports.append(report)
        rank_zero_info(f"Split before epoch {trainer.current_epoch}, step {trainer.global_step}:\n{report}")
        self.left_out = [*unsuited, *followed, *found.refusals]
        if self.left_out:
            rank_zero_info(
                f"Not split: {summary_of(self.left_out)}. `ExpansionCallback.left_out` lists names and reasons."
            )
        _notify(trainer, "on_after_expansion", pl_module, report)


def _expansion_callbacks(trainer: pl.Trainer) -> list[ExpansionCallback]:
    return [each for each in trainer.callbacks if isinstance(each, ExpansionCallback)]  # type: ignore[attr-defined]


@contextmanager
def _as_misconfiguration() -> Iterator[None]:
    """Say of refusals that they are about a split."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise MisconfigurationException(f"ExpansionCallback cannot split: {error}") from error


def _notify(trainer: pl.Trainer, hook: str, pl_module: pl.LightningModule, argument: Any) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, hook):
            getattr(callback, hook)(trainer, pl_module, argument)
