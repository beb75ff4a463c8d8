"""Layers that work something out from their buffers, anew whenever those move or change."""

from __future__ import annotations

from typing import Any

from torch import nn
from typing_extensions import override


class PreparedModule(nn.Module):
    """Calls :meth:`prepare` after every move (``.to``, ``.half``, ``.cuda``) and every loading of a ``state_dict``."""

    def prepare(self) -> None:
        """Work out how to compute with what the buffers hold now; on the meta device there is nothing to work out."""
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
