"""Under DDP the module's forward stands in for ``training_step`` while a step runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fpe_lightning.sites.recorder import CallWatcher


class Root(nn.Module):
    """A module whose step calls its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self(batch[0]).sum()


def test_a_forward_that_stands_in_for_the_step_is_not_taken_for_a_network() -> None:
    root = Root()
    visits: list[tuple[str, Any]] = []
    watcher = CallWatcher(root, lambda name, module, args, kwargs: not visits.append((name, args[0].shape)))
    original = root.forward

    def redirected(*args: Any) -> Tensor:
        root.forward = original  # type: ignore[method-assign]
        return root.training_step(*args)

    root.forward = redirected  # type: ignore[method-assign,assignment]
    root((torch.zeros(3, 4), torch.zeros(3)), 0)
    watcher.stop()
    assert visits == [("", (3, 4))]
