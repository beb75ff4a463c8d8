"""A layout is one module and one registration: what holds for the layouts of the package holds for one from outside."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import joined, states_of_both

import fpe_lightning as fpe
from fpe_lightning.sparse import (
    LAYOUTS,
    check_masks,
    dense_mask,
    dense_weight,
    layout_of,
    register_layout,
    store,
    tune,
)
from fpe_lightning.sparse.choices import ChoiceFile
from tests.support.toy_layout import Toy, ToyLinear, toy_layout


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with toy_layout():
        yield


def make() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(8, 64)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def split(model: nn.Module, x: Tensor, layout: str = "toy", optimizer: torch.optim.Optimizer | None = None) -> None:
    report = fpe.expand(model, fpe.Expansion(layout=layout), optimizer=optimizer, example_inputs=x)
    assert report.nonzeros_before == report.nonzeros_after == fpe.count_nonzeros(model)


def wide(layout: str = "toy") -> tuple[nn.Sequential, torch.optim.Optimizer, Tensor]:
    """A model that is split after three steps, with its optimizer."""
    model, x = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, x)
    split(model, x, layout, optimizer)
    return model, optimizer, x


def test_it_trains_as_the_masked_layout_does_with_the_state_from_before_the_split() -> None:
    (ours, optimizer, x), (theirs, reference, _) = wide(), wide("masked")
    assert isinstance(ours[0], ToyLinear)
    assert ours[0].weight.shape == (int(dense_mask(theirs[0]).sum()), 1)
    assert optimizer.state[ours[0].weight]["exp_avg"].shape == ours[0].weight.shape
    train(ours, optimizer, x)
    train(theirs, reference, x)
    for one, other in zip((ours[0], ours[2]), (theirs[0], theirs[2]), strict=True):
        torch.testing.assert_close(dense_weight(one), dense_weight(other), atol=1e-5, rtol=1e-4)
    check_masks(ours)
    assert fpe.count_nonzeros(ours) == fpe.count_nonzeros(theirs)


def test_a_second_split_and_copies_follow() -> None:
    model, optimizer, x = wide()
    split(model, x, "toy", optimizer)
    train(model, optimizer, x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False), copy.deepcopy(model).double().float()):
        assert torch.equal(twin(x), model(x))


@pytest.mark.parametrize("layout", ["masked", "toy"])
def test_any_model_loads_its_checkpoint(layout: str) -> None:
    model, _, x = wide()
    narrow = make()[0]
    if layout == "masked":
        narrow = wide("masked")[0]
    fpe.load_expanded_state_dict(narrow, model.state_dict())
    assert isinstance(narrow[0], ToyLinear)
    assert torch.equal(narrow(x), model(x))
    masked = wide("masked")[0]
    fpe.load_expanded_state_dict(narrow, masked.state_dict())
    assert torch.equal(narrow(x), masked(x))
    before = make()[0]
    fpe.load_expanded_state_dict(narrow, before.state_dict())
    assert type(narrow[0]) is nn.Linear
    assert torch.equal(narrow(x), before(x))


def test_a_broken_checkpoint_is_named() -> None:
    state = wide()[0].state_dict()
    state["0.fpe_toy"] = state["0.fpe_toy"][1:]
    with pytest.raises(ValueError, match=r"checkpoint is broken: `0\.weight` has shape .*, but its record says"):
        fpe.load_expanded_state_dict(make()[0], state)


def test_weights_go_through_every_layout() -> None:
    model, optimizer, x = wide("masked")
    expected = model(x).detach()
    for layout in ("toy", "masked", "toy"):
        store(model[0], layout, optimizers=[optimizer])
        assert layout_of(model[0]) is LAYOUTS.get(layout)
        torch.testing.assert_close(model(x), expected)
    train(model, optimizer, x)


def test_the_tuner_times_it(tmp_path: Path) -> None:
    model, _, x = wide()
    times = tune(model.eval(), x, file=ChoiceFile(tmp_path / "layouts.json"))["0"].times
    assert times.keys() >= {"masked", "toy"}


def test_what_it_cannot_hold_stays_masked_or_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    with pytest.raises(ValueError, match=r"`0\.weight` cannot be stored as a list: there is no toy form of Conv2d"):
        split(model, torch.randn(1, 16, 3, 3))


def test_names_that_are_taken_are_refused() -> None:
    with pytest.raises(ValueError, match="'toy' is registered already"):
        register_layout("toy", type("Other", (Toy,), {"buffers": ("fpe_other",)})())
    with pytest.raises(ValueError, match="buffer `fpe_toy`, which belongs to the layout 'toy'"):
        register_layout("other", Toy())
    with pytest.raises(ValueError, match="buffer `toy`, which does not begin with `fpe_`"):
        register_layout("other", type("Other", (Toy,), {"buffers": ("toy",)})())


def worker(rank: int, port: int, folder: str) -> None:
    with joined(rank, port), toy_layout():
        torch.set_num_threads(1)
        model, optimizer, x = wide()
        train(DistributedDataParallel(model), optimizer, x[4 * rank : 4 * rank + 4])
        torch.save(model.state_dict(), Path(folder, f"{rank}.pt"))


@pytest.mark.slow
def test_processes_stay_equal(tmp_path: Path) -> None:
    first, second = states_of_both(worker, tmp_path)
    assert all(torch.equal(first[key], second[key]) for key in first)
    model, optimizer, x = wide()
    train(model, optimizer, x)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(first[key], value, atol=1e-5, rtol=1e-4)
