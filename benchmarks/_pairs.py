"""A dense pair of layers, and every way to hold the wide sparse one that is split from it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import fpe_lightning as fpe
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
    """One shape of a pair of layers, and how much slower than the dense parent the best layout may be at each alpha.

    Attributes:
        name: For the table.
        inputs: Inputs of the pair.
        hidden: Hidden neurons of the dense parent.
        outputs: Outputs of the pair.
        batch: Rows of the input.
        targets: Highest ratio to the dense parent, by alpha.
        train: Whether a run is a training step, or a forward pass alone.
    """

    name: str
    inputs: int
    hidden: int
    outputs: int
    batch: int
    targets: dict[int, float]
    train: bool = True


CASES = (
    Case("wide pair", 1024, 1024, 100, 1024, {2: 1.15, 4: 1.5}),
    Case("CLIP probe, 32 neurons", 512, 32, 100, 1024, {2: 1.5, 4: 2.0}),
    Case("CLIP probe, 256 neurons", 512, 256, 100, 1024, {2: 1.5, 4: 2.0}),
    Case("transformer FFN", 768, 3072, 768, 512, {2: 1.3, 4: 1.3}),
    Case("batch 1, inference", 4096, 4096, 100, 1, {2: 1.1, 4: 1.1, 8: 1.1}, train=False),
)


@dataclass(frozen=True)
class Way:
    """One way to split: the arguments of ``expand``."""

    partition: str
    budget: str
    layout: str

    def __str__(self) -> str:
        """As it stands in tables."""
        return f"{self.layout}, {self.partition}, {self.budget}"


WAYS = (
    Way("random", "total", "masked"),
    Way(Shared(groups=4), "total", "grouped"),
    Way(Shared(groups=4), "columns", "grouped"),
    Way(Shared(groups=16), "columns", "grouped"),
    Way("shared", "columns", "grouped"),
    Way("contiguous", "columns", "grouped"),
    Way(Contiguous(groups=4), "columns", "grouped"),
    Way(Shared(groups=4), "blocks", "grouped"),
    Way(Shared(groups=16), "blocks", "grouped"),
    Way("contiguous", "blocks", "grouped"),
    Way(Contiguous(groups=4), "blocks", "grouped"),
    Way(Shared(groups=4), "columns", "auto"),
    Way(Shared(groups=4), "blocks", "auto"),
)
SEMI_STRUCTURED = Way("semi_structured", "total", "semi_structured")
"""For GPUs that have the kernels, in half precision."""


def dense_pair(case: Case, device: torch.device, dtype: torch.dtype) -> nn.Sequential:
    """The dense parent."""
    torch.manual_seed(0)
    layers = [nn.Linear(case.inputs, case.hidden), nn.ReLU(), nn.Linear(case.hidden, case.outputs)]
    return nn.Sequential(*layers).to(device, dtype)


def split_pair(
    dense: nn.Sequential, alpha: int, way: Way, batch: int = 1, train: bool = True, mixed: bool = False
) -> nn.Sequential:
    """The wide sparse pair that a dense one is split into.

    Args:
        dense: Stays as it is.
        alpha: Children of each neuron.
        way: How it is split.
        batch: Rows of the input that ``"auto"`` is timed for.
        train: Whether it is timed for training steps, or for forward passes.
        mixed: Whether it is timed under bfloat16 autocast.

    Raises:
        ValueError: If the rule leaves too little of some neuron.
    """
    wide = copy.deepcopy(dense).train(train)
    weight = dense[0].get_parameter("weight")
    with warnings.catch_warnings(), torch.autocast(weight.device.type, torch.bfloat16, enabled=mixed):
        warnings.simplefilter("ignore", fpe.ExpansionWarning)
        example = torch.zeros(batch, weight.shape[1], dtype=weight.dtype, device=weight.device)
        fpe.expand(
            wide,
            fpe.Expansion(alpha=alpha, partition=way.partition, prune=way.budget, layout=way.layout),
            example_inputs=example,
        )
    return wide


def pruned_pair(masked: nn.Sequential) -> nn.Sequential:
    """The same structure held by ``torch.nn.utils.prune``, which multiplies by a float mask in every forward."""
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
        """Written as ``weight @ x.T``, which is several times faster than ``F.linear`` with such a weight."""
        weight = torch.sparse_csr_tensor(
            self.get_buffer("rows"), self.get_buffer("columns"), self.values, self.shape, check_invariants=False
        )
        return (weight @ x.t()).t() + self.bias


def csr_pair(masked: nn.Sequential) -> nn.Sequential:
    """The same structure in torch's compressed rows."""
    return nn.Sequential(*(CSRLinear(layer) if isinstance(layer, nn.Linear) else layer for layer in masked))


def sparselab_pair(case: Case, alpha: int) -> nn.Sequential:
    """As many non-zeros in sparselab's rows: incoming ones at random, outgoing ones dense."""
    width = alpha * case.hidden
    return nn.Sequential(
        sparselab.SparseLinear(case.inputs, width, sparsity=1 - _density(case, alpha)),
        nn.ReLU(),
        nn.Linear(width, case.outputs),
    )


def rigl_pair(case: Case, alpha: int) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """As many non-zeros held by rigl-torch with a fixed topology, and the optimizer whose step it wraps."""
    width = alpha * case.hidden
    pair = nn.Sequential(nn.Linear(case.inputs, width), nn.ReLU(), nn.Linear(width, case.outputs))
    optimizer = torch.optim.AdamW(pair.parameters())
    RigLScheduler(pair[0], optimizer, _density(case, alpha), T_end=10**9, ignore_linear_layers=False, static_topo=True)
    return pair, optimizer


def _density(case: Case, alpha: int) -> float:
    """Of the incoming weights, where all outgoing copies stay and incoming weights make room."""
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
    """What is timed: a whole training step with AdamW, or a forward pass; ``mixed`` under bfloat16 autocast."""

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
