"""CPU code of the same meaning for the 2:4 operators of torch that only GPUs have; for tests, never for the package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass as from_dense,
)
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_to_dense_cutlass as to_dense,
)


def _kept(mask: Tensor) -> tuple[Tensor, Tensor]:
    """For a mask with at most 2 of 4: which 2 entries of each 4 are kept, and the places that say so."""
    quads = mask.bool().contiguous().view(len(mask), -1, 4)
    index = (~quads).to(torch.uint8).argsort(dim=2, stable=True)[..., :2].sort(dim=2).values
    pattern = torch.zeros_like(quads).scatter_(2, index, True).view(mask.shape)
    return index, from_dense(pattern.to(torch.bfloat16))[1]


def _gather(weight: Tensor, index: Tensor) -> Tensor:
    return weight.reshape(len(weight), -1, 4).gather(2, index).reshape(len(weight), -1).contiguous()


def tile(weight: Tensor, algorithm: str = "", use_cutlass: bool = True) -> tuple[Tensor, ...]:
    """Exact where the weight is 2:4 along both axes already, the only way that the package calls it."""
    assert use_cutlass
    (index, places), (index_t, places_t) = _kept(weight != 0), _kept((weight != 0).t())
    return _gather(weight, index), places, _gather(weight.t(), index_t), places_t, (weight != 0).to(torch.uint8)


def apply(weight: Tensor, threads: Tensor) -> tuple[Tensor, Tensor]:
    assert weight.dtype in (torch.float16, torch.bfloat16)
    return _gather(weight, _kept(threads)[0]), _gather(weight.t(), _kept(threads.t())[0])


def compress(weight: Tensor) -> Tensor:
    assert weight.dtype in (torch.float16, torch.bfloat16)
    assert weight.is_contiguous()
    values, places = from_dense(weight)
    return torch.cat([values.flatten(), places.view(weight.dtype).flatten()])


def _product(weight: Tensor, dense: Tensor, bias: Tensor | None) -> Tensor:
    assert dense.shape[1] % 8 == 0, "the kernels take multiples of 8 alone: torch has to pad"
    result = weight @ dense
    return result if bias is None else result + bias.unsqueeze(1)


def mm(packed: Tensor, places: Tensor, dense: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    return _product(to_dense(packed, places), dense, None)


def addmm(
    bias: Tensor, packed: Tensor, places: Tensor, dense: Tensor, *, alpha: float = 1, beta: float = 1, out_dtype=None
) -> Tensor:
    return _product(to_dense(packed, places), dense, bias)


def cslt_mm(
    compressed: Tensor,
    dense: Tensor,
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    transpose_result: bool = False,
    alg_id: int = 0,
    split_k: int = 1,
    split_k_mode: int = -1,
) -> Tensor:
    columns = len(dense)
    rows = compressed.numel() * 16 // 9 // columns
    values = compressed[: rows * columns // 2].view(rows, -1)
    places = compressed[rows * columns // 2 :].view(torch.int16).view(rows, -1)
    result = _product(to_dense(values, places), dense, bias)
    return result.t().contiguous() if transpose_result else result


OPERATORS = {
    "_sparse_semi_structured_tile": tile,
    "_sparse_semi_structured_apply": apply,
    "_sparse_semi_structured_mm": mm,
    "_sparse_semi_structured_addmm": addmm,
    "_cslt_compress": compress,
    "_cslt_sparse_mm": cslt_mm,
}


@contextmanager
def kernels_on_cpu(backend: str) -> Iterator[None]:
    """Let layers believe that the CPU has the kernels of ``"cutlass"`` or ``"cusparselt"``."""
    library = torch.library.Library("aten", "IMPL")
    try:
        for name, function in OPERATORS.items():
            library.impl(name, function, "CPU")
        with patch("fpe_lightning.sparse.semi_structured.layers.backend_of", lambda device: backend):
            yield
    finally:
        library._destroy()
