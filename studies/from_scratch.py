"""Networks at epoch 0: dense ones, and those that have another structure from the start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn
from typing_extensions import override

from fpe_lightning.networks import MLP
from fpe_lightning.networks.sparse_init import allocate, sparsify_
from fpe_lightning.partitions import Partition
from fpe_lightning.sparse.masked import set_mask
from studies.dropconnect import DropConnectMLP, DropConnectNetwork
from studies.partitions import fitted
from studies.splitting import alive_of

if TYPE_CHECKING:
    from studies.arms import Arm
    from studies.setting import Setting
    from studies.task import Task


def begin(arm: Arm, setting: Setting, task: Task, seed: int) -> nn.Module:
    """Draw a network; arms of one seed and shape begin with the same weights.

    Args:
        arm: An arm; one that splits begins as the dense network.
        setting: Sizes.
        task: Number of inputs and outputs, and the samples by which inputs may be placed.
        seed: Of weights and masks.

    Returns:
        A network of as many non-zeros as the dense one, unless the arm is marked.

    Raises:
        ValueError: If the number of non-zeros cannot be met.

    Example:
        >>> from studies.arms import WideSparse
        >>> from studies.setting import Setting
        >>> from studies.task import Task
        >>> x, y = torch.randn(8, 20), torch.arange(8) % 3
        >>> task = Task((x, y), (x, y), (x, y), classes=3)
        >>> begin(WideSparse(), Setting(hidden=4), task, 0).layers[0].out_features
        8
    """
    # Layers draw their weights from the global source of random numbers, which is restored afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = arm.build(setting, task, seed)
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


def wide_sparse(setting: Setting, task: Task, allocation: str, seed: int) -> nn.Module:
    """A network as wide as after a split, with the non-zeros of the dense one.

    Args:
        setting: Sizes.
        task: Number of inputs and outputs.
        allocation: ``"even"`` has zeros in all layers alike; other ones in the layers that a split widens, but for the
            classifier, and ``"erk"`` in all that a split changes, by :func:`erdos_renyi`.
        seed: Of the masks.

    Raises:
        ValueError: If the number of non-zeros cannot be met.
    """
    network = setting.build(task, [setting.alpha * width for width in setting.widths()])
    layers, sparse, counts = _allocated(network, setting, task, allocation)
    sparsify_([layers[name] for name in sparse], counts, allocation, seed)
    return network


@torch.no_grad()
def one_shot_(network: nn.Module, task: Task) -> None:
    """Keep the hidden weights of largest ``|weight x gradient|`` over all training samples, as many as there are.

    After SNIP (Lee et al., ICLR 2019), for one hidden layer; the weights are those that the random mask began with.

    Args:
        network: A wide sparse MLP, changed in place.
        task: The samples.
    """
    assert isinstance(network, MLP)
    layer = network.linear_layers()[0]
    keep = int(alive_of(layer).sum())
    bound = (layer.in_features * keep / layer.weight.numel()) ** -0.5
    set_mask(layer, "weight", None)
    nn.init.uniform_(layer.weight, -bound, bound)
    with torch.enable_grad():
        loss = task.loss_of(network, torch.arange(len(task.train[1])))
        (gradient,) = torch.autograd.grad(loss, [layer.weight])
    chosen = torch.zeros(layer.weight.numel(), dtype=torch.bool)
    chosen[(layer.weight * gradient).abs().flatten().sort(descending=True, stable=True).indices[:keep]] = True
    set_mask(layer, "weight", chosen.view_as(layer.weight))


class LowRankMLP(nn.Module):
    """One wide hidden layer, whose weights are a product of two thin matrices.

    The rank is half of the dense network's width, and the hidden layer as wide as the parameters of the dense network
    allow.

    Args:
        inputs: Size of the last axis of the input.
        hidden: Width of the dense network.
        outputs: Size of the last axis of the output.

    Example:
        >>> network = LowRankMLP(64, 8, 10)
        >>> network.wide.out_features, parameters(network), parameters(MLP(64, 8, 10))
        (22, 596, 610)
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        rank = max(1, hidden // 2)
        budget = hidden * (inputs + 1 + outputs) + outputs
        width = (budget - outputs - rank * inputs) // (rank + 1 + outputs)
        self.thin = nn.Linear(inputs, rank, bias=False)
        self.wide = nn.Linear(rank, width)
        self.classifier = nn.Linear(width, outputs)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.wide(self.thin(x)).relu())


