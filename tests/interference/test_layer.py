"""A layer's state: copies, structure, and the order (neurons, inputs, *kernel)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fpe_lightning.interference import (
    LayerState,
    feature_capacity,
    has_weight,
    mean_cosine_similarity,
    was_split,
)
from fpe_lightning.sparse import Record, Split, set_mask
from fpe_lightning.sparse.record import RECORD


def test_a_dense_layer_is_all_weights_and_its_own_parent():
    state = LayerState.of(nn.Linear(5, 3))
    assert state.mask.all()
    assert torch.equal(state.parents, torch.arange(3))
    assert (state.width, state.nonzeros) == (3, 15)


def split_record(shape: list[int], *splits: Split) -> torch.Tensor:
    return Record(shapes={"weight": shape}, splits={"weight": list(splits)}).encode()


def test_structure_is_read_from_the_module_and_copied():
    layer = nn.Linear(4, 2)
    set_mask(layer, "weight", torch.tensor([[True, False, True, False], [False, True, False, True]]))
    layer.register_buffer(RECORD, split_record([1, 4], Split(0, 0, 1, 1, 2)))
    state = LayerState.of(layer)
    assert was_split(layer)
    assert (state.nonzeros, state.parents.tolist()) == (4, [0, 0])
    kept = state.weight.clone()
    with torch.no_grad():
        layer.weight.zero_()
    layer.get_buffer("fpe_mask_weight").zero_()
    assert torch.equal(state.weight, kept)
    assert state.nonzeros == 4
    assert not state.weight.requires_grad


def test_a_layer_that_reads_split_neurons_has_not_been_split_itself():
    layer = nn.Linear(4, 3)
    layer.register_buffer(RECORD, split_record([3, 2], Split(1, 0, 2, 1, 2)))
    assert not was_split(layer)
    assert LayerState.of(layer).parents.tolist() == [0, 1, 2]


def test_parents_are_the_original_neurons_after_two_splits():
    layer = nn.Linear(4, 8)
    layer.register_buffer(RECORD, split_record([2, 4], Split(0, 0, 2, 1, 2), Split(0, 0, 4, 1, 2)))
    assert LayerState.of(layer).parents.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_statistics():
    layer = nn.Linear(4, 2)
    set_mask(layer, "weight", torch.tensor([[True, False, True, True], [False, True, False, False]]))
    statistics = LayerState.of(layer).statistics()
    assert statistics["feature_capacity"] == feature_capacity(layer.weight).mean().item()
    assert statistics["mean_cosine_similarity"] == mean_cosine_similarity(layer.weight).item()
    assert (statistics["width"], statistics["mean_fan_in"], statistics["nonzeros"]) == (2.0, 2.0, 4.0)
    assert all(type(value) is float for value in statistics.values())


class InputsFirst(nn.Module):
    """A linear layer whose weight is (inputs, neurons), as the ``Conv1D`` of GPT-2, which calls its width ``nf``."""

    def __init__(self, inputs: int, neurons: int) -> None:
        super().__init__()
        self.nf = neurons
        self.weight = nn.Parameter(torch.randn(inputs, neurons, generator=torch.Generator().manual_seed(0)))


def test_a_linear_layer_with_its_inputs_first_is_turned_around():
    layer = InputsFirst(3, 4)
    layer.register_buffer(RECORD, split_record([3, 2], Split(1, 0, 2, 1, 2)))
    state = LayerState.of(layer)
    assert torch.equal(state.weight, layer.weight.T)
    assert was_split(layer)
    assert state.parents.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_grouped_convolution_is_written_out_over_all_its_inputs(groups: int):
    layer = nn.Conv2d(4, 8, 3, groups=groups, bias=False)
    state = LayerState.of(layer)
    assert state.weight.shape == (8, 4, 3, 3)
    assert state.nonzeros == layer.weight.numel()
    image = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nn.functional.conv2d(image, state.weight), layer(image))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_turned_around(groups: int):
    layer = nn.ConvTranspose1d(4, 6, 3, groups=groups, bias=False)
    state = LayerState.of(layer)
    assert state.weight.shape == (6, 4, 3)
    signal = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nn.functional.conv_transpose1d(signal, state.weight.transpose(0, 1)), layer(signal))


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.BatchNorm1d(3), nn.Embedding(3, 2), nn.LazyLinear(3)])
def test_refuses_a_module_without_inputs_and_neurons(layer: nn.Module):
    assert not has_weight(layer)
    with pytest.raises(ValueError, match=r"layer with a weight of shape \(neurons, inputs, \*kernel\) is needed"):
        LayerState.of(layer)


def test_clauses_of_a_layer_with_one_clause_are_covered_and_cannot_collide():
    state = LayerState.of(nn.Linear(4, 2))
    assert state.clause_statistics([[0, 1]]) == {"clause_coverage": 1.0}
    with pytest.raises(ValueError, match="names the inputs"):
        state.clause_statistics([[0, 4]])
