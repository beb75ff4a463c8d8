"""Pairs of a narrow and a split model of every layout, and a trial with a ``state_dict`` that was tampered with."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.sparse.semi_structured.packed import pack_for_inference
from tests.support.nets import cnn, equal, mlp, snapshot
from tests.support.tampering import tamper

SENTENCES = (
    "The checkpoint is broken: ",
    "The checkpoint is of another network: ",
    "The checkpoint and the model do not fit: ",
    "The checkpoint holds `",
    "Names in `state_dict` begin with ",
    "Error(s) in loading state_dict for ",  # torch's own, where a name is missing or too many
)


class Sliced(nn.Module):
    """Owns an integer that grows with a width, and a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.first, self.last = nn.Linear(96, 8), nn.Linear(8, 3, bias=False)
        self.register_buffer("scale", torch.full((8,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x).tanh() * self.scale)[:, : self.width])


Pair = tuple[nn.Module, nn.Module, Tensor]
X = torch.randn(2, 96, generator=torch.Generator().manual_seed(0))
PICTURES = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
WIDE = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
BLOCKS = fpe.Expansion(alpha=2, partition=fpe.partitions.Shared(groups=2), prune="columns", layout="grouped")


def pair(
    make: Callable[[], nn.Module], x: Tensor, expansion: Any, times: int = 1
) -> tuple[nn.Module, nn.Module, Tensor]:
    narrow = make()
    wide = copy.deepcopy(narrow)
    for _ in range(times):
        fpe.expand(wide, expansion, example_inputs=x)
    return narrow, wide, x


def packed() -> Pair:
    narrow, wide, x = pair(lambda: mlp(128, 64, 3), WIDE, {"0": fpe.SemiStructured()})
    wide = wide.bfloat16()
    pack_for_inference(wide)
    return narrow.bfloat16(), wide, x.bfloat16()


PAIRS = {
    "masked": pair(lambda: mlp(96, 8, 3, norm=True), X, fpe.Paper(alpha=2)),
    "two splits": pair(lambda: mlp(96, 4, 3), X, fpe.Paper(alpha=2), times=2),
    "no bias": pair(lambda: mlp(96, 8, 3, bias=False), X, fpe.Paper(alpha=3)),
    "convolutions": pair(cnn, PICTURES, fpe.Paper(alpha=2)),
    "an integer and a buffer": pair(Sliced, X, fpe.Paper(alpha=2)),
    "grouped": pair(lambda: mlp(96, 8, 3), X, BLOCKS),
    "folded": pair(lambda: mlp(96, 8, 3), X, {"0": fpe.Expansion(alpha=2, layout="folded")}),
    "folded, no bias": pair(lambda: mlp(96, 8, 3, bias=False), X, {"0": fpe.Expansion(alpha=2, layout="folded")}),
    "2:4": pair(lambda: mlp(128, 64, 3), WIDE, {"0": fpe.SemiStructured()}),
    "packed 2:4": packed(),
}


def seen(model: nn.Module) -> dict[str, Any]:
    """All that a refused load must not change; folded layers make their buffer again whenever they are saved."""
    return {**snapshot(model), "objects": [id(parameter) for parameter in model.parameters()]}


def loads_right_or_refuses(model: nn.Module, state: dict[str, Any], x: Tensor, runs: bool = True) -> str:
    """Load a ``state_dict`` that may be broken, and check that nothing else than these two can be seen.

    Args:
        model: Narrow or wide.
        state: The ``state_dict``.
        x: An input.
        runs: Whether a model that was loaded has to take it.
    """
    before = seen(model)
    said = "loaded"
    try:
        fpe.load_expanded_state_dict(model, state)
    except (ValueError, RuntimeError) as error:
        said = str(error)
    if said != "loaded":
        assert said.startswith(SENTENCES), said
        assert equal(before, seen(model))
        return said
    now = dict(model.state_dict())
    # torch fills in the counter of a batch norm, as files of its first versions have none.
    filled = {key for key in now if key.endswith("num_batches_tracked")}
    assert state.keys() <= now.keys() <= state.keys() | filled
    for key, tensor in ((key, now[key]) for key in state):  # torch takes a tensor of one entry for a number
        assert equal(tensor, state[key].to(tensor.dtype).reshape(tensor.shape)), key
    if runs:
        with torch.no_grad():
            assert len(model.eval()(x)) == len(x)
    return said


def trial(seed: int) -> tuple[str, str]:
    """Tamper with one to three things, and load; what was done, and what came of it."""
    draw = random.Random(seed)
    name = draw.choice(list(PAIRS))
    narrow, wide, x = PAIRS[name]
    state = {key: tensor.clone() for key, tensor in wide.state_dict().items()}
    done = [tamper(state, draw) for _ in range(draw.choice([1, 1, 1, 2, 3]))]
    model = copy.deepcopy(draw.choice([narrow, wide]))
    # Nothing contradicts a record that keeps quiet about an integer, or about a buffer that is not in the file.
    quiet = any(each.startswith("fpe_record") for each in done)
    return f"{name}: {done}", loads_right_or_refuses(model, state, x, runs=not quiet)