def drop_connect(setting: Setting, task: Task, seed: int) -> nn.Module:
    """A wide dense network that keeps as many weights in each step as :func:`wide_sparse` has.

    Args:
        setting: Sizes.
        task: Number of inputs and outputs.
        seed: Of the weights that are dropped.

    Raises:
        ValueError: If the number of non-zeros cannot be met.
    """
    sparse = wide_sparse(setting, task, "hidden", seed)
    layers, (*widened, _), counts = _allocated(sparse, setting, task, "hidden")
    keep = sum(counts[:-1]) / sum(layers[name].weight.numel() for name in widened)
    widths = [setting.alpha * width for width in setting.widths()]
    if isinstance(sparse, MLP):
        return DropConnectMLP(task.inputs, widths, task.outputs, keep, seed)
    return DropConnectNetwork(setting.build(task, widths), widened, keep, seed)


def _allocated(
    network: nn.Module, setting: Setting, task: Task, allocation: str
) -> tuple[dict[str, nn.Linear | nn.Conv2d], list[str], list[int]]:
    """The layers of a wide network, the names of those that may be sparse, and the non-zeros of each of these."""
    narrow = outline(setting, task, setting.widths())
    layers, before = layers_of(network), layers_of(narrow)
    *others, last = layers
    widened = [name for name in others if layers[name].weight.shape != before[name].weight.shape]
    sparse = list(layers) if allocation == "even" else [*widened, last]
    sizes = [layers[name].weight.numel() for name in sparse]
    excess = parameters(network) - parameters(narrow)
    if allocation == "erk":
        shapes = [layers[name].weight.flatten(1).shape for name in sparse]
        return layers, sparse, erdos_renyi(shapes, sum(sizes) - excess)
    return layers, sparse, allocate(sizes, excess, allocation)


def erdos_renyi(shapes: Sequence[Sequence[int]], keep: int) -> list[int]:
    """Non-zeros of each layer where its density goes with ``(out + in) / (out * in)`` (Mocanu et al., 2018; ERK).

    Args:
        shapes: Outputs and inputs of each layer.
        keep: Non-zeros of all layers together.

    Returns:
        Non-zeros of each layer, at most its size.

    Example:
        >>> erdos_renyi([(32, 64), (10, 32)], 500)
        [348, 152]
    """
    sizes = [rows * columns for rows, columns in shapes]
    counts = [0] * len(shapes)
    free = list(range(len(shapes)))
    while free:
        left = keep - sum(counts)
        scale = left / sum(sum(shapes[i]) for i in free)
        full = [i for i in free if scale * sum(shapes[i]) >= sizes[i]]
        if not full:
            for i in free:
                counts[i] = int(scale * sum(shapes[i]))
            counts[free[0]] += keep - sum(counts)
            return counts
        for i in full:
            counts[i] = sizes[i]
        free = [i for i in free if i not in full]
    return counts


def larger_network(setting: Setting, task: Task, factor: float) -> nn.Module:
    """The smallest dense network that has at least ``factor`` times the parameters."""
    widths = larger(setting.widths(), factor, lambda wider: parameters(outline(setting, task, wider)))
    return setting.build(task, widths)


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
def place_(network: nn.Module, partition: str | Partition, alpha: int, task: Task, seed: int) -> None:
    """Let the neurons of the first layer choose their inputs by a partition, and draw at random among these.

    Row ``r`` draws from the inputs of child ``r % alpha``: the mask uses the same knowledge as a split with this
    partition. Counts and the scale of initial weights are those of the random mask.

    Args:
        network: A wide sparse MLP.
        partition: Fitted to the network where it needs samples.
        alpha: Number of children.
        task: The samples.
        seed: Of the mask and the weights.
    """
    assert isinstance(network, MLP)
    layer = network.linear_layers()[0]
    mask = alive_of(layer)
    rule = fitted(partition, task, network)
    generator = Generator().manual_seed(seed)
    child = rule(torch.zeros(1, task.inputs, 1), torch.ones(1, task.inputs, dtype=torch.bool), alpha, generator)[0]
    allowed = child == (torch.arange(len(mask)) % alpha).unsqueeze(1)
    # Allowed inputs get keys in [1, 2), others in [0, 1): the largest keys are taken.
    keys: Tensor = torch.rand(mask.shape, generator=generator) + allowed
    chosen = torch.zeros(mask.numel(), dtype=torch.bool)
    chosen[keys.flatten().topk(int(mask.sum())).indices] = True
    bound = (task.inputs * int(mask.sum()) / mask.numel()) ** -0.5
    layer.weight.copy_((2 * torch.rand(mask.shape, generator=generator) - 1) * bound)
    set_mask(layer, "weight", chosen.view_as(mask))
