"""Every arm on every seed of a block: MLPs many at a time, other networks one by one."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

import fpe_lightning as fpe
from fpe_lightning.networks import MLP
from fpe_lightning.sites.select import select_sites
from studies.arms import Again, Arm, Dense, Split
from studies.batches import Batches
from studies.cost import Cost
from studies.dropconnect import DropConnectMLP
from studies.from_scratch import begin
from studies.moves import Schedule, mask_all_
from studies.results import Row
from studies.setting import Setting
from studies.splitting import expand, split
from studies.stacked import Stack, train_together
from studies.task import Task


@dataclass
class _Run:
    """One network on its way."""

    arm: str
    index: int  # of the seed within the block
    network: nn.Module
    optimizer: Optimizer
    schedule: Schedule | None = None
    alpha: int = 1  # children of each neuron
    cost: Cost = field(default_factory=Cost)
    why: str = ""  # it failed
    seen: dict[str, float] = field(default_factory=dict)  # measures of its setting at the split


def run_block(
    setting: Setting, arms: Mapping[str, Arm], seeds: Sequence[int], advance: Callable[[int], None] | None = None
) -> list[Row]:
    """Train every arm on every seed.

    Arms of a seed share data, initial weights and the order of samples, and the dense network of a seed is the parent
    of all its splits: the comparison is paired.

    Args:
        setting: Data, sizes and training.
        arms: By label.
        seeds: Each draws initial weights, the order of samples and masks, and data where they are drawn.
        advance: Called with finished epochs times networks.

    Returns:
        A row for each arm and seed; a network that diverged is recorded as failed, with why.

    Example:
        >>> from studies.boolean import Regime
        >>> regime = Regime(epochs=4, split=2, samples=64)
        >>> [(row.arm, row.nonzeros) for row in run_block(regime, {"dense": Dense(), "random": Split()}, [0])]
        [('dense', 209), ('random', 209)]
    """
    began = time.process_time()  # a busy machine takes longer by the clock, and no more of a core
    block = _Block(setting, list(seeds), [setting.task(seed) for seed in seeds], advance)
    parents = [block.new("dense", Dense(), index) for index in range(len(seeds))]
    splits = {name: arm for name, arm in arms.items() if isinstance(arm, Split)}
    others = {name: arm for name, arm in arms.items() if not isinstance(arm, (Dense, Split))}
    sites: list[fpe.Site] = []
    if splits:
        found = fpe.find_sites(parents[0].network, block.tasks[0].train[0][:2])
        sites = select_sites(found, setting.splits, None)
    scratch = [block.new(name, arm, index) for index in range(len(seeds)) for name, arm in others.items()]
    finished: list[_Run] = []
    epoch = 0
    for start in sorted({setting.starts(arm) for arm in arms.values()}):
        # Parents train up to the next split, and to the end if they are an arm themselves.
        if any(setting.starts(arm) >= start for arm in arms.values() if isinstance(arm, (Dense, Split))):
            block.train(parents, epoch, start)
            epoch = start
        children = [
            block.child(name, arm, parent, sites, member)
            for parent in parents
            for name, arm in splits.items()
            if setting.starts(arm) == start
            for member in range(arm.members)
        ]
        # Networks of equal shape train together: those that begin wide join the children of a split at epoch 0.
        together = [run for run in [*children, *(scratch if start == 0 else [])] if not run.why]
        block.train_on(sorted(together, key=lambda run: run.index), arms, start)
        finished += children
    finished += scratch
    for name in (name for name, arm in arms.items() if isinstance(arm, Dense)):
        finished += [replace(run, arm=name) for run in parents]
    seconds = (time.process_time() - began) / max(len(finished), 1)
    cells: dict[tuple[int, str], list[_Run]] = {(i, name): [] for i in range(len(seeds)) for name in arms}
    for run in finished:
        cells[run.index, run.arm].append(run)
    return [_row(runs, setting, block.tasks[index], seeds[index], seconds) for (index, _), runs in cells.items()]


@dataclass
class _Block:
    """The common parts of the networks of a block."""

    setting: Setting
    seeds: list[int]
    tasks: list[Task]
    advance: Callable[[int], None] | None

    def new(self, name: str, arm: Arm, index: int) -> _Run:
        """A network at epoch 0."""
        try:
            network, why = begin(arm, self.setting, self.tasks[index], self.seeds[index]), ""
        except ValueError as error:
            # A dense network takes its place until its row is written.
            network, why = begin(Dense(), self.setting, self.tasks[index], self.seeds[index]), str(error)
        alpha = getattr(arm, "alpha", None) or self.setting.alpha
        return _Run(name, index, network, _adam(network, self.setting.lr), arm.schedule, alpha, why=why)

    def child(self, name: str, arm: Split, parent: _Run, sites: list[fpe.Site], member: int) -> _Run:
        """A copy of the parent, split."""
        network, optimizer = copy.deepcopy((parent.network, parent.optimizer))
        alpha = arm.alpha or self.setting.alpha
        run = _Run(name, parent.index, network, optimizer, arm.schedule, alpha, parent.cost.copy())
        seed, task = self.seeds[parent.index] + 1_000_000 * member, self.tasks[parent.index]
        run.seen |= self.setting.observe("before", [network], task)
        try:
            split(arm, run.network, run.optimizer, task, sites, self.setting.alpha, seed)
        except ValueError as error:
            run.why = str(error)
            return run
        run.seen |= self.setting.observe("after", [network], task)
        if arm.redraw or arm.rule.optimizer_state == "reset":
            # Parameters that were not split lose their state too, so that all count the same steps.
            run.optimizer = _adam(run.network, run.optimizer.param_groups[0]["lr"])
        return run

    def train_on(self, runs: list[_Run], arms: Mapping[str, Arm], start: int) -> None:
        """Train to the end, and split a second time where the arm says so."""
        second = {name: arm.then for name, arm in arms.items() if isinstance(arm, Split) and arm.then is not None}
        for epoch in sorted({again.at for again in second.values()}):
            due = [run for run in runs if run.arm in second and second[run.arm].at == epoch]
            self.train(due, start, epoch)
            for run in due:
                self.split_again(second[run.arm], run)
            self.train([run for run in due if not run.why], epoch, self.setting.epochs)
        for times in sorted({arm.times for arm in arms.values()}):
            due = [run for run in runs if run.arm not in second and arms[run.arm].times == times]
            self.train(due, start, times * self.setting.epochs)

    def split_again(self, again: Again, run: _Run) -> None:
        """Split the children once more."""
        task, expansion = self.tasks[run.index], replace(again.rule, seed=self.seeds[run.index])
        try:
            sites = fpe.find_sites(run.network, task.train[0][:2])
            expand(run.network, expansion, run.optimizer, task, sites)
        except ValueError as error:
            run.why = str(error)
        if expansion.optimizer_state == "reset":
            run.optimizer = _adam(run.network, run.optimizer.param_groups[0]["lr"])

    def train(self, runs: list[_Run], start: int, stop: int) -> None:
        """Train from one epoch to another, with the setting's change of learning rate on the way."""
        setting = self.setting
        switches = [setting.switch] if setting.switch is not None and start < setting.switch < stop else []
        for first, last in itertools.pairwise([start, *switches, stop]):
            if first == setting.switch:
                for run in runs:
                    run.optimizer = _adam(run.network, setting.lr_after or setting.lr)
            for run in runs if last > first else []:
                run.cost.add(
                    run.network, len(self.tasks[run.index].train[1]), setting, first, last, run.schedule, run.alpha
                )
                if not isinstance(run.network, MLP):
                    self.train_alone(run, first, last)
                elif run.schedule is not None:
                    mask_all_(run.network, run.schedule)
            for alike in _alike([run for run in runs if isinstance(run.network, MLP)]) if last > first else []:
                # Groups of data have to be as many as seeds that all have equally many networks.
                chosen = sorted({run.index for run in alike})
                seeds = [self.seeds[index] for index in chosen]
                train_together(
                    [cast("MLP", run.network) for run in alike],
                    [run.optimizer for run in alike],
                    _stacked([self.tasks[index].train[0] for index in chosen]),
                    _stacked([self.tasks[index].targets for index in chosen]),
                    self.tasks[0].loss,
                    last - first,
                    advance=self.advance,
                    batches=None if setting.batch_size is None else Batches(setting.batch_size, seeds, first),
                    after=self.after(alike, first),
                )

    def after(self, runs: list[_Run], first: int) -> Callable[[Stack, int], None] | None:
        """The change of masks at the end of epochs of runs that train together from epoch ``first`` on."""
        schedule, alpha = runs[0].schedule, runs[0].alpha
        if schedule is None:
            return None
        seeds = {id(run.network): self.seeds[run.index] for run in runs}

        def change(stack: Stack, epochs: int) -> None:
            if (first + epochs) % schedule.every:
                return
            own = [seeds[id(network)] for network in stack.networks]
            schedule.apply(stack, (first + epochs) / self.setting.epochs, alpha, own)

        return change

    def train_alone(self, run: _Run, start: int, stop: int) -> None:
        """Train one network of any kind from one epoch to another; batch norms see one batch of it alone."""
        task, seed = self.tasks[run.index], self.seeds[run.index]
        samples = len(task.train[1])
        batches = Batches(self.setting.batch_size or samples, [seed], start)
        run.network.train()
        for epoch in range(stop - start):
            for rows in batches.order(0, epoch, samples).split(batches.size):
                run.optimizer.zero_grad()
                task.loss_of(run.network, rows).backward()
                run.optimizer.step()
            if self.advance is not None:
                self.advance(1)


