"""A ``state_dict`` that was tampered with is either loaded and right, or refused in a sentence that changes nothing."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fpe_lightning as fpe
from tests.support.tampered import PAIRS, loads_right_or_refuses, trial
from tests.support.tampering import bits_of, text_of


@pytest.mark.parametrize("name", PAIRS)
def test_untouched_they_load(name: str) -> None:
    narrow, wide, x = PAIRS[name]
    for model in (narrow, wide):
        assert loads_right_or_refuses(copy.deepcopy(model), dict(wide.state_dict()), x) == "loaded"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_a_tampered_checkpoint_is_right_or_refused(seed: int) -> None:
    trial(seed)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(st.integers(0, 2**32))
def test_two_thousand_tampered_checkpoints(seed: int) -> None:
    trial(seed)


def test_a_small_file_cannot_ask_for_much_memory() -> None:
    narrow, wide, _ = PAIRS["masked"]
    rows = 10**12
    for bomb in ("0.weight", "0.bias", "0.fpe_mask_weight", "1.running_mean"):
        state = dict(wide.state_dict())
        state[bomb] = state[bomb].new_zeros(1).expand(rows, *state[bomb].shape[1:])
        told = text_of(state["0.fpe_record"]).replace(b'"alpha":2', f'"alpha":{rows // 8}'.encode())
        state["0.fpe_record"] = bits_of(told.replace(b"[8,16]", f"[8,{rows}]".encode()))
        with pytest.raises(ValueError, match=r"^The checkpoint is broken: `"):
            fpe.load_expanded_state_dict(copy.deepcopy(narrow), state)


def test_integers_and_buffers_without_a_tensor_grow_no_more_than_tensors_do() -> None:
    narrow, wide, _ = PAIRS["an integer and a buffer"]
    for old, new in ((b'"width":[8,16]', b'"width":[8,999]'), (b'"alpha":2', b'"alpha":99')):
        state = dict(wide.state_dict())
        state["fpe_record"] = bits_of(text_of(state["fpe_record"]).replace(old, new))
        with pytest.raises(ValueError, match="and no tensor grew so much"):
            fpe.load_expanded_state_dict(copy.deepcopy(narrow), state)
