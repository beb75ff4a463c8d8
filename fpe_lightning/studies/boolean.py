"""The Boolean task: which structure learns a formula best at equally many non-zeros."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

import fpe_lightning as fpe
from fpe_lightning.data.boolean import Coding, DNFTask, Positives, dnf_task
from fpe_lightning.networks import MLP, WideSparseMLP
from fpe_lightning.studies.arms import Arm, split
from fpe_lightning.studies.results import Row
from fpe_lightning.studies.stacked import train_together


@dataclass(frozen=True)
class Regime:
    """One setting of the study; the defaults are the data nearest to the paper's figures.

    Attributes:
        lr: Adam's learning rate until ``switch``.
        lr_after: Learning rate from ``switch`` on; None keeps ``lr``.
        switch: Epoch at which every arm begins with the new rate and a fresh Adam state; None for never.
        split: Epoch at which neurons are split, where an arm does not say otherwise.
        epochs: Full-batch epochs altogether, the same for every arm.
        alpha: Children of each neuron, and how much wider a wide network is.
        hidden: Neurons of the dense network.
        clauses: Of the formula.
        literals: Of each clause.
        inputs: Variables.
        samples: Training samples.
        coding: See :func:`~fpe_lightning.data.boolean.dnf_task`.
        positives: See :func:`~fpe_lightning.data.boolean.dnf_task`.
    """

    lr: float = 3e-3
    lr_after: float | None = None
    switch: int | None = None
    split: int = 300
    epochs: int = 2000
    alpha: int = 2
    hidden: int = 8
    clauses: int = 8
    literals: int = 3
    inputs: int = 24
    samples: int = 2048
    coding: Coding = "signs"
    positives: Positives = "uniform"

    def task(self, seed: int) -> DNFTask:
        """The formula and samples of one seed."""
        return dnf_task(
            self.clauses,
            self.literals,
            self.inputs,
            train=self.samples,
            coding=self.coding,
            positives=self.positives,
            seed=seed,
        )

    def starts(self, arm: Arm) -> int:
        """The epoch from which an arm trains on its own: that of its split; 0 for a wide network."""
        if arm.kind == "wide":
            return 0
        return self.epochs if arm.kind == "dense" else self.split if arm.split is None else arm.split

    def work(self, arms: Sequence[Arm]) -> int:
        """Epochs times networks that one seed takes."""
        shared = max((self.starts(arm) for arm in arms if arm.kind != "wide"), default=0)
        return shared + sum(self.epochs - self.starts(arm) for arm in arms)


@dataclass
class _Run:
    """One network on its way."""

    arm: str
    index: int  # of the seed within the block
    network: MLP
    optimizer: Optimizer
    why: str = ""  # it failed


def run_block(
    regime: Regime, arms: dict[str, Arm], seeds: Sequence[int], advance: Callable[[int], None] | None = None
) -> list[Row]:
    """Train every arm on every seed, many networks at a time.

    Arms of a seed share data and initial weights, and the dense network up to the first split is the parent of all
    that are split: the comparison is paired.

    Args:
        regime: The setting.
        arms: By name.
        seeds: Each draws clauses, samples, initial weights and masks.
        advance: Called with finished epochs times networks.

    Returns:
        A row for each arm and seed; a network that diverged is recorded as failed, with why.

    Example:
        >>> from fpe_lightning.studies.arms import arms_named
        >>> regime = Regime(epochs=4, split=2, samples=64)
        >>> [(row.arm, row.nonzeros) for row in run_block(regime, arms_named(["dense", "random"]), [0])]
        [('dense', 209), ('random', 209)]
    """
    began = time.perf_counter()
    tasks = [regime.task(seed) for seed in seeds]
    data = torch.stack([task.train[0] for task in tasks]), torch.stack([task.train[1].float()[None] for task in tasks])
    parents = [_new_run("dense", arms, regime, index, seed) for index, seed in enumerate(seeds)]
    sites = fpe.find_sites(parents[0].network, data[0][0, :2])
    wide = [
        _new_run(name, arms, regime, i, s) for i, s in enumerate(seeds) for name in arms if arms[name].kind == "wide"
    ]
    finished: list[_Run] = []
    epoch = 0
    for start in sorted({regime.starts(arm) for arm in arms.values()}):
        if any(arm.kind != "wide" and regime.starts(arm) >= start for arm in arms.values()):
            _train(parents, data, regime, epoch, start, advance)
            epoch = start
        children = [
            _child(name, arms[name], parent, tasks[parent.index], sites, regime, seeds[parent.index])
            for parent in parents
            for name in arms
            if arms[name].kind == "split" and regime.starts(arms[name]) == start
        ]
        # Networks of equal shape train together: those that begin wide join those that are split at once.
        together = [run for run in children if not run.why] + (wide if start == 0 else [])
        _train(sorted(together, key=lambda run: run.index), data, regime, start, regime.epochs, advance)
        finished += children + (wide if start == 0 else [])
    if "dense" in arms:
        finished += parents
    seconds = (time.perf_counter() - began) / max(len(finished), 1)
    order = {name: position for position, name in enumerate(arms)}
    finished.sort(key=lambda run: (run.index, order[run.arm]))
    return [_row(run, tasks[run.index], seeds[run.index], seconds) for run in finished]


def _adam(network: nn.Module, lr: float) -> Optimizer:
    return Adam(network.parameters(), lr=lr, fused=True)


def _new_run(name: str, arms: dict[str, Arm], regime: Regime, index: int, seed: int) -> _Run:
    # Layers draw their weights from the global source; it is put back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "dense":
            network = MLP(regime.inputs, regime.hidden, 1)
        else:
            network = WideSparseMLP(regime.inputs, regime.hidden, 1, regime.alpha, arms[name].allocation, seed=seed)
    return _Run(name, index, network, _adam(network, regime.lr))


def _child(name: str, arm: Arm, parent: _Run, task: DNFTask, sites: list[fpe.Site], regime: Regime, seed: int) -> _Run:
    network, optimizer = copy.deepcopy((parent.network, parent.optimizer))
    run = _Run(name, parent.index, network, optimizer)
    try:
        split(arm, run.network, run.optimizer, task, sites, regime.alpha, seed)
    except ValueError as error:
        run.why = str(error)
        return run
    if arm.redraw or arm.optimizer_state == "reset":
        # The parameters that were not split begin anew too, so that all count the same steps.
        run.optimizer = _adam(run.network, run.optimizer.param_groups[0]["lr"])
    return run


def _train(
    runs: list[_Run],
    data: tuple[Tensor, Tensor],
    regime: Regime,
    start: int,
    stop: int,
    advance: Callable[[int], None] | None,
) -> None:
    """Train from one epoch to another, with the regime's change of learning rate where it lies between."""
    cuts = [start, *([regime.switch] if regime.switch is not None and start < regime.switch < stop else []), stop]
    for begin, end in itertools.pairwise(cuts):
        if begin == regime.switch:
            for run in runs:
                run.optimizer = _adam(run.network, regime.lr_after or regime.lr)
        for batch in _alike(runs) if end > begin else []:
            # Groups of data have to be as many as seeds that all have equally many networks.
            chosen = sorted({run.index for run in batch})
            train_together(
                [run.network for run in batch],
                [run.optimizer for run in batch],
                data[0][chosen],
                data[1][chosen],
                nn.functional.binary_cross_entropy_with_logits,
                end - begin,
                advance=advance,
            )


