"""What the children mean: are they more single-minded than their parents?

``python -m studies.children`` trains probes on embedded glyphs, dense, wide-sparse and split, measures
over which classes the activation of each hidden neuron is spread, on test pictures, and draws the pictures that parents
and children like best. It is a command of its own and no study of the grid, as its rows are about neurons at several
moments of a run and not about one accuracy at the end.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.optim import Adam, Optimizer

import fpe_lightning as fpe
from fpe_lightning.data.sources import load_images
from fpe_lightning.interference import class_entropy, class_selectivity, excess_entropy
from fpe_lightning.interference.children import children_figure
from fpe_lightning.networks import MLP
from fpe_lightning.sparse import parents_of
from studies.arms import Arm, arms_named
from studies.batches import Batches
from studies.children_report import Neurons, entropy_figure, table
from studies.clip_probe import Probe
from studies.errors import StudyError, exit_code
from studies.from_scratch import begin
from studies.splitting import split
from studies.stacked import train_together
from studies.task import Task

ARMS = (
    *("dense", "wide_sparse"),
    *("random_incoming", "overlapping_incoming", "feature_incoming"),
    *("random_incoming_at_2", "overlapping_incoming_at_2"),
)
KINDS = ("dense", "split", "wide")


@dataclass(frozen=True)
class Trained:
    """A network at the end of its run, and what it was around its split.

    Attributes:
        arm: Name of the arm.
        seed: Seed of weights, order of samples and masks.
        network: At the end.
        parent: The dense network just before the split; None where there was none.
        born: The split network before it was trained on; None where there was no split.
    """

    arm: str
    seed: int
    network: MLP
    parent: MLP | None = None
    born: MLP | None = None


def train(
    setting: Probe, arms: dict[str, Arm], seeds: Sequence[int], advance: Callable[[int], None] | None = None
) -> list[Trained]:
    """Train every arm on every seed; all see the same samples in the same order, for as many epochs.

    Args:
        setting: Data, sizes and training.
        arms: By name: dense ones, splits, and wide ones.
        seeds: Each draws initial weights, the order of samples and masks.
        advance: Called with finished epochs times networks.

    Returns:
        A network for each arm and seed; a split one is the child of the dense one of its seed, as that was then.

    Raises:
        ValueError: If an arm is of another kind, or a split cannot be.
    """
    for name, arm in arms.items():
        if arm.kind not in KINDS or arm.members > 1 or arm.redraw:
            raise ValueError(f"Arm {name!r} cannot be compared neuron by neuron: choose dense, split or wide ones.")
    task = setting.task(seeds[0])

    def new(arm: Arm) -> list[tuple[MLP, Optimizer]]:
        networks = [cast("MLP", begin(arm, setting, task, seed)) for seed in seeds]
        return [(network, Adam(network.parameters(), lr=setting.lr, fused=True)) for network in networks]

    def go_on(runs: list[tuple[MLP, Optimizer]], start: int, stop: int) -> None:
        if stop > start:
            inputs, targets = (part.expand(len(seeds), *part.shape) for part in (task.train[0], task.targets))
            batches = None if setting.batch_size is None else Batches(setting.batch_size, seeds, start)
            networks, optimizers = [run[0] for run in runs], [run[1] for run in runs]
            train_together(
                networks, optimizers, inputs, targets, task.loss, stop - start, advance=advance, batches=batches
            )

    found: list[Trained] = []
    for name, arm in arms.items():
        if arm.kind == "wide":
            runs = new(arm)
            go_on(runs, 0, setting.epochs)
            found += [Trained(name, seed, run[0]) for seed, run in zip(seeds, runs, strict=True)]
    dense, epoch = new(Arm("dense")), 0
    sites = fpe.find_sites(dense[0][0], task.train[0][:2])
    for start in sorted({setting.starts(arm) for arm in arms.values() if arm.kind == "split"}):
        go_on(dense, epoch, start)
        epoch = start
        for name, arm in arms.items():
            if arm.kind == "split" and setting.starts(arm) == start:
                parents = [copy.deepcopy(network) for network, _ in dense]
                runs = copy.deepcopy(dense)
                for seed, (network, optimizer) in zip(seeds, runs, strict=True):
                    split(arm, network, optimizer, task, sites, setting.alpha, seed)
                born = [copy.deepcopy(network) for network, _ in runs]
                go_on(runs, start, setting.epochs)
                found += [
                    Trained(name, seed, run[0], parent, child)
                    for seed, run, parent, child in zip(seeds, runs, parents, born, strict=True)
                ]
    go_on(dense, epoch, setting.epochs)
    found += [
        Trained(name, seed, run[0])
        for name, arm in arms.items()
        if arm.kind == "dense"
        for seed, run in zip(seeds, dense, strict=True)
    ]
    return sorted(found, key=lambda each: (list(arms).index(each.arm), each.seed))


@torch.no_grad()
def activations(network: MLP, inputs: Tensor, raw: bool = False) -> Tensor:
    """What the neurons of the first hidden layer give for some inputs, after their ReLU.

    Args:
        network: It.
        inputs: ``(n, inputs)``.
        raw: Before their ReLU, where a bias is nothing but an offset.

    Returns:
        ``(n, neurons)``.

    Example:
        >>> activations(MLP(4, 3, 2), torch.randn(5, 4)).shape
        torch.Size([5, 3])
    """
    return network.layers[: 1 if raw else 2](inputs)


def measure(trained: Trained, task: Task) -> list[Neurons]:
    """Measure the neurons of a run on the test samples: before the split, just after it, and at the end.

    Args:
        trained: The run.
        task: Its data.

    Returns:
        One entry for each moment that there was.
    """
    x, y = task.test
    moments = {"before": trained.parent, "born": trained.born, "end": trained.network}
    found = []
    for moment, network in moments.items():
        if network is not None:
            active = activations(network, x)
            entropy, selectivity = class_entropy(active, y), class_selectivity(active, y)
            found.append(
                Neurons(
                    arm=trained.arm,
                    seed=trained.seed,
                    moment=moment,
                    neurons=active.shape[1],
                    silent=int(entropy.isnan().sum()),
                    entropy=float(entropy.nanmean()),
                    selectivity=float(selectivity.nanmean()),
                    excess=float(excess_entropy(active, y).nanmean()),
                    raw_excess=float(excess_entropy(activations(network, x, raw=True), y).nanmean()),
                    accuracy=task.accuracy([network], task.test),
                )
            )
    return found


def study(
    setting: Probe | None = None,
    arms: list[str] | None = None,
    seeds: int = 8,
    first_seed: int = 0,
    count: int = 6,
    output: str = "results/children",
) -> list[Path]:
    """Train, measure, and write a table and two figures.

    Args:
        setting: Data, sizes and training; the default splits 8 neurons into 4 children each after 25 of 50 epochs.
        arms: Names of arms as in :mod:`studies.arms`; the children of the first split one are drawn.
        seeds: Number of seeds.
        first_seed: The first of them, whose children are drawn.
        count: Pictures of each neuron in the figure.
        output: Folder of what is written.

    Returns:
        The paths of what was written, the table first.

    Raises:
        StudyError: If there is nothing to run, or it cannot run.
    """
    chosen = list(ARMS) if arms is None else arms
    setting = Probe(hidden=8, alpha=4, split=25, zero_biases=True) if setting is None else setting
    named = arms_named(chosen)
    if seeds < 1 or not chosen or not isinstance(setting.hidden, int):
        raise StudyError(
            f"At least one seed, one arm and one hidden layer are needed, found {seeds} seeds, {len(chosen)} arms and "
            f"`hidden` {setting.hidden}."
        )
    for name, arm in named.items():
        if not 0 <= setting.starts(arm) <= setting.epochs:
            raise StudyError(
                f"Arm {name!r} splits at epoch {setting.starts(arm)}, but there are {setting.epochs}; drop one of them."
            )
    numbers = range(first_seed, first_seed + seeds)
    try:
        setting.check()
        task = setting.task(first_seed)
        with Progress() as progress:
            bar = progress.add_task("training", total=len(numbers) * setting.work(list(named.values())))
            trained = train(setting, named, numbers, lambda done: progress.update(bar, advance=done))
    except (ValueError, OSError) as error:
        raise StudyError(" ".join(str(error).split())) from error
    rows = [row for each in trained for row in measure(each, task)]
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "children.md", folder / "children_entropy.png"]
    written[0].write_text(table(rows, task.classes))
    entropy_figure(rows, task.classes).savefig(written[1], dpi=110)
    drawn = next((each for each in trained if each.parent is not None), None)
    if drawn is not None and drawn.parent is not None:
        written.append(folder / "children.png")
        pictures = load_images(setting.dataset, setting.data_dir, setting.download).test
        x, y = task.test
        children_figure(
            _Images(pictures),
            y,
            activations(drawn.parent, x),
            activations(drawn.network, x),
            parents_of(drawn.network.layers[0]),
            count=count,
            title=f"Test pictures that neurons answer to most: before the split, and their children at the end\n"
            f"{drawn.arm.replace('_', ' ')}, seed {drawn.seed}, split after epoch {setting.starts(named[drawn.arm])} "
            f"of {setting.epochs}; bits: entropy over {task.classes} classes, {task.classes} alike would be "
            f"{torch.tensor(task.classes).log2():.1f}",
        ).savefig(written[2], dpi=110)
    return written


class _Images:
    """Pictures of a data set without their labels."""

    def __init__(self, labelled: object) -> None:
        self.labelled = labelled

    def __getitem__(self, sample: int, /) -> object:
        return self.labelled[sample][0]  # type: ignore[index]


def main(words: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Run the study from the command line.

    Args:
        words: Command line; None takes that of the process.
        console: Where to print.

    Returns:
        The exit code: 0, or 2 after bad input.
    """
    console = console or Console()
    torch.set_num_threads(1)  # products this small gain nothing from threads

    def run() -> None:
        written = auto_cli(study, args=list(sys.argv[1:] if words is None else words), as_positional=False)
        console.print(written[0].read_text(), markup=False, soft_wrap=True)
        console.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True)

    return exit_code(run, console)


if __name__ == "__main__":
    sys.exit(main())
