"""Blocks that repeat: what the work of finding their sites grows with, and what it must not depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fpe_lightning.sites import find_sites
from fpe_lightning.sites.tracing.blocks import Blocks


class Block(nn.Module):
    """A block that writes its width into its forward, so that the first trial of it fails."""

    runs = 0

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.into, self.out = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        type(self).runs += 1
        hidden = torch.relu(self.into(x)).view(-1, self.hidden)
        return x + self.out(hidden)


class Noted(Block):
    """A block whose caller reads what it left behind."""

    def forward(self, x: Tensor) -> Tensor:
        self.note = super().forward(x)
        return self.note


class Listing(Block):
    """A block that also answers by a list that it was given."""

    def forward(self, x: Tensor, found: list[Tensor] | None = None) -> Tensor:
        answer = super().forward(x)
        if found is not None:
            found.append(answer)
        return answer


class Stack(nn.Module):
    """Blocks one behind the other."""

    def __init__(self, kind: type[Block], count: int) -> None:
        super().__init__()
        self.start, self.blocks = nn.Linear(6, 8), nn.ModuleList(kind(8, 12) for _ in range(count))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, found = self.start(x), []
        for block in self.blocks:
            x = block(x, found) if isinstance(block, Listing) else block(x)
        notes = [block.note for block in self.blocks if isinstance(block, Noted)]
        return self.head(x + sum(notes) + sum(found))


def names(model: nn.Module) -> list[tuple[str, tuple[Any, ...]]]:
    return [(site.name, site.attributes) for site in find_sites(model, torch.randn(4, 6))]


@pytest.mark.parametrize("kind", [Block, Noted, Listing])
def test_every_block_has_its_site(kind: type[Block]) -> None:
    found = names(Stack(kind, 3))
    assert [name for name, _ in found] == [f"blocks.{i}.into" for i in range(3)]
    assert all(any(attribute.name == "hidden" for attribute in attributes) for _, attributes in found)


@pytest.mark.parametrize("kind", [Block, Noted, Listing])
def test_the_outputs_of_other_blocks_make_no_difference(kind: type[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    found = names(Stack(kind, 3))
    monkeypatch.setattr(Blocks, "replay", lambda *_: None)
    assert names(Stack(kind, 3)) == found


def test_each_block_runs_as_often_in_a_deep_model_as_in_a_shallow_one() -> None:
    runs = []
    for count in (4, 12):
        Block.runs = 0
        assert len(names(Stack(Block, count))) == count
        runs.append(Block.runs)
    # Two modes, at the old widths and at the new ones, are four runs of each; trials of the first come on top.
    assert runs[1] - runs[0] == 4 * 8, runs


def test_nothing_of_a_trial_stays_on_the_model() -> None:
    model = Stack(Noted, 3)
    before = [dict(vars(module)) for module in model.modules()]
    find_sites(model, torch.randn(4, 6))
    assert [list(vars(module)) for module in model.modules()] == [list(each) for each in before]
    assert all("forward" not in vars(module) for module in model.modules())
