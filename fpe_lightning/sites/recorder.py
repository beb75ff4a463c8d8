"""How a LightningModule calls its networks: noted during one real step, so that nobody has to say it.

``training_step`` may call ``self(x)``, ``self.net(x, mask=m)`` or several networks. The outermost calls are what the
sites of each network are found with. Only shapes and dtypes are kept, in plain types that a checkpoint can hold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Call = dict[str, Any]
"""``{"module": qualified name, "args": [...], "kwargs": {...}}`` with tensors replaced by their shape and dtype."""


def describe(value: Any) -> Any:
    """Replace every tensor in nested lists, tuples and dicts by its shape and dtype.

    Raises:
        TypeError: If something else than tensors, numbers, strings, None and these containers is in it.

    Example:
        >>> describe((torch.zeros(2, 3), {"scale": 1.0}))
        {'tuple': [{'shape': [2, 3], 'dtype': 'float32'}, {'dict': {'scale': {'value': 1.0}}}]}
    """
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [describe(entry) for entry in value]}
    if isinstance(value, dict):
        return {"dict": {key: describe(entry) for key, entry in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"a {type(value).__name__} cannot be described by shapes")


def rebuild(description: Any, device: torch.device | str = "cpu") -> Any:
    """The inverse of :func:`describe`, with tensors of zeros.

    Example:
        >>> rebuild(describe([torch.ones(2), None]))
        [tensor([0., 0.]), None]
    """
    if "shape" in description:
        return torch.zeros(description["shape"], dtype=getattr(torch, description["dtype"]), device=device)
    if "tuple" in description:
        return tuple(rebuild(entry, device) for entry in description["tuple"])
    if "list" in description:
        return [rebuild(entry, device) for entry in description["list"]]
    if "dict" in description:
        return {key: rebuild(entry, device) for key, entry in description["dict"].items()}
    return description["value"]


class _Uncompiled:
    """Lets compiled code run uncompiled while any recorder is at work: it would not run the hooks.

    Recorders may stop in any order, and stances are restored in the reverse order alone: all share one.
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


class CallRecorder:
    """Notes the first outermost call of each module below (or of) ``root`` until it is stopped.

    Args:
        root: The LightningModule. Modules inside of a compiled one are not looked at.
        calls: Where to note the calls; None for a new list.

    Example:
        >>> class Root(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
        >>> root = Root()
        >>> recorder = CallRecorder(root)
        >>> _ = root.net(torch.zeros(3, 4))
        >>> recorder.stop()
        >>> [call["module"] for call in recorder.calls]
        ['net']
    """

    def __init__(self, root: nn.Module, calls: list[Call] | None = None) -> None:
        self.calls: list[Call] = [] if calls is None else calls
        self._root, self._forward = root, root.forward
        self._open: list[bool] = []  # for each call under way, whether it is a network's
        self._handles: list[RemovableHandle] = []
        _Uncompiled.enter()
        compiled = [name for name, module in root.named_modules() if _is_compiled(module)]
        for name, module in root.named_modules():
            if not any(name.startswith(f"{outer}." if outer else "") and name != outer for outer in compiled):
                target = f"{name}._orig_mod".lstrip(".") if _is_compiled(module) else name
                # What comes in, not what FSDP2 casts it to: its casts are hooks, which do not run when sites are found.
                first = hasattr(module, "_get_fsdp_state")
                enter = module.register_forward_pre_hook(self._enter(target), prepend=first, with_kwargs=True)
                self._handles.append(enter)
                self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Strategies that wrap the module let its forward stand in for training_step: that call is no network's.
            step = module is self._root and module.forward != self._forward
            outermost = not step and not any(self._open)
            self._open.append(not step)
            if outermost and name not in {call["module"] for call in self.calls}:
                try:
                    self.calls.append({"module": name, "args": describe(args), "kwargs": describe(kwargs)})
                except TypeError:
                    return  # an argument that is no tensor or plain value: this call cannot be repeated

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
