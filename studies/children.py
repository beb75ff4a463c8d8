"""The study of children: do they answer to fewer classes than their parents?

Probes on embedded glyphs, dense, wide-sparse and split. Each run measures over which classes the activation of each
hidden neuron is spread, on test pictures: before a split, just after it, and at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.data.sources import LabelledImages, load_images
from fpe_lightning.networks import MLP
from fpe_lightning.sparse import parents_of
from studies.arms import Arm, Dense, Split, WideSparse
from studies.children_figure import children_figure
from studies.children_report import MOMENTS, VALUES, entropy_figure, tables
from studies.clip_probe import Probe
from studies.findings import Findings
from studies.runs import Runs
from studies.selectivity import class_entropy, class_selectivity, excess_entropy
from studies.setting import Moment
from studies.task import Task
from studies.training import run_block


@dataclass(frozen=True)
class Children(Probe):
    """One setting of the study ``children``.

    Attributes:
        shown: Pictures of each neuron in the figure of the first setting: a parent and its children at the end, of the
            first arm that splits and the first seed.
    """

    split: int = 25
    zero_biases: bool = True
    shown: int = 6

    @override
    def check(self) -> None:
        super().check()
        if not isinstance(self.hidden, int):
            raise ValueError(f"`hidden` is the width of the one hidden layer, found {self.hidden}.")

    @override
    def check_arm(self, arm: Arm) -> None:
        single = isinstance(arm, Split) and arm.networks == 1 and not arm.redraw and arm.then is None
        if not single and not isinstance(arm, (Dense, WideSparse)):
            raise ValueError("its neurons cannot be compared one by one; choose Dense, WideSparse or a single Split.")

    @property
    @override
    def measures(self) -> tuple[str, ...]:
        return tuple(f"{value}_{moment}" for moment in MOMENTS for value in VALUES)

    @override
    def observe(self, moment: Moment, networks: Sequence[nn.Module], task: Task) -> dict[str, float]:
        """Means over the neurons of the hidden layer, and the accuracy of the network."""
        [network] = networks
        x, y = task.test
        active, raw = activations(network, x), activations(network, x, raw=True)
        entropy = class_entropy(active, y)
        found = {
            "neurons": active.shape[1],
            "silent": int(entropy.isnan().sum()),
            "entropy": float(entropy.nanmean()),
            "selectivity": float(class_selectivity(active, y).nanmean()),
            "excess": float(excess_entropy(active, y).nanmean()),
            "raw_excess": float(excess_entropy(raw, y).nanmean()),
            "accuracy": task.accuracy([network], task.test),
        }
        return {f"{value}_{moment}": number for value, number in found.items()}

    @override
    @classmethod
    def findings(cls, runs: Runs) -> Findings:
        """Tables and a figure for each setting, and the pictures of a few neurons."""
        figures: dict[str, Figure] = {}
        captions: dict[str, str] = {}
        found = []
        for number, (name, setting) in enumerate(runs.settings.items(), 1):
            classes = setting.task(runs.rows[0].seed).classes
            found += tables(runs.of(name), name, classes)
            key = f"entropy_{number}" if len(runs.settings) > 1 else "entropy"
            figures[key] = entropy_figure(runs.of(name), name, classes)
            captions[key] = f"{name}, neurons over {classes} classes, means over neurons"
        drawn = pictures(runs)
        if drawn is not None:
            figures["children"], captions["children"] = drawn
        return Findings((), found, figures, captions)


@torch.no_grad()
def activations(network: nn.Module, inputs: Tensor, raw: bool = False) -> Tensor:
    """Activations of the neurons of the first hidden layer, after their ReLU.

    Args:
        network: An MLP.
        inputs: ``(n, inputs)``.
        raw: Before their ReLU, where a bias is an offset and nothing else.

    Returns:
        ``(n, neurons)``.

    Example:
        >>> activations(MLP(4, 3, 2), torch.randn(5, 4)).shape
        torch.Size([5, 3])
    """
    return cast("MLP", network).layers[: 1 if raw else 2](inputs)


@dataclass(frozen=True)
class _Kept(Children):
    """Keeps the networks of its one run, moment by moment, in place of measures."""

    kept: dict[str, MLP] = field(default_factory=dict)

    @override
    def observe(self, moment: Moment, networks: Sequence[nn.Module], task: Task) -> dict[str, float]:
        self.kept[moment] = cast("MLP", copy.deepcopy(networks[0]))
        return {}


def pictures(runs: Runs) -> tuple[Figure, str] | None:
    """Draw the pictures that a parent and its children answer to most, and say of which run they are.

    Rows hold numbers alone, so the run is repeated.

    Returns:
        The figure and its caption; None where no run was split.
    """
    done = [row for row in runs.rows if row.status == "done" and row.arm in runs.splits]
    if not done:
        return None
    row = done[0]
    setting = cast("Children", runs.settings[row.setting])
    own: dict[str, Any] = {each.name: getattr(setting, each.name) for each in fields(setting)}
    again = _Kept(**own | {"lr": setting.rates.get(row.arm, setting.lr)})
    run_block(again, {row.arm: runs.arms[row.arm]}, [row.seed])
    parent, network, task = again.kept["before"], again.kept["end"], setting.task(row.seed)
    x, y = task.test
    figure = children_figure(
        _Images(load_images(setting.dataset, setting.data_dir, setting.download).test),
        y,
        activations(parent, x),
        activations(network, x),
        parents_of(network.layers[0]),
        count=setting.shown,
        title="",
    )
    caption = (
        f"test pictures that neurons answer to most, before the split, and their children at the end\n"
        f"{row.arm.replace('_', ' ')}, seed {row.seed}, split after epoch {setting.starts(runs.arms[row.arm])} of "
        f"{setting.epochs}; bits: entropy over {task.classes} classes, {task.classes} alike would be "
        f"{torch.tensor(task.classes).log2():.1f}"
    )
    return figure, caption


@dataclass(frozen=True)
class _Images:
    """Pictures of a data set without their labels."""

    labelled: LabelledImages

    def __getitem__(self, sample: int, /) -> object:
        return self.labelled[sample][0]
