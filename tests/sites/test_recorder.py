"""What a step calls is noted by shape, in plain types, until the recorder is stopped."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fpe_lightning.sites.recorder import CallRecorder, describe, rebuild

tensors = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]),
)
leaves = tensors | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and left == right


@given(values)
def test_round_trip_through_plain_types(value: Any) -> None:
    description = describe(value)
    json.dumps(description)
    assert same(rebuild(description), value)


def test_what_is_neither_tensor_nor_plain_is_named() -> None:
    with pytest.raises(TypeError, match="a Linear cannot be described by shapes"):
        describe([nn.Linear(1, 1)])


class Root(nn.Module):
    """Calls networks in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
        self.b = nn.Bilinear(2, 2, 3)


def test_outermost_calls_are_noted_once_each() -> None:
    root = Root()
    recorder = CallRecorder(root)
    for _ in range(2):
        root.b(root.a(torch.zeros(3, 4)), input2=torch.ones(3, 2))
    root.a[1](torch.zeros(7))
    assert [call["module"] for call in recorder.calls] == ["a", "b", "a.1"]
    assert recorder.calls[1]["kwargs"] == {"dict": {"input2": {"shape": [3, 2], "dtype": "float32"}}}
    recorder.stop()
    recorder.stop()
    root.a[0](torch.zeros(1, 4))
    assert len(recorder.calls) == 3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in root.modules())


def test_a_call_that_raises_does_not_hide_later_ones() -> None:
    root = Root()
    recorder = CallRecorder(root)
    with pytest.raises(RuntimeError):
        root.a(torch.zeros(3, 5))
    root.b(torch.zeros(1, 2), torch.zeros(1, 2))
    recorder.stop()
    assert "b" in [call["module"] for call in recorder.calls]


def test_calls_with_other_arguments_are_left_out() -> None:
    class Odd(nn.Module):
        def forward(self, x: Any) -> int:
            return 0

    root = nn.Module()
    root.odd = Odd()
    recorder = CallRecorder(root)
    root.odd(object())
    recorder.stop()
    assert recorder.calls == []


def test_calls_inside_of_compiled_modules_name_the_module_inside() -> None:
    root = nn.Module()
    root.net = torch.compile(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), backend="eager")
    recorder = CallRecorder(root)
    root.net(torch.zeros(3, 4))
    recorder.stop()
    assert [call["module"] for call in recorder.calls] == ["net._orig_mod"]
