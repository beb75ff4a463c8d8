"""Packing into plain tensors loses no bit, and refuses what would."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fpe_lightning.sparse.semi_structured.format import (
    not_semi_structured,
    pack_semi_structured,
    unpack_semi_structured,
)


def weight_of(dtype: torch.dtype, seed: int, density: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(64, 32, 4, generator=generator)
    mask = (keys.argsort(2) < 2) & (torch.rand(keys.shape, generator=generator) < density)
    if dtype == torch.int8:
        values = torch.randint(-128, 128, keys.shape, generator=generator, dtype=torch.int8)
    else:  # every pattern of bits that is a number, the smallest and infinite ones among them
        values = torch.randint(-(2**15), 2**15, keys.shape, generator=generator, dtype=torch.int16).view(dtype)
        values[values.isnan()] = 1
    return torch.where(mask, values, torch.zeros((), dtype=dtype)).view(64, 128)


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int8 if tensor.dtype == torch.int8 else torch.int16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
@given(seed=st.integers(0, 2**31), density=st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=20, deadline=None)
def test_unpacking_gives_back_every_bit(dtype: torch.dtype, seed: int, density: float) -> None:
    weight = weight_of(dtype, seed, density)
    values, places = pack_semi_structured(weight)
    found = unpack_semi_structured(values, places)
    # A negative zero is a zero, and may stand at any place that is not kept.
    assert torch.equal(bits(found)[weight != 0], bits(weight)[weight != 0])
    assert not found[weight == 0].any()
    assert values.nbytes + places.nbytes == weight.nbytes * (9 if dtype != torch.int8 else 10) // 16


def test_what_would_lose_values_is_refused() -> None:
    weight = torch.zeros(64, 64, dtype=torch.float16)
    weight[3, 4:7] = 1
    with pytest.raises(ValueError, match="row 3 keeps 3 of the 4 inputs 4 to 7, and 2:4 allows 2; use the masked"):
        pack_semi_structured(weight)
    with pytest.raises(TypeError, match=r"dtype torch\.float32 cannot be packed: the kernels take float16, bfloat16"):
        pack_semi_structured(torch.zeros(64, 64))
    with pytest.raises(ValueError, match=r"its shape is \(64, 32\), and the kernels take multiples of 64"):
        pack_semi_structured(torch.zeros(64, 32, dtype=torch.float16))
    with pytest.raises(ValueError, match="int8 weight needs a multiple of 128 inputs, found 64"):
        pack_semi_structured(torch.zeros(64, 64, dtype=torch.int8))


def test_columns_count_where_gradients_flow() -> None:
    mask = torch.tensor([[True, True, False, False]]).repeat(64, 16)
    assert not_semi_structured(mask, columns=False) is None
    assert not_semi_structured(mask) == "column 0 keeps 4 of the 4 rows 0 to 3, and 2:4 allows 2"
    assert "its shape is (64, 0)" in str(not_semi_structured(torch.ones(64, 0, dtype=torch.bool)))
