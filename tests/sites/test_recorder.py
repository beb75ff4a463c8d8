"""The outermost calls of a step are visited, and the calls inside of those that a visit cannot use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fpe_lightning.sites.recorder import CallWatcher


class Root(nn.Module):
    """Calls networks in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
        self.b = nn.Bilinear(2, 2, 3)


class Visits(list):
    """Notes the names of calls, and does not want those named ``refused``."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused

    def __call__(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> bool:
        self.append((name, type(module).__name__, len(args), list(kwargs)))
        return name not in self.refused


def test_outermost_calls_are_visited() -> None:
    root, visits = Root(), Visits()
    watcher = CallWatcher(root, visits)
    for _ in range(2):
        root.b(root.a(torch.zeros(3, 4)), input2=torch.ones(3, 2))
    root.a[1](torch.zeros(7))
    step = [("a", "Sequential", 1, []), ("b", "Bilinear", 1, ["input2"])]
    assert visits == [*step, *step, ("a.1", "ReLU", 1, [])]
    watcher.stop()
    watcher.stop()
    root.a[0](torch.zeros(1, 4))
    assert len(visits) == 5
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in root.modules())


def test_calls_inside_of_a_call_that_is_not_wanted_are_visited() -> None:
    root, visits = Root(), Visits("a")
    watcher = CallWatcher(root, visits)
    root.a(torch.zeros(3, 4))
    root.b(torch.zeros(3, 2), torch.zeros(3, 2))
    watcher.stop()
    assert [name for name, *_ in visits] == ["a", "a.0", "a.1", "b"]


def test_a_call_that_raises_does_not_hide_later_ones() -> None:
    root, visits = Root(), Visits()
    watcher = CallWatcher(root, visits)
    with pytest.raises(RuntimeError):
        root.a(torch.zeros(3, 5))
    root.b(torch.zeros(1, 2), torch.zeros(1, 2))
    watcher.stop()
    assert [name for name, *_ in visits] == ["a", "b"]


def test_calls_inside_of_compiled_modules_name_the_module_inside() -> None:
    root, visits = nn.Module(), Visits()
    root.net = torch.compile(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), backend="eager")
    watcher = CallWatcher(root, visits)
    root.net(torch.zeros(3, 4))
    watcher.stop()
    assert [(name, kind) for name, kind, *_ in visits] == [("net._orig_mod", "Sequential")]
