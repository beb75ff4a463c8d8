"""Let loaders that know nothing of splits read expanded checkpoints: Lightning's, and those of other projects."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

from torch import nn

from fpe_lightning.checkpoints.names import check_names, is_expanded
from fpe_lightning.checkpoints.pretrained import patch_pretrained
from fpe_lightning.checkpoints.restore import load_into, restore_structure
from fpe_lightning.sparse.record import RECORD


class _Inside(threading.local):
    """How many blocks a thread is in, and whether it is loading."""

    blocks = 0
    loading = False


_INSIDE = _Inside()
_LOCK = threading.RLock()
_PATCHES = ExitStack()
"""Undoes the patches; shared by all threads."""
_users = 0
_always = 0


def expanded_checkpoints(always: bool = False) -> AbstractContextManager[Any]:
    """Let any code inside load the weights of a split model into the module as its class builds it.

    ``LightningModule.load_from_checkpoint``, ``Trainer.predict(ckpt_path=...)`` without an ``ExpansionCallback``, and
    every other loader that calls ``load_state_dict``: inside, that method gives the module the widths and masks of the
    weights first. ``from_pretrained`` of transformers and diffusers does the same. A ``state_dict`` of which nothing
    was split loads as always.

    Loaders that drop names or shapes which the narrow module has not, before they load, need
    :func:`~fpe_lightning.checkpoints.read.restore_structure_from_file` instead. Where weights do not fit, the method
    raises a ``RuntimeError`` as always, and the module is as it was.

    Args:
        always: Whether this holds from now on, in all threads of this process, and not only inside of a ``with`` block
            in the thread that entered it.

    Returns:
        A context manager. With ``always`` its ``close()`` ends it, as the end of a ``with`` block does.

    Example:
        >>> import torch, fpe_lightning as fpe
        >>> wide, narrow = (nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
        >>> _ = fpe.expand(wide, alpha=2, example_inputs=torch.randn(1, 64))
        >>> with fpe.expanded_checkpoints():
        ...     narrow.load_state_dict(wide.state_dict())
        <All keys matched successfully>
        >>> narrow[0].out_features
        16
    """
    if not always:
        return _block()
    global _always
    _patch_once()
    _always += 1
    # Unlike a generator, a stack does nothing when nobody keeps it.
    stack = ExitStack()
    stack.callback(_end_always)
    return stack


def from_pretrained(cls: Any, folder: str | Path, *args: Any, **kwargs: Any) -> Any:
    """Load the folder that ``save_pretrained`` of a split model wrote, by the library's own ``from_pretrained``.

    The config in the folder holds the widths before the first split; those of now are in the weights. Files of
    safetensors, shards, tied weights, ``dtype`` and all other options are left to the library.

    Args:
        cls: A class of transformers or diffusers: of a model, an ``AutoModel``, or a pipeline.
        folder: The folder, or the name on the hub.
        *args: As ``cls.from_pretrained`` takes them.
        **kwargs: As ``cls.from_pretrained`` takes them.

    Returns:
        The result of ``cls.from_pretrained``.

    Raises:
        TypeError: If the class is of another library.
        ValueError: If the weights are of another network.

    Example:
        >>> from_pretrained(nn.Linear, "folder")
        Traceback (most recent call last):
        ...
        TypeError: Linear has no `from_pretrained`; use `with fpe.expanded_checkpoints():` around what loads it.
    """
    if not hasattr(cls, "from_pretrained"):
        raise TypeError(
            f"{cls.__name__} has no `from_pretrained`; use `with fpe.expanded_checkpoints():` around what loads it."
        )
    with expanded_checkpoints():
        return cls.from_pretrained(folder, *args, **kwargs)


@contextmanager
def _block() -> Iterator[None]:
    _patch_once()
    _INSIDE.blocks += 1
    try:
        yield
    finally:
        _INSIDE.blocks -= 1
        _unpatch()


def _end_always() -> None:
    global _always
    _always -= 1
    _unpatch()


def _patch_once() -> None:
    """Patch for all threads, unless it is done."""
    global _users
    with _LOCK:
        _users += 1
        if _users == 1:
            _patch(_PATCHES)
        patch_pretrained(_PATCHES, _is_on)  # libraries may have been imported meanwhile


def _unpatch() -> None:
    """Undo it when nobody is left."""
    global _users
    with _LOCK:
        _users -= 1
        if not _users:
            _PATCHES.close()


def _patch(patches: ExitStack) -> None:
    """Patch the method of ``nn.Module``, and every one of a class that has its own, which may drop other shapes."""

    def patch_class(cls: type[nn.Module]) -> None:
        original = vars(cls).get("load_state_dict")
        if not isinstance(original, FunctionType) or hasattr(original, "fpe_patched"):
            return
        patched = _restoring(original, base=cls is nn.Module)
        cls.load_state_dict = patched  # type: ignore[method-assign]
        patches.callback(_undo, cls, patched, original)

    def patch_later(cls: type[nn.Module], **kwargs: Any) -> None:
        super(nn.Module, cls).__init_subclass__(**kwargs)
        patch_class(cls)

    for cls in _classes():
        patch_class(cls)
    if "__init_subclass__" not in vars(nn.Module):
        nn.Module.__init_subclass__ = classmethod(patch_later)  # type: ignore[assignment]
        patches.callback(delattr, nn.Module, "__init_subclass__")


def _undo(cls: type[nn.Module], patched: Any, original: Any) -> None:
    # Somebody who patched it later calls ours, which does nothing outside of a block.
    if vars(cls).get("load_state_dict") is patched:
        cls.load_state_dict = original  # type: ignore[method-assign]


def _classes() -> list[type[nn.Module]]:
    """Every class of modules that there is."""
    found: dict[type[nn.Module], None] = {nn.Module: None}
    waiting = [nn.Module]
    while waiting:
        new = [cls for cls in type.__subclasses__(waiting.pop()) if cls not in found]
        found.update(dict.fromkeys(new))
        waiting += new
    return list(found)


def _is_on() -> bool:
    return bool(_always or _INSIDE.blocks)


def _restoring(original: Callable[..., Any], base: bool) -> Callable[..., Any]:
    """A ``load_state_dict`` that restores the structure first.

    Args:
        original: The method.
        base: Whether it is that of ``nn.Module``, to which names are final; others may rename before they call it.
    """

    @functools.wraps(original)
    def load_state_dict(self: nn.Module, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not (_is_on() and _concerns(self, state_dict)):
            return original(self, state_dict, *args, **kwargs)
        strict = bool(args[0] if args else kwargs.get("strict", True))
        if base:
            check_names(self, state_dict, strict)
        if _INSIDE.loading:
            # Part of a larger load, which puts everything back if this raises.
            restore_structure(self, state_dict)
            return original(self, state_dict, *args, **kwargs)
        _INSIDE.loading = True
        try:
            return load_into(self, state_dict, lambda state: original(self, state, *args, **kwargs), strict)
        finally:
            _INSIDE.loading = False

    load_state_dict.fpe_patched = True  # type: ignore[attr-defined]
    return load_state_dict


def _concerns(module: nn.Module, state_dict: Any) -> bool:
    """Whether something was split, in the weights or in the model that takes them."""
    if not isinstance(state_dict, Mapping):
        return False
    return is_expanded(state_dict) or any(RECORD in each._buffers for each in module.modules())
