"""A dense pair of layers, and all compared forms of the wide sparse pair that it is split into."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import fpe_lightning as fpe
from fpe_lightning.partitions import Contiguous, Partition, Shared, SharedPartition
from fpe_lightning.pruning import PruningName
from fpe_lightning.sparse import dense_mask

try:
    import sparselab as sparselab
except ImportError:
    sparselab = None
try:
    from rigl_torch.RigL import RigLScheduler as RigLScheduler
except ImportError:
    RigLScheduler = None


@dataclass(frozen=True)
class Case:
    """One shape of a pair of layers, with the accepted slowdown against the dense parent.

    Attributes:
        name: Name in the table.
        inputs: Number of inputs of the pair.
        hidden: Number of hidden neurons of the dense parent.
        outputs: Number of outputs of the pair.
        batch: Number of rows of the input.
        targets: Highest accepted ratio of times to the dense parent, by alpha.
        folded: The same for the folded layout, which multiplies by zeros too.
        train: Whether a run is a training step; otherwise it is a forward pass.
    """

    name: str
    inputs: int
    hidden: int
    outputs: int
    batch: int
    targets: dict[int, float]
    train: bool = True
    folded: Mapping[int, float] = field(default_factory=dict)


CASES = (
    Case("wide pair", 1024, 1024, 100, 1024, {2: 1.15, 4: 1.5}, folded={2: 1.9, 4: 3.4}),
    Case("CLIP probe, 32 neurons", 512, 32, 100, 1024, {2: 1.5, 4: 2.0}),
    Case("CLIP probe, 256 neurons", 512, 256, 100, 1024, {2: 1.5, 4: 2.0}),
    Case("transformer FFN", 768, 3072, 768, 512, {2: 1.3, 4: 1.3}, folded={2: 1.9, 4: 3.5}),
    Case("batch 1, inference", 4096, 4096, 100, 1, {2: 1.1, 4: 1.1, 8: 1.1}, train=False),
)


def _blocks(partition: Partition, prune: PruningName, **fields: Any) -> fpe.Expansion:
    return fpe.Expansion(partition=partition, prune=prune, **{"layout": "grouped", **fields})


EXPANSIONS = (
    fpe.Paper(layout="masked"),
    fpe.Paper(layout="folded"),
    fpe.Paper(layout="folded", prune="incoming"),
    fpe.Paper(layout="folded", outgoing="partition"),
    _blocks(Shared(groups=4), "total"),
    *(_blocks(Shared(groups=groups), "columns") for groups in (4, 16, 1)),
    *(_blocks(Contiguous(groups=groups), "columns") for groups in (1, 4)),
    *(_blocks(Shared(groups=groups), "columns", outgoing="partition") for groups in (4, 16)),
    *(_blocks(Contiguous(groups=groups), "columns", outgoing="partition") for groups in (1, 4)),
    _blocks(Shared(groups=4), "columns", layout="auto"),
    _blocks(Shared(groups=4), "columns", outgoing="partition", layout="auto"),
)
"""All compared expansions; :func:`split_pair` sets their alpha."""
SEMI_STRUCTURED = fpe.Expansion(partition="semi_structured", layout="semi_structured")
"""For GPUs with 2:4 kernels, in half precision."""
HEADING = "layout, partition, pruning"


def label(expansion: fpe.Expansion) -> str:
    """The name of an expansion in tables, under :data:`HEADING`; "outgoing" marks partitioned outgoing weights."""
    partition: object = expansion.partition
    if isinstance(partition, SharedPartition):
        partition = f"{type(partition).__name__.lower()} {partition.groups}"
    outgoing = ", outgoing" if expansion.outgoing == "partition" else ""
    return f"{expansion.layout}, {partition}, {expansion.prune}{outgoing}"


def dense_pair(case: Case, device: torch.device, dtype: torch.dtype) -> nn.Sequential:
    """The dense parent."""
    torch.manual_seed(0)
    layers = [nn.Linear(case.inputs, case.hidden), nn.ReLU(), nn.Linear(case.hidden, case.outputs)]
    return nn.Sequential(*layers).to(device, dtype)


def split_pair(
    dense: nn.Sequential,
    alpha: int,
    expansion: fpe.Expansion,
    batch: int = 1,
    train: bool = True,
    mixed: bool = False,
) -> nn.Sequential:
    """The wide sparse pair that a dense one is split into.

    Args:
        dense: The dense pair; it does not change.
        alpha: Children of each neuron.
        expansion: The expansion, apart from its alpha.
        batch: Rows of the input that ``"auto"`` is timed with.
        train: Whether ``"auto"`` times training steps; otherwise it times forward passes.
        mixed: Whether ``"auto"`` is timed under bfloat16 autocast.

    Raises:
        ValueError: If the expansion does not fit alpha or the shape.
    """
    wide = copy.deepcopy(dense).train(train)
    weight = dense[0].get_parameter("weight")
    with warnings.catch_warnings(), torch.autocast(weight.device.type, torch.bfloat16, enabled=mixed):
        warnings.simplefilter("ignore", fpe.ExpansionWarning)
        example = torch.zeros(batch, weight.shape[1], dtype=weight.dtype, device=weight.device)
        fpe.expand(wide, replace(expansion, alpha=alpha), example_inputs=example)
    return wide


def pruned_pair(masked: nn.Sequential) -> nn.Sequential:
    """The same structure under ``torch.nn.utils.prune``, which multiplies by a float mask in every forward pass."""
    layers: list[nn.Module] = []
    for layer in masked:
        if isinstance(layer, nn.Linear):
            plain = nn.Linear(layer.in_features, layer.out_features).to(layer.weight)
            plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
            mask = dense_mask(layer)
            if mask is not None:
                prune.custom_from_mask(plain, "weight", mask)
            layers.append(plain)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


class CSRLinear(nn.Module):
    """A linear layer in torch's own compressed rows: the values are the parameter."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        mask = dense_mask(layer)
        mask = torch.ones_like(layer.weight, dtype=torch.bool) if mask is None else mask
        self.values = nn.Parameter(layer.weight.detach()[mask])
        self.register_buffer("rows", F.pad(mask.sum(1).cumsum(0), (1, 0)))
        self.register_buffer("columns", mask.nonzero()[:, 1].contiguous())
        self.bias, self.shape = nn.Parameter(layer.bias.detach().clone()), tuple(mask.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``weight @ x.T``, which is several times faster than ``F.linear`` with such a weight."""
        weight = torch.sparse_csr_tensor(
            self.get_buffer("rows"), self.get_buffer("columns"), self.values, self.shape, check_invariants=False
        )
        return (weight @ x.t()).t() + self.bias


def csr_pair(masked: nn.Sequential) -> nn.Sequential:
    """The same structure in torch's compressed rows."""
    return nn.Sequential(*(CSRLinear(layer) if isinstance(layer, nn.Linear) else layer for layer in masked))


def sparselab_pair(case: Case, alpha: int) -> nn.Sequential:
    """The same number of non-zeros in sparselab's format: incoming weights at random, outgoing weights dense."""
    width = alpha * case.hidden
    return nn.Sequential(
        sparselab.SparseLinear(case.inputs, width, sparsity=1 - _density(case, alpha)),
        nn.ReLU(),
        nn.Linear(width, case.outputs),
    )


def rigl_pair(case: Case, alpha: int) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """The same number of non-zeros under rigl-torch with a fixed topology, and the optimizer whose step it wraps."""
    width = alpha * case.hidden
    pair = nn.Sequential(nn.Linear(case.inputs, width), nn.ReLU(), nn.Linear(width, case.outputs))
    optimizer = torch.optim.AdamW(pair.parameters())
    RigLScheduler(pair[0], optimizer, _density(case, alpha), T_end=10**9, ignore_linear_layers=False, static_topo=True)
    return pair, optimizer


def _density(case: Case, alpha: int) -> float:
    """Density of the incoming weights if all outgoing copies stay and incoming weights are pruned."""
    copies = (alpha - 1) * (case.outputs + 1)
    return max(case.inputs - copies, case.inputs // 10) / (alpha * case.inputs)


def work(
    pair: nn.Module,
    case: Case,
    x: Tensor,
    target: Tensor,
    mixed: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
) -> Callable[[], object]:
    """Return the timed function: a training step with AdamW, or a forward pass; ``mixed`` uses bfloat16 autocast."""

    def forward() -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
            out: Tensor = pair(x)
        return out

    if not case.train:
        return torch.inference_mode()(forward)
    stepper = optimizer or torch.optim.AdamW(pair.parameters())

    def step() -> None:
        stepper.zero_grad()
        F.cross_entropy(forward().float(), target).backward()
        stepper.step()

    return step