def _alike(runs: list[_Run]) -> list[list[_Run]]:
    """Runs that can stand in one stack: equal shapes, equally far, and equally many for each seed."""
    batches: dict[tuple[object, ...], list[_Run]] = {}
    for run in runs:
        shape = tuple(parameter.shape for parameter in run.network.parameters())
        steps = tuple(float(state["step"]) for state in run.optimizer.state.values())
        batches.setdefault((shape, steps), []).append(run)
    even: list[list[_Run]] = []
    for batch in batches.values():
        counts: dict[int, list[_Run]] = {}
        for index in dict.fromkeys(run.index for run in batch):
            of_seed = [run for run in batch if run.index == index]
            counts.setdefault(len(of_seed), []).extend(of_seed)
        even += counts.values()
    return even


@torch.no_grad()
def _row(run: _Run, task: DNFTask, seed: int, seconds: float) -> Row:
    why = run.why
    if not why and not all(bool(torch.isfinite(parameter).all()) for parameter in run.network.parameters()):
        why = "weights are no longer finite: the run has diverged"
    parts = {"train": task.train, "val": task.val, "test": task.test}
    accuracy = {
        name: float("nan") if why else float(((run.network(x).squeeze(1) > 0) == y).float().mean())
        for name, (x, y) in parts.items()
    }
    return Row(
        arm=run.arm,
        seed=seed,
        status="failed" if why else "done",
        why=why,
        nonzeros=fpe.count_nonzeros(run.network),
        train=accuracy["train"],
        val=accuracy["val"],
        test=accuracy["test"],
        seconds=seconds,
    )
