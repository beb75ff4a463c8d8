"""Layers that keep something computed from their buffers."""

from __future__ import annotations

from typing import Any

from torch import nn
from typing_extensions import override


class PreparedModule(nn.Module):
    """A layer that computes something from its buffers, after every move and every load of a ``state_dict``.

    A move is ``.to()``, ``.half()``, ``.cuda()`` and the like.
    """

    def prepare(self) -> None:
        """Compute ``fpe_plan`` from the buffers as they are; on the meta device there is nothing to compute."""
        raise NotImplementedError

    @override
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        self.prepare()
        return result

    @override
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.prepare()
