"""A split straight into blocks ends as the one by way of the wide weight, bit by bit, and in little memory."""

from __future__ import annotations

import copy
import gc
import itertools
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.expansion import compact
from fpe_lightning.partitions import Contiguous, Shared
from fpe_lightning.sparse import GroupedLinear, parents_of, record_of

EXPAND = sys.modules["fpe_lightning.expansion.expand"]  # the module; the package has a function of that name
PARTITIONS = ("shared", Shared(groups=2), "contiguous", Contiguous(groups=4))
PRUNINGS = ("total", "incoming", "outgoing", "global", "columns", "blocks")


def mlp() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Linear(96, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)]
    return nn.Sequential(*layers), torch.randn(5, 96)


class Gated(nn.Module):
    """A feed-forward network with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(32, 8), nn.Linear(32, 8), nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x))


def gated() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Gated(), torch.randn(3, 7, 32)


MODELS = {"mlp": mlp, "gated": gated}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def pruning(name: str) -> dict[str, str]:
    """The fields of an expansion: ``"blocks"`` partitions the outgoing weights and prunes columns."""
    return {"prune": "columns", "outgoing": "partition"} if name == "blocks" else {"prune": name}


def split(
    kind: str, optimizer: Any = torch.optim.AdamW, sites: str | None = None, **fields: Any
) -> tuple[nn.Module, Any, Any]:
    """A model after three steps and a split, with gradients and state, its optimizer and the report (or error)."""
    model, x = MODELS[kind]()
    optimizers = optimizer(model.parameters())
    for _ in range(3):
        step(model, optimizers, x)
    try:
        report = fpe.expand(
            model, fpe.Expansion(layout="grouped", **fields), optimizer=optimizers, example_inputs=x, sites=sites
        )
    except ValueError as error:
        return model, optimizers, str(error)
    return model, optimizers, report


def by_way_of_the_wide_weight(monkeypatch: pytest.MonkeyPatch, *args: Any, **options: Any) -> tuple[Any, Any, Any]:
    with monkeypatch.context() as patch:
        patch.setattr(EXPAND, "fits_compact", lambda *_: set())
        return split(*args, **options)


def assert_equal(ours: tuple[Any, Any, Any], theirs: tuple[Any, Any, Any]) -> None:
    assert ours[2] == theirs[2]
    state, expected = ours[0].state_dict(), theirs[0].state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in state.items())
    for mine, other in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
        assert mine.requires_grad == other.requires_grad
        assert torch.equal(mine.grad, other.grad)
        assert ours[1].state[mine].keys() == theirs[1].state[other].keys()
        for key, value in ours[1].state[mine].items():
            assert torch.equal(value, theirs[1].state[other][key])
    held = [[id(p) for group in result[1].param_groups for p in group["params"]] for result in (ours, theirs)]
    assert held == [[id(p) for p in result[0].parameters()] for result in (ours, theirs)]
    assert set(ours[1].state) == set(ours[0].parameters())


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
@pytest.mark.parametrize("alpha", [2, 4])
@pytest.mark.parametrize(("kind", "partition", "prune"), list(itertools.product(MODELS, PARTITIONS, PRUNINGS)))
def test_it_ends_as_by_way_of_the_wide_weight(
    monkeypatch: pytest.MonkeyPatch, kind: str, partition: Any, prune: str, alpha: int
) -> None:
    options = {
        "alpha": alpha,
        "partition": partition,
        "sites": None if kind == "gated" else "0",
        **pruning(prune),
    }
    taken: list[set[str]] = []
    with monkeypatch.context() as patch:
        fits = compact.fits_compact
        patch.setattr(EXPAND, "fits_compact", lambda *args: taken.append(fits(*args)) or taken[-1])
        ours = split(kind, **options)
    expected = {"gate.weight", "up.weight"} if kind == "gated" else {"0.weight"}
    if prune == "blocks":  # the layer that reads the children keeps its weights in their order
        expected.add("down.weight" if kind == "gated" else "3.weight")
    assert taken == [expected]
    assert_equal(ours, by_way_of_the_wide_weight(monkeypatch, kind, **options))


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, amsgrad=True),
        torch.optim.Adagrad,
    ],
)
def test_every_state_follows(monkeypatch: pytest.MonkeyPatch, optimizer: Any) -> None:
    options = {"optimizer": optimizer, "partition": Shared(groups=2), "prune": "total"}
    ours = split("mlp", **options)
    theirs = by_way_of_the_wide_weight(monkeypatch, "mlp", **options)
    for mine, other in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
        assert torch.equal(mine, other)
        for key, value in ours[1].state[mine].items():
            assert value is theirs[1].state[other][key] or torch.equal(value, theirs[1].state[other][key])


def test_reset_copies_and_records(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp()
    average = copy.deepcopy(model)
    with torch.no_grad():
        average[0].weight.mul_(2)
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer, x)
    before = model[0].weight
    fpe.expand(
        model,
        fpe.Expansion(partition=Shared(groups=2), prune="columns", layout="grouped", optimizer_state="reset"),
        sites="0",
        optimizer=optimizer,
        example_inputs=x,
        averages=[average],
    )
    assert before not in optimizer.state
    assert model[0].weight not in optimizer.state
    assert isinstance(average[0], GroupedLinear)
    assert torch.equal(average[0].fpe_blocks, model[0].fpe_blocks)
    assert not torch.equal(average[0].weight, model[0].weight)
    record = record_of(model[0])
    assert record is not None
    assert record.shape_now("weight") == (32, 96)
    assert parents_of(model[0]).bincount().tolist() == [2] * 16
    step(model, optimizer, x)
    fresh, _ = mlp()
    fpe.load_expanded_state_dict(fresh, model.state_dict())
    assert torch.equal(fresh.eval()(x), model.eval()(x))


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
@pytest.mark.parametrize("prune", ["columns", "incoming"])
def test_what_is_refused_leaves_everything_as_it_was(prune: str) -> None:
    model, x = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer, x)
    state, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    moments = {p: optimizer.state[p]["exp_avg"].clone() for p in parameters}
    with pytest.raises(ValueError, match=r"Splitting 0 by alpha=12|some would get none"):
        fpe.expand(
            model,
            fpe.Expansion(alpha=12, partition="contiguous", prune=prune, layout="grouped"),
            sites="0",
            optimizer=optimizer,
            example_inputs=x,
        )
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(optimizer.state[p]["exp_avg"], moment) for p, moment in moments.items())


def test_the_wide_weight_is_never_there() -> None:
    sizes: list[int] = []

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            made = result if isinstance(result, tuple) else (result,)
            sizes.extend(t.untyped_storage().nbytes() for t in made if isinstance(t, Tensor))
            return result

    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 2))
    sites = fpe.find_sites(model, torch.zeros(1, 512))
    with Watching():
        fpe.expand(
            model, fpe.Expansion(alpha=4, partition=Shared(groups=4), prune="columns", layout="grouped"), sites=sites
        )
    assert max(sizes) <= 512 * 512 * 4  # no tensor larger than the weight itself


def test_the_old_weight_is_let_go() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    old = weakref.ref(model[0].weight)
    fpe.expand(
        model,
        fpe.Expansion(alpha=2, partition="shared", prune="columns", layout="grouped"),
        example_inputs=torch.zeros(1, 64),
    )
    gc.collect()
    assert old() is None