def _adam(network: nn.Module, lr: float) -> Optimizer:
    return Adam(network.parameters(), lr=lr, fused=True)


def _stacked(tensors: list[Tensor]) -> Tensor:
    """One tensor for all groups; shared data are not copied."""
    shared = all(tensor is tensors[0] for tensor in tensors)
    return tensors[0].expand(len(tensors), *tensors[0].shape) if shared else torch.stack(tensors)


def _alike(runs: list[_Run]) -> list[list[_Run]]:
    """Groups of runs that fit one stack: equal shapes, equally far, and equally many for each seed."""
    batches: dict[tuple[object, ...], list[_Run]] = {}
    for run in runs:
        shape = type(run.network) is DropConnectMLP, *(parameter.shape for parameter in run.network.parameters())
        steps = tuple(float(state["step"]) for state in run.optimizer.state.values())
        batches.setdefault((shape, steps, run.schedule, run.alpha), []).append(run)
    even: list[list[_Run]] = []
    for batch in batches.values():
        counts: dict[int, list[_Run]] = {}
        for index in dict.fromkeys(run.index for run in batch):
            of_seed = [run for run in batch if run.index == index]
            counts.setdefault(len(of_seed), []).extend(of_seed)
        even += counts.values()
    return even


def _row(runs: list[_Run], setting: Setting, task: Task, seed: int, seconds: float) -> Row:
    networks = [run.network for run in runs]
    why = next((run.why for run in runs if run.why), "")
    if not why and not all(bool(torch.isfinite(p).all()) for network in networks for p in network.parameters()):
        why = "weights are no longer finite: the run has diverged"
    accuracy = [float("nan") if why else task.accuracy(networks, part) for part in (task.train, task.val, task.test)]
    seen = {name: sum(run.seen[name] for run in runs) / len(runs) for name in ({} if why else runs[0].seen)}
    return Row(
        arm=runs[0].arm,
        seed=seed,
        status="failed" if why else "done",
        why=why,
        nonzeros=sum(map(fpe.count_nonzeros, networks)),
        train=accuracy[0],
        val=accuracy[1],
        test=accuracy[2],
        seconds=seconds * len(runs),
        measures=seen if why else seen | setting.observe("end", networks, task) | _costs(runs, setting),
    )


def _costs(runs: list[_Run], setting: Setting) -> dict[str, float]:
    """What the training of a run took, of the measures that its setting names."""
    found = [run.cost.measures() for run in runs]
    return {name: sum(each[name] for each in found) for name in found[0] if name in setting.measures}
