"""Networks at epoch 0: dense ones, and those that have another structure from the start."""

from __future__ import annotations

import itertools

import torch
from torch import Generator, Tensor

from fpe_lightning.expansion.partition import resolve_partition
from fpe_lightning.networks import MLP, WideSparseMLP
from fpe_lightning.sparse.masked import set_mask
from fpe_lightning.studies.arms import Arm
from fpe_lightning.studies.dropconnect import DropConnectMLP
from fpe_lightning.studies.setting import Setting
from fpe_lightning.studies.splitting import alive_of, partition_of
from fpe_lightning.studies.task import Task


def begin(arm: Arm, setting: Setting, task: Task, seed: int) -> MLP:
    """Draw a network; arms of one seed and shape begin with the same weights.

    Args:
        arm: One that is no split; ``"dense"`` gives the parent of splits.
        setting: Sizes.
        task: Number of inputs and outputs, and the samples by which inputs may be placed.
        seed: Of weights and masks.

    Returns:
        A network of as many non-zeros as the dense one, unless the arm is marked.

    Raises:
        ValueError: If the budget cannot be met.

    Example:
        >>> x, y = torch.randn(8, 20), torch.arange(8) % 3
        >>> task = Task((x, y), (x, y), (x, y), classes=3)
        >>> begin(Arm("wide"), Setting(hidden=4), task, 0).layers[0].out_features
        8
    """
    hidden = [setting.hidden] if isinstance(setting.hidden, int) else setting.hidden
    # Layers draw their weights from the global source; it is put back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _drawn(arm, hidden, setting.alpha, task, seed)
    if arm.placed is not None:
        _place_(network, arm.placed, setting.alpha, task, seed)
    if setting.zero_biases:
        for layer in network.linear_layers()[:-1]:
            torch.nn.init.zeros_(layer.bias)
    return network


def _drawn(arm: Arm, hidden: list[int], alpha: int, task: Task, seed: int) -> MLP:
    if arm.kind == "dense":
        return MLP(task.inputs, hidden, task.outputs)
    if arm.kind == "larger":
        return MLP(task.inputs, larger(task.inputs, hidden, task.outputs, arm.factor), task.outputs)
    wide = WideSparseMLP(task.inputs, hidden, task.outputs, alpha, arm.allocation, seed=seed)
    if arm.kind != "drop":
        return wide
    layers = wide.linear_layers()[:-1]
    keep = sum(int(alive_of(layer).sum()) for layer in layers) / sum(layer.weight.numel() for layer in layers)
    return DropConnectMLP(task.inputs, [alpha * width for width in hidden], task.outputs, keep, seed)


def larger(inputs: int, hidden: list[int], outputs: int, factor: float) -> list[int]:
    """The smallest widths, in proportion, that give at least ``factor`` times the parameters.

    Example:
        >>> larger(512, [32], 94, 1.2)
        [39]
    """

    def parameters(widths: list[int]) -> int:
        sizes = [inputs, *widths, outputs]
        return sum((before + 1) * after for before, after in itertools.pairwise(sizes))

    smallest, step = min(hidden), 0
    widths = hidden
    while parameters(widths) < factor * parameters(hidden):
        step += 1
        widths = [width + -(-step * width // smallest) for width in hidden]
    return widths


@torch.no_grad()
def _place_(network: MLP, partition: str, alpha: int, task: Task, seed: int) -> None:
    """Let the neurons of the first layer choose their inputs by a partition, and draw which of them at random.

    Row ``r`` draws from the inputs of child ``r % alpha``, so that the mask knows what a split with this partition
    would know; counts and initial weights are those of the random mask.
    """
    layer = network.linear_layers()[0]
    mask = alive_of(layer)
    rule = resolve_partition(partition_of(partition, task, network, task.train[0]))
    generator = Generator().manual_seed(seed)
    child = rule(torch.zeros(1, task.inputs, 1), torch.ones(1, task.inputs, dtype=torch.bool), alpha, generator)[0]
    allowed = child == (torch.arange(len(mask)) % alpha).unsqueeze(1)
    keys: Tensor = torch.rand(mask.shape, generator=generator) + allowed
    chosen = torch.zeros(mask.numel(), dtype=torch.bool)
    chosen[keys.flatten().topk(int(mask.sum())).indices] = True
    bound = (task.inputs * int(mask.sum()) / mask.numel()) ** -0.5
    layer.weight.copy_((2 * torch.rand(mask.shape, generator=generator) - 1) * bound)
    set_mask(layer, "weight", chosen.view_as(mask))
