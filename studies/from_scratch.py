"""Networks at epoch 0: dense ones, and those that have another structure from the start."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from fpe_lightning.partitions.builtin import resolve_partition
from torch import Generator, Tensor, nn

from fpe_lightning.networks import MLP
from fpe_lightning.networks.sparse_init import allocate, sparsify_
from fpe_lightning.sparse.masked import set_mask
from studies.arms import Arm
from studies.dropconnect import DropConnect, DropConnectMLP
from studies.setting import Setting
from studies.splitting import alive_of, partition_of
from studies.task import Task


def begin(arm: Arm, setting: Setting, task: Task, seed: int) -> nn.Module:
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
    widths = setting.widths()
    if arm.kind == "larger":
        widths = larger(widths, arm.factor, lambda wider: parameters(outline(setting, task, wider)))
    # Layers draw their weights from the global source; it is put back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _wide(arm, setting, task, seed) if arm.kind in ("wide", "drop") else setting.build(task, widths)
    if arm.placed is not None:
        assert isinstance(network, MLP)
        _place_(network, arm.placed, setting.alpha, task, seed)
    if setting.zero_biases:
        for layer in list(layers_of(network).values())[:-1]:
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def layers_of(network: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Its linear layers and convolutions by name, in the network's order; the classifier is the last.

    Example:
        >>> list(layers_of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4, 2))))
        ['0', '2']
    """
    return {name: each for name, each in network.named_modules() if isinstance(each, (nn.Linear, nn.Conv2d))}


def outline(setting: Setting, task: Task, widths: Sequence[int]) -> nn.Module:
    """A network of these widths that has shapes, but no values."""
    with torch.device("meta"):
        return setting.build(task, widths)


def parameters(network: nn.Module) -> int:
    """Number of parameters of a dense network."""
    return sum(parameter.numel() for parameter in network.parameters())


def _wide(arm: Arm, setting: Setting, task: Task, seed: int) -> nn.Module:
    """A network as wide as after a split.

    Where the zeros are: in all layers alike (``"even"``), or in those that a split widens, but for the classifier.
    """
    narrow = outline(setting, task, setting.widths())
    widths = [setting.alpha * width for width in setting.widths()]
    network = setting.build(task, widths)
    layers, before = layers_of(network), layers_of(narrow)
    last = list(layers)[-1]
    grown = [name for name in layers if layers[name].weight.shape != before[name].weight.shape and name != last]
    chosen = list(layers) if arm.allocation == "even" else [*grown, last]
    sizes = [layers[name].weight.numel() for name in chosen]
    counts = allocate(sizes, parameters(network) - parameters(narrow), arm.allocation)
    sparsify_([layers[name] for name in chosen], counts, arm.allocation, seed)
    if arm.kind == "wide":
        return network
    keep = sum(counts[:-1]) / sum(sizes[:-1])
    if isinstance(network, MLP):
        return DropConnectMLP(task.inputs, widths, task.outputs, keep, seed)
    return DropConnect(setting.build(task, widths), grown, keep, seed)


def larger(widths: list[int], factor: float, parameters: Callable[[list[int]], int]) -> list[int]:
    """The smallest widths, in proportion, that give at least ``factor`` times the parameters.

    Args:
        widths: Hidden widths.
        factor: How many times as many parameters.
        parameters: The number of parameters at given widths.

    Example:
        >>> larger([32], 1.2, lambda widths: 513 * widths[0] + 94 * (widths[0] + 1))
        [39]
    """
    largest, step = max(widths), 0
    wider = widths
    while parameters(wider) < factor * parameters(widths):
        step += 1
        wider = [width + -(-step * width // largest) for width in widths]
    return wider


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
