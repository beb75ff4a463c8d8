"""Watch how a LightningModule calls its networks while a step runs.

``training_step`` may call ``self(x)``, ``self.net(x, mask=m)`` or several networks. The outermost calls are those in
which the sites of each network are found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

Visit = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], bool]
"""Called with a module's qualified name, the module and its arguments, before its forward runs."""


class _Uncompiled:
    """Lets compiled code run uncompiled while any watcher is at work: it would not run the hooks.

    Watchers may stop in any order, and stances are restored in the reverse order alone: all share one.
    """

    users = 0
    stance: Any = None

    @classmethod
    def enter(cls) -> None:
        if cls.users == 0:
            cls.stance = torch.compiler.set_stance("force_eager")
            cls.stance.__enter__()
        cls.users += 1

    @classmethod
    def leave(cls) -> None:
        cls.users -= 1
        if cls.users == 0:
            cls.stance.__exit__(None, None, None)


class CallWatcher:
    """Visits the outermost calls of modules below (or of) ``root`` until it is stopped.

    Args:
        root: The LightningModule. Modules inside of a compiled one are not watched.
        visit: Called before each outermost call. If it returns False, the calls inside count as outermost too.

    Example:
        >>> class Root(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
        >>> root, seen = Root(), []
        >>> watcher = CallWatcher(root, lambda name, *_: bool(seen.append(name)) or name == "net")
        >>> _ = root.net(torch.zeros(3, 4))
        >>> watcher.stop()
        >>> seen
        ['net']
    """

    def __init__(self, root: nn.Module, visit: Visit) -> None:
        self._visit = visit
        self._root, self._forward = root, root.forward
        self._open: list[bool] = []  # for each call under way, whether the calls inside of it are of no interest
        self._handles: list[RemovableHandle] = []
        _Uncompiled.enter()
        compiled = [name for name, module in root.named_modules() if _is_compiled(module)]
        for name, module in root.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks, and cannot be split
                continue
            if not any(name.startswith(f"{outer}." if outer else "") and name != outer for outer in compiled):
                target = f"{name}._orig_mod".lstrip(".") if _is_compiled(module) else name
                # The inputs before FSDP2 casts them: its casts are hooks, which do not run when sites are found.
                first = hasattr(module, "_get_fsdp_state")
                enter = module.register_forward_pre_hook(self._enter(target), prepend=first, with_kwargs=True)
                self._handles.append(enter)
                self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Strategies that wrap the module let its forward stand in for training_step: that call is no network's.
            step = module is self._root and module.forward != self._forward
            self._open.append(True)  # nothing that a visit does is a call of the step
            if step or any(self._open[:-1]):
                self._open[-1] = False
            else:
                self._open[-1] = self._visit(name, self._root.get_submodule(name), args, kwargs)

        return hook

    def _leave(self, *_: Any) -> None:
        self._open.pop()

    def stop(self) -> None:
        """Take every hook away; calling it again does nothing."""
        if self._handles:
            _Uncompiled.leave()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _is_compiled(module: nn.Module) -> bool:
    return isinstance(module, torch._dynamo.OptimizedModule)
